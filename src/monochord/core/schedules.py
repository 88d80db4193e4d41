"""Numbers that depend on the step: learning-rate factors and weights of objectives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = float | Callable[[int], float]


def at(value: Schedule, step: int) -> float:
    """A constant, or a schedule's value at `step`."""
    return float(value(step)) if callable(value) else float(value)


@dataclass(frozen=True)
class Ramp:
    """From `start` to `end` over `steps` steps, after `begin` steps at `start`: `shape` is linear or cosine."""

    start: float
    end: float
    steps: int
    begin: int = 0
    shape: str = "linear"

    def __call__(self, step: int) -> float:
        done = min(max((step - self.begin) / max(self.steps, 1), 0.0), 1.0)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        elif self.shape != "linear":
            raise ValueError(f"shape must be 'linear' or 'cosine', got {self.shape!r}")
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True)
class Rate:
    """The factor on the learning rate at each step: `kind` after a linear warmup over `warmup` steps.

    `warmup` below 1 is a share of all steps. `"linear"` and `"cosine"` fall to 0 at `steps`.
    """

    kind: str
    steps: int
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule must be 'constant', 'linear' or 'cosine', got {self.kind!r}")

    def __call__(self, step: int) -> float:
        warmup = round(self.warmup * self.steps) if 0 < self.warmup < 1 else int(self.warmup)
        if step < warmup:
            return (step + 1) / warmup
        if self.kind == "constant":
            return 1.0
        return Ramp(1.0, 0.0, self.steps - warmup, warmup, self.kind)(step)
