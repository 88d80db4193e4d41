"""Weights of networks that transformers has no class for: one safetensors file, loaded strictly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "model.safetensors"


def save_state(folder: Path, state: dict[str, Tensor]) -> None:
    """Write a state dict."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / FILE)


def load_state(net: nn.Module, folder: Path, dtype: Any = None) -> nn.Module:
    """`net` with the folder's weights in `dtype`, in eval mode; it remembers the folder as `name_or_path`."""
    from safetensors.torch import load_file

    net.load_state_dict(load_file(folder / FILE), strict=True)
    net.name_or_path = str(folder)  # type: ignore[assignment]
    return net.to(dtype).eval() if dtype is not None else net.eval()
