"""Low-rank adaptation: a frozen weight plus the product of two thin trained matrices.

From "LoRA: Low-Rank Adaptation of Large Language Models", June 17, 2021, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, nn

from monochord.core.changes import LowRank
from monochord.core.sites import Site, SiteError, resolve
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class LoRA(Tuner):
    """Add `scale * up @ down` to every matching weight and train only `up` and `down`.

    `rank` caps the rank of each change; its scale is `alpha / rank`, or `alpha / sqrt(rank)` with
    `stabilised=True`, which keeps large ranks learning. `dropout` acts on the input of the change. Works on
    dense layers, convolutions, embeddings and fused experts, the kernel flattened to (outputs, rest).
    Raises `ValueError` when the rank exceeds the smaller side of a matching weight.
    """

    default_lr: ClassVar[float] = 1e-3

    sites: str | tuple[str, ...] = "blocks.*.attn.{q,v}.weight"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    stabilised: bool = False

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, LowRank]]:
        scale = self.alpha / (math.sqrt(self.rank) if self.stabilised else self.rank)
        for site in matrices(model, self.sites):
            check_rank(self.rank, site)
            shape, experts = matrix_shape(site)
            yield site, LowRank(shape, self.rank, scale, self.dropout, generator, experts)


def matrices(model: nn.Module, sites: str | tuple[str, ...]) -> list[Site]:
    """The weights that a pattern names, those that are vectors left out. Raises `SiteError` if none is left."""
    found = [site for site in resolve(model, sites, kind="weight") if len(site.shape or ()) > 1]
    if not found:
        raise SiteError(f"{sites!r} names only vectors: a low-rank change needs matrices, such as '**.weight'")
    return found


def matrix_shape(site: Site) -> tuple[tuple[int, ...], bool]:
    """The shape of a weight, and whether its first axis counts fused experts."""
    shape = site.shape or ()
    return shape, len(shape) == 3 and "experts" in site.name


def check_rank(rank: int, site: Site) -> None:
    """Raise `ValueError` when `rank` does not fit the weight at `site`."""
    shape, experts = matrix_shape(site)
    rows, *rest = shape[1:] if experts else shape
    columns = math.prod(rest)
    if not 1 <= rank <= min(rows, columns):
        raise ValueError(f"rank={rank} does not fit {site} ({rows} by {columns}): use 1 to {min(rows, columns)}")
