"""Small, randomly initialised models of every architecture that the core must hold for, each with a batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

Batch = dict[str, Any]
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def text_batch(name: str = "input_ids") -> Batch:
    """Two examples of 8 tokens; the second is padded on the left by two."""
    ids = torch.arange(5, 21).reshape(2, 8)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, :2] = 0
    return {name: ids, "attention_mask": mask}


def image_batch() -> Batch:
    return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32).sin()}


def _gpt2() -> nn.Module:
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64))


def _t5() -> nn.Module:
    config = hf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=64,
                         feed_forward_proj="gated-gelu", decoder_start_token_id=0)  # fmt: skip
    return hf.T5ForConditionalGeneration(config)


def _whisper() -> nn.Module:
    config = hf.WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=32,
        max_target_positions=32, num_mel_bins=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return hf.WhisperForConditionalGeneration(config)


def _clip() -> nn.Module:
    return hf.CLIPModel(
        hf.CLIPConfig(
            text_config={**_TEXT, "projection_dim": 16, "eos_token_id": 63, "bos_token_id": 1, "pad_token_id": 0},
            vision_config={**_VISION, "projection_dim": 16},
            projection_dim=16,
        )
    )


def _unet() -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def _conditional_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip


def _dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, norm_num_groups=4
    )


class MultiheadNet(nn.Module):
    """Blocks of torch's own `nn.MultiheadAttention`, as in torchvision's and open_clip's vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.layers = nn.ModuleList([MultiheadBlock() for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x


class MultiheadBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.self_attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def _noise_batch(channels: int) -> Batch:
    size = 16 if channels == 3 else 8
    sample = torch.linspace(-1, 1, 2 * channels * size * size).reshape(2, channels, size, size).sin()
    return {"sample": sample, "timestep": torch.tensor([3, 7])}


_BUILD: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch]]] = {
    "gpt2": (_gpt2, text_batch),
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_TEXT, num_key_value_heads=2)), text_batch),
    "qwen2": (lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_TEXT, num_key_value_heads=2)), text_batch),
    "gemma": (lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**_TEXT, num_key_value_heads=1, head_dim=8)), text_batch),
    "gpt-neox": (lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_TEXT)), text_batch),
    "bert": (lambda: hf.BertModel(hf.BertConfig(**_TEXT)), text_batch),
    "roberta": (lambda: hf.RobertaModel(hf.RobertaConfig(**_TEXT)), text_batch),
    "t5": (_t5, lambda: {**text_batch(), "decoder_input_ids": torch.arange(12).reshape(2, 6)}),
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**_VISION)), image_batch),
    "clip": (_clip, lambda: {**text_batch(), **image_batch()}),
    "dinov2": (
        lambda: hf.Dinov2Model(
            hf.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
        ),
        image_batch,
    ),
    "ast": (
        lambda: hf.ASTModel(
            hf.ASTConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_mel_bins=32,
                max_length=64,
            )
        ),
        lambda: {"input_values": torch.linspace(-1, 1, 2 * 64 * 32).reshape(2, 64, 32).sin()},
    ),
    "whisper": (
        _whisper,
        lambda: {
            "input_features": torch.linspace(-1, 1, 2 * 16 * 64).reshape(2, 16, 64).sin(),
            "decoder_input_ids": torch.arange(3, 15).reshape(2, 6),
        },
    ),
    "mamba": (
        lambda: hf.MambaForCausalLM(hf.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=4)),
        text_batch,
    ),
    "mamba2": (
        lambda: hf.Mamba2ForCausalLM(
            hf.Mamba2Config(
                hidden_size=32,
                num_hidden_layers=2,
                vocab_size=64,
                state_size=4,
                num_heads=8,
                head_dim=8,
                n_groups=1,
                chunk_size=8,
            )
        ),
        text_batch,
    ),
    "mixtral": (
        lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**_TEXT, num_key_value_heads=2, num_local_experts=4)),
        text_batch,
    ),
    "unet": (_unet, lambda: _noise_batch(3)),
    "unet-conditional": (
        _conditional_unet,
        lambda: {**_noise_batch(4), "encoder_hidden_states": torch.linspace(-1, 1, 2 * 5 * 12).reshape(2, 5, 12)},
    ),
    "dit": (_dit, lambda: {**_noise_batch(4), "hidden_states": None, "class_labels": torch.tensor([1, 2])}),
    "convnext": (
        lambda: hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], image_size=32)),
        image_batch,
    ),
    "resnet": (
        lambda: hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1])),
        image_batch,
    ),
    "multihead": (MultiheadNet, lambda: {"x": torch.linspace(-1, 1, 2 * 5 * 8).reshape(2, 5, 8).sin()}),
    "sequential": (
        lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)),
        lambda: {"input": torch.linspace(-1, 1, 16).reshape(2, 8).sin()},
    ),
}
MODELS = tuple(_BUILD)
CAUSAL = ("gpt2", "llama", "qwen2", "gemma", "gpt-neox", "mamba", "mamba2", "mixtral")
ATTENTION = tuple(m for m in MODELS if m not in ("mamba", "mamba2", "unet", "convnext", "resnet", "sequential"))


@cache
def _template(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = _BUILD[name][0]().eval()
    with torch.no_grad():
        for p in model.parameters():  # away from zeros and ones, so that nothing holds by accident
            p.add_(0.05 * torch.randn(p.shape))
    return model


def build(name: str) -> nn.Module:
    """A fresh copy of the model, in eval mode; the same weights each time."""
    import copy

    return copy.deepcopy(_template(name))


def batch(name: str) -> Batch:
    """Keyword arguments for one forward of the model."""
    given = _BUILD[name][1]()
    if name == "dit":
        given["hidden_states"] = given.pop("sample")
    return given


def main(output: Any) -> Tensor:
    """The tensor to compare: logits where there are some, else the first tensor."""
    from monochord.core.ports import first_tensor

    for key in ("logits", "logits_per_image", "last_hidden_state"):
        if getattr(output, key, None) is not None:
            return getattr(output, key)
    return first_tensor(output)


def run(model: nn.Module, given: Batch) -> Tensor:
    """The main output without gradients."""
    with torch.no_grad():
        return main(model(**given))


def moved(tuned, size=0.3):
    """An attached tuner away from its start, the same way each time."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(size * torch.randn(p.shape, generator=g))
    return tuned


def logits(model, **batch):
    """Of a forward without gradients; the first output where there are no logits."""
    with torch.no_grad():
        output = model(**batch)
    return output.logits if hasattr(output, "logits") else output[0]
