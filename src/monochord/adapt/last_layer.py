"""Tune the last layer only: the linear probe, and the baseline that any other method has to beat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, nn

from monochord.adapt.full_tuning import FullTuning
from monochord.core.changes import Unfrozen
from monochord.core.sites import Site, SiteError, resolve
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class LastLayer(Tuner):
    """Train the classification head, and the last `blocks` blocks with it.

    A model without a head trains at least its last block and final norm.
    """

    default_lr: ClassVar[float] = 1e-2

    blocks: int = 0

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Unfrozen]]:
        head = _there(model, "head")
        wanted = [*head, *(f"blocks.{-i}" for i in range(1, max(self.blocks, 0 if head else 1) + 1))]
        if not head:
            wanted += _there(model, "final_norm")
        yield from FullTuning(tuple(wanted)).plan(model, generator)


def _there(model: nn.Module, name: str) -> list[str]:
    try:
        resolve(model, name, kind="weight")
    except SiteError:
        return []
    return [name]
