"""Weight-decomposed low-rank adaptation: the direction of each row changes by low rank, its length on its own.

From "DoRA: Weight-Decomposed Low-Rank Adaptation", February 14, 2024, section 4. The changed weight is
`m * (W + scale * up @ down) / norm`, with one trained magnitude `m` a row and the row norm held constant in the
backward pass (section 4.3). The norms come from the factors, so the changed weight is never built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from monochord.adapt.lora import check_rank, matrices, matrix_shape
from monochord.core.changes import LowRank
from monochord.core.entries import Dense, Entry
from monochord.core.sites import Site, base_weight
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class DoRA(Tuner):
    """LoRA on the direction of every row of the matching weights, and a trained length for each row.

    Arguments are those of LoRA. Raises `ValueError` for weights that are not matrices or kernels of a layer.
    """

    default_lr: ClassVar[float] = 1e-3

    sites: str | tuple[str, ...] = "blocks.*.attn.{q,v}.weight"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    stabilised: bool = False

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, DecomposedLowRank]]:
        scale = self.alpha / (math.sqrt(self.rank) if self.stabilised else self.rank)
        for site in matrices(model, self.sites):
            shape, experts = matrix_shape(site)
            if experts:
                raise ValueError(f"{site} holds fused experts, which DoRA has no row norms for: use LoRA there")
            check_rank(self.rank, site)
            yield site, DecomposedLowRank(base_weight(model, site), shape, self.rank, scale, self.dropout, generator)


class DecomposedLowRank(LowRank):
    """A low-rank change of `weight` followed by a trained factor a row over the changed row's norm."""

    def __init__(
        self,
        weight: Tensor,
        shape: tuple[int, ...],
        rank: int,
        scale: float,
        dropout: float,
        generator: Generator,
    ) -> None:
        super().__init__(shape, rank, scale, dropout, generator)
        self._weight = (weight.flatten(1),)  # in a tuple: the base's own tensor is no part of this module
        self._squares = weight.flatten(1).float().square().sum(1)
        self.magnitude = nn.Parameter(self._squares.sqrt())

    def gain(self) -> Tensor:
        return self.magnitude / self._norm()

    def entry(self, weight: Tensor) -> Entry:
        return Dense(self(weight) - weight)

    @torch.no_grad()
    def _norm(self) -> Tensor:
        """Norms of the rows of `weight + delta`, (rows,), from products no larger than (rows, rank)."""
        (weight,) = self._weight
        down, up = self.down.flatten(1), self.up
        if weight.device != down.device:
            self._weight, self._squares = (weight.to(down.device),), self._squares.to(down.device)
            (weight,) = self._weight
        cross: Tensor = torch.mm(weight, down.t().to(weight.dtype)).float()
        cross.add_(up.float() @ (down @ down.t()).float(), alpha=self.scale / 2)
        squares: Tensor = torch.linalg.vecdot(up.float(), cross)
        return squares.mul_(2 * self.scale).add_(self._squares).clamp_(min=0).sqrt_()
