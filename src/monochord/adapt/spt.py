"""Sensitivity-aware tuning: spend a budget of trained numbers where the task's gradients say that it counts.

From "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning", March 15, 2023. The most sensitive weights of the whole
model are chosen; a matrix with many of them gets a low-rank change (or an adapter), the others train just those.

    tuner = SPT.for_budget(model, sensitivity(model, batches, sites=SPT.candidates), 50_000)
    tuned = tuner.attach(model)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from monochord.core.attach import Placement
from monochord.core.changes import LowRank
from monochord.core.modification import Bottleneck
from monochord.core.objective import Batch, Objective
from monochord.core.pattern import SiteError
from monochord.core.sensitivity import sensitivity
from monochord.core.sites import Site, as_applied, resolve
from monochord.core.sparse import sparse_changes, weights_at
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class SPT(Tuner):
    """Train single `entries`, flat positions (n,) by weight, and a module of `rank` at each weight in `modules`.

    Both come from `for_budget`, or with a `budget` alone from `for_task`, which takes the sensitivity from the task's
    batches as `compare` does; by default a hundredth of the weights. `module="lora"` adds `up @ down` to a weight;
    `"adapter"` puts a bottleneck of that width after its layer. Raises `ValueError` when there is neither an entry nor
    a module.
    """

    default_lr: ClassVar[float] = 1e-3
    candidates: ClassVar[str] = "blocks.**"

    rank: int = 8
    module: str = "lora"
    modules: tuple[str, ...] = ()
    entries: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    budget: int | None = None

    @classmethod
    def for_budget(
        cls,
        model: nn.Module,
        scores: Mapping[str, Tensor],
        budget: int,
        *,
        rank: int = 8,
        module: str = "lora",
        alpha: float = 10.0,
        beta: float = 5.0,
    ) -> SPT:
        """The recipe that spends at most `budget` trained numbers by `scores`, those of `sensitivity`.

        The entries above one score are taken, in all weights alike, parts of fused weights each by itself. A matrix
        with c of them gets a module of p numbers if c >= p / alpha, a vector of p numbers trains whole if
        c >= p / beta, and otherwise the c entries train alone. Bisection finds the score; what a module too many would
        have cost goes to more single entries. `alpha=0` leaves modules out. Raises `ValueError` when no entry fits.
        """
        sites = {n: s for n, s in weights_at(model, cls.candidates, slices=True).items() if s.path in scores}
        seen = {name: as_applied(scores[site.path], site) for name, site in sites.items()}
        prices = {name: _price(site, rank, module, alpha, beta) for name, site in sites.items()}
        top = max((float(score.max()) for score in seen.values() if score.numel()), default=0.0)
        if top <= 0:
            raise ValueError("all sensitivities are zero: the loss depends on none of the weights")

        def counts(threshold: float) -> dict[str, int]:
            return {name: int((score >= threshold).sum()) for name, score in seen.items()}

        def whole(threshold: float) -> set[str]:
            return {name for name, c in counts(threshold).items() if c and c >= prices[name].least}

        def spent(threshold: float, kept: set[str]) -> int:
            return sum(prices[name].size if name in kept else c for name, c in counts(threshold).items())

        limit = _least(lambda threshold: spent(threshold, whole(threshold)) <= budget, top)
        kept = whole(limit)
        limit = _least(lambda threshold: spent(threshold, kept) <= budget, top)
        entries = {
            name: torch.arange(score.numel()) if name in kept else (score.reshape(-1) >= limit).nonzero().flatten()
            for name, score in seen.items()
            if name not in kept or not prices[name].is_module
        }
        modules = tuple(name for name in seen if name in kept and prices[name].is_module)
        entries = {name: positions for name, positions in entries.items() if len(positions)}
        if not modules and not entries:
            raise ValueError(f"budget={budget} is too small for any entry")
        return cls(rank, module, modules, entries)

    def for_task(self, model: nn.Module, batches: Iterable[Batch], objective: Objective) -> SPT:
        if self.modules or self.entries:
            return self
        scores = sensitivity(model, batches, objective, self.candidates)
        budget = sum(score.numel() for score in scores.values()) // 100 if self.budget is None else self.budget
        return self.for_budget(model, scores, budget, rank=self.rank, module=self.module)

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        if self.module not in ("lora", "adapter"):
            raise ValueError(f"module={self.module!r} is unknown: use 'lora' or 'adapter'")
        if not self.modules and not self.entries:
            raise ValueError("nothing says what is sensitive: use SPT.for_budget(model, sensitivity(...), budget)")
        sites = weights_at(model, "**", slices=True)
        if missing := sorted({*self.modules, *self.entries} - sites.keys()):
            raise SiteError(f"{missing[0]} is to be tuned and this model has no such weight")
        for name in self.modules:
            site = sites[name]
            shape = site.shape or ()
            if self.module == "lora":
                yield site, LowRank(shape, self.rank, generator=generator)
            else:
                (out,) = resolve(model, f"{name.removesuffix('.weight')}:out")
                yield out, Bottleneck(shape[0], self.rank, nn.functional.gelu, generator=generator)
        yield from sparse_changes(sites, self.entries)

    def of_saved(self, tensors: dict[str, Tensor]) -> SPT:
        """Room for the saved entries; which they are comes with them."""
        saved = {k.removesuffix("/indices"): v for k, v in tensors.items() if k.endswith("/indices")}
        return SPT(self.rank, self.module, self.modules, self.entries or saved)


@dataclass(frozen=True)
class _Price:
    """What tuning a weight as a whole costs, and how many sensitive entries are worth it."""

    size: int
    least: float
    is_module: bool


def _price(site: Site, rank: int, module: str, alpha: float, beta: float) -> _Price:
    shape = site.shape or ()
    if len(shape) < 2:
        return _Price(math.prod(shape), math.prod(shape) / beta, False)
    rows, columns = shape[0], math.prod(shape[1:])
    size = rank * (rows + columns) if module == "lora" else 2 * rank * rows + rank + rows
    return _Price(size, size / alpha if alpha else math.inf, True)


def _least(fits: Callable[[float], bool], top: float) -> float:
    """The smallest threshold at which `fits` holds, which it does at all larger ones; by bisection of magnitudes."""
    low, high = top * 1e-30, math.nextafter(top, math.inf)
    if fits(low):
        return low
    for _ in range(64):
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
