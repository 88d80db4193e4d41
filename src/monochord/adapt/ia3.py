"""(IA)3: rescale keys, values and MLP activations by trained vectors.

From "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", May 11, 2022.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, nn

from monochord.core.modification import Scale
from monochord.core.sites import Site, SiteError, resolve, width
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class IA3(Tuner):
    """One trained gain a unit, one at first, at every site that `sites` names and the model has.

    The gains fold into the neighbouring weights, so `merge()` leaves no inference cost.
    """

    default_lr: ClassVar[float] = 1e-2

    sites: tuple[str, ...] = ("blocks.*.attn.{k,v}:out", "blocks.*.mlp:neurons")

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Scale]]:
        found: list[Site] = []
        missing: list[SiteError] = []
        for pattern in (self.sites,) if isinstance(self.sites, str) else self.sites:
            try:
                found += resolve(model, pattern)
            except SiteError as error:
                missing.append(error)
        if not found:
            raise missing[0]
        for site in found:
            units = len(site.rows) if site.rows is not None else width(model, site)
            yield site, Scale(torch.ones(units), trainable=True)
