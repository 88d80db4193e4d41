"""Sparse low-rank adaptation: train the weights that are smallest in size, which the model hardly uses.

From "SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation", September 10, 2024.
Half-way the entries that have grown are frozen where they are and the others go on (`Progressive`); the objective
`NuclearNorm` keeps the tuned entries' matrix low-rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from monochord.core.changes import SparseChange
from monochord.core.history import Callback, Run
from monochord.core.sites import Site, base_weight
from monochord.core.sparse import sparse_changes, weights_at
from monochord.core.tuner import Tuned, Tuner


@dataclass(frozen=True)
class SaRA(Tuner):
    """Train the entries whose absolute value is below a threshold, starting from their values.

    The threshold is `threshold`, or the one below which the share `fraction` of all entries lies, over all of `sites`
    together (`scope="global"`) or in each weight (`"tensor"`). Raises `ValueError` when no entry is that small.
    """

    default_lr: ClassVar[float] = 1e-3

    fraction: float = 0.1
    threshold: float | None = None
    scope: str = "global"
    sites: str | tuple[str, ...] = "**"

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, SparseChange]]:
        sites = weights_at(model, self.sites)
        limits = self.limits(model)
        small = {
            name: (base_weight(model, site).abs().reshape(-1) < limits[name]).nonzero().flatten()
            for name, site in sites.items()
        }
        if not any(map(len, small.values())):
            raise ValueError(f"no weight is smaller than {self.threshold}: raise threshold, or give a fraction")
        yield from sparse_changes(sites, small, freezable=True)

    def limits(self, model: nn.Module) -> dict[str, float]:
        """The threshold of each weight, by its site's name."""
        if self.scope not in ("global", "tensor"):
            raise ValueError(f"scope={self.scope!r} is unknown: use 'global' or 'tensor'")
        if self.threshold is None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} must be above 0 and at most 1")
        sizes = {name: base_weight(model, site).abs() for name, site in weights_at(model, self.sites).items()}
        if self.threshold is not None:
            return dict.fromkeys(sizes, self.threshold)
        if self.scope == "tensor":
            return {name: quantile([size], self.fraction) for name, size in sizes.items()}
        return dict.fromkeys(sizes, quantile(list(sizes.values()), self.fraction))


class Progressive(Callback):
    """After the share `at` of the steps: entries past their threshold stop there, the others start anew.

    "Anew" is the optimiser's state. An entry that was tuned and stayed small so gets a second chance.
    """

    def __init__(self, tuned: Tuned, at: float = 0.5) -> None:
        if not isinstance(tuned.tuner, SaRA):
            raise ValueError(f"Progressive needs an attached SaRA, got {type(tuned.tuner).__name__}")
        self.tuned, self.limits, self.at = tuned, tuned.tuner.limits(tuned.model), at

    def on_step(self, run: Run) -> None:
        if run.step != round(self.at * run.steps):
            return
        with torch.no_grad():
            for site, change in self.tuned.placements:
                if isinstance(change, SparseChange) and change.frozen is not None:
                    base = base_weight(self.tuned.model, site).reshape(-1)[change.indices]
                    change.frozen.copy_((base + change.values).abs() >= self.limits[site.name])
        run.update.setup(run.model)


def importance_curve(
    model: nn.Module,
    measure: Callable[[nn.Module], float],
    fractions: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    *,
    order: str = "smallest",
    scope: str = "global",
    sites: str | tuple[str, ...] = "**",
    seed: int = 0,
) -> list[tuple[float, float]]:
    """(fraction, `measure(model)`) with that share of the weights set to zero; the model is the same afterwards.

    `order` is which go first: "smallest" or "largest" by size, or "random".
    """
    if order not in ("smallest", "largest", "random"):
        raise ValueError(f"order={order!r} is unknown: use 'smallest', 'largest' or 'random'")
    generator = torch.Generator().manual_seed(seed)
    found = {name: base_weight(model, site) for name, site in weights_at(model, sites).items()}
    signs = {"smallest": 1, "largest": -1, "random": 0}[order]
    scores = {
        name: torch.rand(weight.shape, generator=generator).to(weight) if signs == 0 else signs * weight.abs()
        for name, weight in found.items()
    }
    kept, curve = {name: weight.clone() for name, weight in found.items()}, []
    try:
        for fraction in fractions:
            whole = quantile(list(scores.values()), fraction) if scope == "global" else None
            for name, weight in found.items():
                limit = quantile([scores[name]], fraction) if whole is None else whole
                weight.copy_(kept[name].masked_fill(scores[name] < limit, 0))
            curve.append((fraction, measure(model)))
    finally:
        for name, weight in found.items():
            weight.copy_(kept[name])
    return curve


def quantile(scores: Sequence[Tensor], fraction: float) -> float:
    """The value that `round(fraction * n)` of all entries are below, equal ones apart."""
    flat = torch.cat([score.reshape(-1).float() for score in scores])
    k = round(fraction * len(flat))
    return float("inf") if k >= len(flat) else float(flat.kthvalue(k + 1).values)
