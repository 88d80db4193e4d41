"""Fine-tune the model's own weights: all of them, or those a pattern names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, nn

from monochord.core.blocks import owned
from monochord.core.changes import Unfrozen
from monochord.core.sites import Site, resolve
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class FullTuning(Tuner):
    """Train in place every parameter that `sites` names: weights, or modules with all that is below them.

    A copy of the base values is kept, so that it can be switched off and taken off like any other tuner. Each
    tied parameter counts once; buffers such as the statistics of norms stand still.
    """

    default_lr: ClassVar[float] = 1e-4

    sites: str | tuple[str, ...] = "**"

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Unfrozen]]:
        seen: set[int] = set()
        for site in resolve(model, self.sites, kind="weight"):
            parameter = owned(model.get_submodule(site.module), site.parameter)
            if site.rows is None and isinstance(parameter, nn.Parameter) and id(parameter) not in seen:
                seen.add(id(parameter))
                yield site, Unfrozen()
