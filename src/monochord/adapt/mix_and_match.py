"""Mix-and-match adapter: a short prefix in every attention and a scaled parallel adapter beside every MLP.

From "Towards a Unified View of Parameter-Efficient Transfer Learning", October 8, 2021, which chose the parts one
design decision at a time: heads when parameters are few, the MLP when there are more, parallel, scaled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, nn

from monochord.adapt.parallel_adapter import ParallelAdapter
from monochord.adapt.prefix_tuning import PrefixTuning
from monochord.core.attach import Placement
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class MixAndMatch(Tuner):
    """`length` keys and values a head, and a bottleneck of `bottleneck` units times `scale` beside each MLP."""

    default_lr: ClassVar[float] = 1e-3

    length: int = 8
    bottleneck: int = 16
    scale: float = 4.0

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        yield from PrefixTuning(self.length).plan(model, generator)
        yield from ParallelAdapter(bottleneck=self.bottleneck, scale=self.scale).plan(model, generator)
