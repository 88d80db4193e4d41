"""GlassLLM: a Llama-style language model of 0.85 M parameters, English or Portuguese, for unit tests.

From the package `glassllm`, a Transformer written in NumPy to be looked at; trained on Lewis Carroll and on
Machado de Assis. Its rotary embedding turns neighbouring units, transformers' turns the two halves of a head:
the rows of q and k are permuted, and everything it computes stays the same.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.core.packages import Package
from monochord.models.catalog import Model

if TYPE_CHECKING:
    from torch import Tensor

PARTS = {
    "norm1.gamma": "input_layernorm",
    "attn.W_Q": "self_attn.q_proj",
    "attn.W_K": "self_attn.k_proj",
    "attn.W_V": "self_attn.v_proj",
    "attn.W_O": "self_attn.o_proj",
    "norm2.gamma": "post_attention_layernorm",
    "ffn.W1": "mlp.gate_proj",
    "ffn.W3": "mlp.up_proj",
    "ffn.W2": "mlp.down_proj",
}


def convert(package: Path, folder: Path, *, language: str) -> None:
    """The package's arrays and tokenizer as a folder of transformers' `LlamaForCausalLM`."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    weights = package / "glassllm/weights"
    with np.load(weights / f"{language}.npz") as archive:
        config = json.loads(str(archive["__config__"]))
        names = [name for name in archive.files if name != "__config__"]
        arrays = {name: torch.from_numpy(archive[name].astype(np.float32)) for name in names}
    width, heads = config["d_model"], config["n_heads"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab_size"],
            hidden_size=width,
            intermediate_size=arrays["blocks.0.ffn.W1"].shape[1],
            num_hidden_layers=config["n_layers"],
            num_attention_heads=heads,
            num_key_value_heads=config["n_kv_heads"],
            max_position_embeddings=config["max_len"],
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_base"]},
            rms_norm_eps=config["eps"],
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        )
    )
    state = {"model.embed_tokens.weight": arrays["E"], "model.norm.weight": arrays["norm_f.gamma"]}
    state["lm_head.weight"] = arrays["E"]
    for layer in range(config["n_layers"]):
        for theirs, ours in PARTS.items():
            value = arrays[f"blocks.{layer}.{theirs}"]
            if theirs in ("attn.W_Q", "attn.W_K"):
                value = _pairs_to_halves(value, width // heads)
            state[f"model.layers.{layer}.{ours}.weight"] = value.mT.contiguous() if value.ndim == 2 else value
    model.load_state_dict(state, strict=True)
    model.save_pretrained(folder)
    _tokenizer(json.loads((weights / f"{language}.tokenizer.json").read_text(encoding="utf8"))).save_pretrained(folder)


def _pairs_to_halves(weight: Tensor, head: int) -> Tensor:
    """Reorder the columns of each head from (pair, 2) to (2, pair); shape (width, heads * head) stays."""
    width = len(weight)
    return weight.reshape(width, -1, head // 2, 2).transpose(2, 3).reshape(width, -1)


def _tokenizer(stored: dict[str, Any]) -> Any:
    """The package's character BPE: NFC text, spaces as a visible mark, merges inside of words only."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<bos>", "<eos>"]
    merges = [(left, right) for left, right in stored["merges"]]
    vocabulary = special + stored["alphabet"] + [left + right for left, right in merges]
    model = models.BPE({token: i for i, token in enumerate(vocabulary)}, merges, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    pad, unknown, begin, end = special
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def _entry(name: str, language: str, reads: str) -> Model:
    return Model(
        name=name,
        kind="causal-lm",
        title=f"GlassLLM, Llama with 4 layers of 128, {reads}",
        licence="MIT",
        parameters=852_608,
        architecture="LlamaForCausalLM",
        package=Package(
            "pypi",
            "glassllm",
            "0.1.0",
            sha256="1611801c031d0fc300dc89d3c07cd6be56dc1784e38e24422b2242d0761a333b",
            size=3_196_628,
            members=("glassllm/weights/*", "*LICENSE*"),
        ),
        convert=partial(convert, language=language),
    )


ENTRIES = [
    _entry("glassllm", "en", "English (Lewis Carroll)"),
    _entry("glassllm-pt", "pt", "Portuguese (Machado de Assis)"),
]
