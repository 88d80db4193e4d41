"""Random-subspace tuning: all weights move along the image of one short vector, and how short it may be.

From "Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning", December 22, 2020. What is
kept of a tuning is `d` numbers and a seed. The smallest d that still reaches most of what full tuning reaches is the
intrinsic dimension of a task for a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from monochord.core.fastfood import Fastfood
from monochord.core.modification import WeightModification
from monochord.core.sites import Site
from monochord.core.sparse import weights_at
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class SubspaceTuning(Tuner):
    """Add `P_i v` to every matching tensor: one trained v (d,), zero at first, and a random P_i for each tensor.

    `projection="fastfood"` applies P_i in O(D log D) from a seed, `"dense"` holds a Gaussian matrix (D_i, d) and is for
    small models and for tests. With `structure_aware` each tensor has a trained factor, one at first, on its part; the
    factors count in `d`. Raises `ValueError` when d is no more than the number of factors, or larger than a tensor can
    carry.
    """

    default_lr: ClassVar[float] = 1e-2

    d: int = 200
    sites: str | tuple[str, ...] = "blocks.**"
    projection: str = "fastfood"
    structure_aware: bool = False

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Projected]]:
        if self.projection not in ("fastfood", "dense"):
            raise ValueError(f"projection={self.projection!r} is unknown: use 'fastfood' or 'dense'")
        sites = list(weights_at(model, self.sites).values())
        size = self.d - len(sites) if self.structure_aware else self.d
        if size < 1:
            raise ValueError(f"d={self.d} leaves nothing beside the factors of {len(sites)} tensors: use more")
        vector = nn.Parameter(torch.zeros(size))
        for number, site in enumerate(sites):
            change = Projected(vector, site.shape or (), generator.initial_seed() * 1_000_003 + number, self.projection)
            change.owner = number == 0
            if self.structure_aware:
                change.factor = nn.Parameter(torch.ones(()))
            yield site, change


class Projected(WeightModification):
    """The change `factor * P vector` of a weight of `shape`; P is made again from `seed` and not saved."""

    def __init__(self, vector: nn.Parameter, shape: tuple[int, ...], seed: int, projection: str = "fastfood") -> None:
        super().__init__()
        self.vector, self.shape = vector, tuple(shape)
        self.factor: nn.Parameter | None = None
        self.owner = True  # the one that saves the vector that all share
        size = math.prod(shape)
        if projection == "fastfood":  # a tensor smaller than the vector is cut from a larger image
            self._fastfood: Fastfood | None = Fastfood(len(vector), max(size, len(vector)), seed)
            self._norm = math.sqrt(max(size, len(vector)) / size)
        else:
            rows = torch.randn(size, len(vector), generator=Generator().manual_seed(seed))
            self._fastfood, self._rows = None, rows / math.sqrt(size)

    def delta(self) -> Tensor:
        if self._fastfood is None:
            self._rows = self._rows.to(self.vector.device)
            image = self._rows @ self.vector
        else:
            image = self._fastfood.to(self.vector.device).matvec(self.vector)[: math.prod(self.shape)] * self._norm
        change = image.reshape(self.shape)
        return change if self.factor is None else self.factor * change

    def saved(self) -> dict[str, Tensor]:
        shared = {"vector": self.vector.detach()} if self.owner else {}
        return shared if self.factor is None else {**shared, "factor": self.factor.detach()}


def intrinsic_dimension(scores: Mapping[int, float], full: float, threshold: float = 0.9) -> int | None:
    """The smallest d from which on every larger one scores at least `threshold * full`; None if there is none.

    `scores` has the score of tuning with each d (higher is better), `full` is that of full tuning.
    """
    found = None
    for d in sorted(scores, reverse=True):
        if scores[d] < threshold * full:
            break
        found = d
    return found


def occam_bound(d: int, examples: int, bits: int = 16, delta: float = 0.05) -> float:
    """How far a test error can be above the training error, with probability `1 - delta`, when the classifier is one
    of 2^(d bits): sqrt((d bits ln 2 + ln(1 / delta)) / (2 examples))."""
    return math.sqrt((d * bits * math.log(2) + math.log(1 / delta)) / (2 * examples))
