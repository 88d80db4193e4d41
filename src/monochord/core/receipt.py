"""What an attachment covered, and which siblings of the same role it did not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import nn

from monochord.core.sites import Index, Site

if TYPE_CHECKING:
    from monochord.core.modification import Modification


@dataclass(frozen=True)
class Receipt:
    """`sites` that are covered and `n_parameters` that train; `missed` are same-role sites left out."""

    sites: tuple[Site, ...]
    n_parameters: int
    _model: nn.Module

    @classmethod
    def of(cls, model: nn.Module, placements: list[tuple[Site, Modification]]) -> Receipt:
        trained = {id(p): p.numel() for _, m in placements for p in m.parameters() if p.requires_grad}
        return cls(tuple(s for s, _ in placements), sum(trained.values()), model)

    @cached_property
    def missed(self) -> tuple[str, ...]:
        """Canonical names with the role of a covered site that are not covered themselves."""
        index = Index(self._model)
        covered, roles = {s.name for s in self.sites}, {s.role for s in self.sites}
        kinds = {s.port == "weight" for s in self.sites}
        names = index.weights if True in kinds else []
        found = [s.name for s in names if s.role in roles and s.name not in covered]
        if False in kinds:
            found += [n for n in index.module_names if Site(n, n, "out", n).role in roles and n not in covered]
        return tuple(dict.fromkeys(found))

    def __str__(self) -> str:
        roles = sorted({s.role for s in self.sites})
        text = f"{len(self.sites)} sites ({', '.join(roles[:4])}{', ...' if len(roles) > 4 else ''})"
        text += f", {self.n_parameters:,} parameters"
        if self.missed:
            text += f"; not covered: {len(self.missed)} of the same role, e.g. {self.missed[0]}"
        return text
