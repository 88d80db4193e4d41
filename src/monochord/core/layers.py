"""The linear map inside a layer: apply it with other weights, or through a low-rank factorisation.

A change of a weight acts on a layer's output as `apply(x, change)`. With this a low-rank change never has
to be multiplied out, whatever the layer: dense, embedding or convolution (1-3 d, grouped, transposed).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monochord.core.blocks import kind

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Layer:
    """The linear map of `module`; weights are given as (outputs, inputs, ...), or as the module stores them
    for embeddings (vocabulary, width) and transposed convolutions (inputs, outputs / groups, ...)."""

    module: nn.Module

    @property
    def axis(self) -> int:
        """The axis of the output that the weight's rows become."""
        return 1 - self.module.weight.dim() if isinstance(self.module, _CONVOLUTIONS) else -1

    @property
    def rows_are_outputs(self) -> bool:
        """Whether the weight's first axis is the output's, so that a factor a row can act on the output."""
        return not isinstance(self.module, (nn.Embedding, *_TRANSPOSED))

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The layer's output for `x` with `weight` in place of its own, without its bias."""
        m = self.module
        weight = weight.to(x.dtype) if x.is_floating_point() else weight
        if isinstance(m, nn.Embedding):
            return F.embedding(x, weight)
        if isinstance(m, _CONVOLUTIONS):
            return m._conv_forward(x, weight, None)  # keeps stride, dilation, groups and padding mode
        if isinstance(m, _TRANSPOSED):
            transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[weight.dim() - 3]
            padding: Any = m.padding
            return transpose(x, weight, None, m.stride, padding, m.output_padding, m.groups, m.dilation)
        return F.linear(x, weight)

    def low_rank(self, x: Tensor, down: Tensor, up: Tensor, scale: float = 1.0) -> Tensor:
        """`scale * apply(x, up @ down)` without the product: `down` is (rank, rest...), `up` (first axis, rank).

        The scale acts between the two, where the tensor is smallest.
        """
        m = self.module
        if isinstance(m, nn.Embedding):
            return F.linear(F.embedding(x, up) * scale, down.t())
        if x.is_floating_point():
            down, up = down.to(x.dtype), up.to(x.dtype)
        if isinstance(m, _CONVOLUTIONS):
            rank, groups, ones = down.shape[0], m.groups, (1,) * (down.dim() - 2)
            inner = m._conv_forward(x, down.repeat(groups, *(1,) * (down.dim() - 1)), None)
            outer = up.reshape(groups, -1, rank).reshape(-1, rank, *ones)
            return (F.conv1d, F.conv2d, F.conv3d)[down.dim() - 3](inner * scale, outer, None, groups=groups)
        if isinstance(m, _TRANSPOSED):
            rank, groups, ones = down.shape[0], m.groups, (1,) * (down.dim() - 2)
            mix = up.reshape(groups, -1, rank).transpose(1, 2).reshape(groups * rank, -1, *ones)
            inner = (F.conv1d, F.conv2d, F.conv3d)[down.dim() - 3](x, mix, None, groups=groups)
            return self.apply(inner * scale, down.repeat(groups, *(1,) * (down.dim() - 1)))
        return F.linear(F.linear(x, down) * scale, up)


def layer_of(module: nn.Module, parameter: str, owner: nn.Module | None = None) -> Layer | None:
    """The linear map that `parameter` is the weight of, or None where the module has none that runs as a call.

    `owner` is the module around it: a recurrent mixer may use the weights of its layers without calling them.
    """
    if hasattr(owner, "A_log"):
        return None
    mapped = (nn.Linear, nn.Embedding, *_CONVOLUTIONS, *_TRANSPOSED)
    if parameter != "weight" or kind(module) == "NonDynamicallyQuantizableLinear":
        return None  # multi-head attention reads the weight of its out_proj and never calls it
    return Layer(module) if isinstance(module, mapped) or kind(module) == "Conv1D" else None


def bias_of(module: nn.Module, like: Tensor, axis: int) -> Tensor | None:
    """The module's bias, shaped to add to an output along `axis`."""
    bias = getattr(module, "bias", None)
    if not isinstance(bias, Tensor):
        return None
    return bias.to(like.dtype).reshape(-1, *(1,) * (-1 - axis))


def rows_of(x: Tensor, rows: tuple[int, ...]) -> slice | Tensor:
    """An index for output rows: a slice where they are contiguous (no copy), else positions."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=x.device)
