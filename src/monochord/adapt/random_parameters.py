"""Arbitrary parameters: train a random choice of any parameters, in any number and at any place.

From "Arbitrary Few Parameters are Good Enough for Adapting Large-scale Pre-trained Language Models", June 4, 2023. The
control for every method that chooses with care: the same number of trained numbers, placed blindly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, nn

from monochord.adapt.bottleneck_adapter import BottleneckAdapter
from monochord.adapt.lora import LoRA
from monochord.adapt.prompt_tokens import PromptTokens
from monochord.core import registry
from monochord.core.attach import Placement
from monochord.core.changes import Unfrozen
from monochord.core.sites import SiteError
from monochord.core.sparse import draw_positions, sparse_changes, weights_at
from monochord.core.tuner import Tuner

_UNITS, _POOLS = ("coordinate", "row", "tensor"), ("backbone", "modules", "both")


@dataclass(frozen=True)
class RandomParameters(Tuner):
    """Train at most `n` numbers drawn at random; exactly `n` with `unit="coordinate"`.

    In place of `n` give `fraction` of what `sites` names, or `like`, a method such as "lora(rank=4)" whose count is
    taken. A unit is drawn whole: a coordinate, a `"row"` of a weight, or a `"tensor"`. `pools="modules"` draws among
    LoRA pairs, adapters and a prompt instead, `"both"` takes half of `n` from each, as the paper does with tensors.
    Raises `ValueError` when nothing fits `n`.
    """

    default_lr: ClassVar[float] = 1e-3

    n: int | None = None
    fraction: float | None = None
    like: str | None = None
    unit: str = "coordinate"
    pools: str = "backbone"
    sites: str | tuple[str, ...] = "**"

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        if self.unit not in _UNITS or self.pools not in _POOLS:
            raise ValueError(f"unit must be one of {', '.join(_UNITS)}, pools one of {', '.join(_POOLS)}")
        n = self.budget(model)
        modules = [] if self.pools == "backbone" else self._modules(model, n // (1 + (self.pools == "both")), generator)
        backbone = [] if self.pools == "modules" else self._backbone(model, n - n // 2 if modules else n, generator)
        if not modules and not backbone:
            raise ValueError(f"n={n} is too few for any {self.unit} of {self.pools}")
        yield from (*backbone, *modules)

    def budget(self, model: nn.Module) -> int:
        """How many numbers may train. Raises `ValueError` unless one of n, fraction and like is given."""
        if sum(given is not None for given in (self.n, self.fraction, self.like)) > 1:
            raise ValueError("give one of n, fraction and like")
        if self.like is not None:
            with registry.build(self.like).attach(model) as tuned:
                return int(tuned.n_trainable)
        whole = sum(math.prod(site.shape or ()) for site in weights_at(model, self.sites).values())
        n = self.n if self.n is not None else round((0.01 if self.fraction is None else self.fraction) * whole)
        if not 1 <= n <= whole:
            raise ValueError(f"n={n} must be from 1 to {whole}, the numbers that {self.sites!r} names")
        return n

    def _backbone(self, model: nn.Module, n: int, generator: Generator) -> list[Placement]:
        found = weights_at(model, self.sites)
        shapes = {name: site.shape or () for name, site in found.items()}
        if self.unit == "coordinate":
            sizes = {name: math.prod(shape) for name, shape in shapes.items()}
            return list(sparse_changes(found, draw_positions(sizes, n, generator)))
        if self.unit == "tensor":
            names = list(found)
            kept = _greedy([math.prod(shapes[name]) for name in names], n, generator)
            return [(found[names[i]], Unfrozen()) for i in kept]
        rows = [(name, row) for name, shape in shapes.items() for row in range(shape[0] if len(shape) > 1 else 1)]
        width = {name: math.prod(shape[1:] if len(shape) > 1 else shape) for name, shape in shapes.items()}
        chosen: dict[str, list[int]] = {}
        for i in _greedy([width[name] for name, _ in rows], n, generator):
            chosen.setdefault(rows[i][0], []).append(rows[i][1])
        positions = {
            name: (torch.tensor(sorted(kept))[:, None] * width[name] + torch.arange(width[name])).flatten()
            for name, kept in chosen.items()
        }
        return list(sparse_changes(found, positions))

    def _modules(self, model: nn.Module, n: int, generator: Generator) -> list[Placement]:
        places: list[Placement] = []
        for tuner in (LoRA(), BottleneckAdapter(sites=("blocks.*.mlp:out", "blocks.*.attn:out")), PromptTokens()):
            try:
                places += tuner.plan(model, generator)
            except SiteError:  # this architecture has no place for it
                continue
        sizes = [sum(p.numel() for p in change.parameters()) for _, change in places]
        return [places[i] for i in sorted(_greedy(sizes, n, generator))]


def _greedy(sizes: Sequence[int], n: int, generator: Generator) -> list[int]:
    """Walk the items in random order and take each that still fits."""
    kept, left = [], n
    for i in torch.randperm(len(sizes), generator=generator).tolist():
        if sizes[i] <= left:
            kept.append(i)
            left -= sizes[i]
    return kept
