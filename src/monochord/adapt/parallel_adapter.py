"""Parallel adapters: a small trained network that reads what a sub-layer reads and adds to what it returns.

From "Towards a Unified View of Parameter-Efficient Transfer Learning", October 8, 2021: beside the MLP and scaled up,
the form that used its parameters best there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from monochord.adapt.bottleneck_adapter import BottleneckAdapter
from monochord.core.modification import Bottleneck, Modification
from monochord.core.sites import Site
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class ParallelAdapter(Tuner):
    """`h + scale * up(activation(down(x)))`, with `x` the input of the sub-layer at each of `sites` and `h` its output.

    `learned` makes each `scale` a trained number that starts at the given one; `scale=1` is the plain form.
    """

    default_lr: ClassVar[float] = 1e-3

    sites: str | tuple[str, ...] = "blocks.*.mlp:out"
    bottleneck: int = 16
    scale: float = 4.0
    activation: str = "relu"
    learned: bool = False

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Modification]]:
        scale = 1.0 if self.learned else self.scale
        plain = BottleneckAdapter(self.sites, self.bottleneck, self.activation, scale, parallel=True)
        for site, change in plain.plan(model, generator):
            yield site, LearnedScale(change, self.scale) if self.learned else change


class LearnedScale(Modification):
    """What another modification adds to the value, times a trained number that starts at `scale`."""

    def __init__(self, inner: Bottleneck, scale: float) -> None:
        super().__init__()
        self.inner, self.reads = inner, inner.reads
        self.gain = nn.Parameter(torch.tensor(scale))

    def forward(self, value: Tensor, source: Tensor | None = None) -> Tensor:
        added: Tensor = self.inner(value, source) - value
        return value + self.gain.to(value.dtype) * added
