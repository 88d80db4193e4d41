"""Conformer adapters: a convolution over the sequence inside a bottleneck, so that neighbouring patches mix.

From "Parameter-Efficient Transfer Learning of Audio Spectrogram Transformers", December 6, 2023. Train the norms beside
it too by `ConformerAdapter() | FullTuning("blocks.*.norm2")`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from monochord.core.modification import Modification, uniform
from monochord.core.prompt import causal
from monochord.core.sites import Site, resolve, width
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class ConformerAdapter(Tuner):
    """Add a convolution module at every matching output: parallel to the sub-layer, or, else, after it.

    Pointwise convolution to twice the bottleneck, gated linear unit, depthwise convolution of `kernel` tokens, batch
    norm, SiLU, pointwise convolution back, which starts at zero. The bottleneck is the width over `reduction`, at least
    one. `pre_norm` normalises the module's input. The depthwise convolution looks both ways, in causal models only
    back. `sites` of the MLP alone are the placement called Pfeiffer, "blocks.*.attn:out" beside it Houlsby.
    """

    default_lr: ClassVar[float] = 5e-3

    sites: str | tuple[str, ...] = "blocks.*.mlp:out"
    reduction: int = 96
    kernel: int = 31
    parallel: bool = True
    pre_norm: bool = False

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, ConformerConvolution]]:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} must be odd and at least 1")
        backwards = causal(model)
        for site in resolve(model, self.sites):
            size = width(model, site)
            inner = max(round(size / self.reduction), 1)
            yield (
                site,
                ConformerConvolution(size, inner, self.kernel, self.parallel, self.pre_norm, backwards, generator),
            )


class ConformerConvolution(Modification):
    """`value + back(silu(norm(depthwise(glu(down(source))))))` over the sequence, (batch, seq, width)."""

    def __init__(
        self,
        width: int,
        inner: int,
        kernel: int,
        parallel: bool = True,
        pre_norm: bool = False,
        causal: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.reads = "input" if parallel else "value"
        self.norm = nn.LayerNorm(width) if pre_norm else None
        self.down = nn.Parameter(uniform((2 * inner, width), width, generator))
        self.down_bias = nn.Parameter(torch.zeros(2 * inner))
        self.depthwise = nn.Parameter(uniform((inner, 1, kernel), kernel, generator))
        self.batch_norm = nn.BatchNorm1d(inner)
        self.up = nn.Parameter(torch.zeros(width, inner))
        self.up_bias = nn.Parameter(torch.zeros(width))
        self.causal = causal

    def forward(self, value: Tensor, source: Tensor | None = None) -> Tensor:
        source = (value if source is None else source).to(self.down.dtype)
        hidden = source if self.norm is None else self.norm(source)
        hidden = F.glu(F.linear(hidden, self.down, self.down_bias), -1).transpose(1, 2)
        inner, _, kernel = self.depthwise.shape
        sides = (kernel - 1, 0) if self.causal else (kernel // 2, kernel // 2)
        hidden = F.conv1d(F.pad(hidden, sides), self.depthwise, groups=inner)
        hidden = F.silu(self.batch_norm(hidden)).transpose(1, 2)
        return value + F.linear(hidden, self.up, self.up_bias).to(value.dtype)
