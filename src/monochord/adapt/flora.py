"""Tucker adaptation: the change of a weight of any order is a small core times one thin matrix an axis.

From "FLoRA: Low-Rank Core Space for N-dimension", May 23, 2024. A kernel keeps its axes (outputs, inputs, height,
width) where LoRA flattens them; of a dense weight it is LoRA with a core between the factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from monochord.adapt.lora import matrices
from monochord.core.entries import Entry
from monochord.core.layers import Layer
from monochord.core.modification import WeightModification
from monochord.core.sites import Site
from monochord.core.tucker import Tucker, multiply
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class FLoRA(Tuner):
    """Add `scale * core x1 A1 x2 A2 ...` to every matching weight and train the core and the factors.

    `rank` caps the first two axes, `spatial_rank` those of a kernel (by default they stay whole). A weight smaller than
    its rank has the rank of its size. `dropout` acts on the input of the change.
    """

    default_lr: ClassVar[float] = 1e-3

    sites: str | tuple[str, ...] = "blocks.**.weight"
    rank: int = 8
    spatial_rank: int | None = None
    scale: float = 1.0
    dropout: float = 0.0

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, TuckerChange]]:
        if self.rank < 1 or (self.spatial_rank is not None and self.spatial_rank < 1):
            raise ValueError(f"rank={self.rank} and spatial_rank={self.spatial_rank} must be at least 1")
        for site in matrices(model, self.sites):
            shape = site.shape or ()
            wanted = [self.rank, self.rank, *[self.spatial_rank or size for size in shape[2:]]]
            ranks = tuple(min(rank, size) for rank, size in zip(wanted, shape, strict=True))
            yield site, TuckerChange(shape, ranks, self.scale, self.dropout, generator)


class TuckerChange(WeightModification):
    """`scale * core x1 factors[0] x2 ...`: `core` (J1, ..., JN) zero until trained, factors (In, Jn)."""

    bypasses = True

    def __init__(
        self,
        shape: tuple[int, ...],
        ranks: tuple[int, ...],
        scale: float = 1.0,
        dropout: float = 0.0,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.core = nn.Parameter(torch.zeros(ranks))  # the core alone at zero: the first step moves it, then all
        self.factors = nn.ParameterList(
            torch.randn(size, rank, generator=generator) / math.sqrt(2 * rank)
            for size, rank in zip(shape, ranks, strict=True)
        )
        self.scale, self.dropout = scale, dropout

    def delta(self) -> Tensor:
        return self.scale * multiply(self.core, dict(enumerate(self.factors)))

    def entry(self, weight: Tensor) -> Entry:
        return Tucker(self.core, list(self.factors), self.scale)

    def bypass(self, x: Tensor, layer: Layer) -> Tensor | None:
        """As a low-rank change of the first axis, its other factor multiplied out: (J1, inputs, ...) is small."""
        if self.dropout and self.training and x.is_floating_point():
            x = F.dropout(x, self.dropout)
        down = multiply(self.core, dict(enumerate(self.factors[1:], 1)))
        return layer.low_rank(x, down, self.factors[0], self.scale)
