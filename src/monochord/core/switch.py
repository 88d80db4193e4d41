"""Whether and how strongly an attachment acts, and which of its places a forward has reached."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Switch:
    """`strength` scales every modification: 1.0 as it is, None off, (batch,) one an example."""

    strength: float | Tensor | None = 1.0
    reached: set[int] = field(default_factory=set)

    def blend(self, before: Tensor, after: Tensor) -> Tensor:
        """`before` moved towards `after` by the strength."""
        strength = self.strength
        if strength is None:
            return before
        if isinstance(strength, float) and strength == 1.0:
            return after
        if isinstance(strength, Tensor):
            strength = strength.to(before).reshape(-1, *(1,) * (before.dim() - 1))
        return torch.add(before, (after - before) * strength)
