"""Tune the biases only.

From "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", June 18, 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, nn

from monochord.core.changes import Unfrozen
from monochord.core.sites import Site, SiteError, resolve
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class BitFit(Tuner):
    """Train every bias that `sites` names, in place. Models without biases (Llama) raise `SiteError`."""

    default_lr: ClassVar[float] = 1e-3

    sites: str | tuple[str, ...] = "**.{bias,in_proj_bias}"

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Unfrozen]]:
        try:
            found = resolve(model, self.sites, kind="weight")
        except SiteError as error:
            raise SiteError(f"{error}; a model without biases can tune its norms: BitFit('**.*norm*.weight')") from None
        for site in found:
            if site.rows is None:
                yield site, Unfrozen()
