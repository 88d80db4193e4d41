"""Which old tasks come back, and how much of each: by a power law of the time since they were met, or otherwise.

From "Catastrophic Interference is Mitigated in Naturalistic Power-Law Learning Environments", January 18, 2024: it is
the learner's environment that brings old things back, less and less often, with no store of chosen examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from monochord.data.tasks.power_law_stream import apportion

Weight = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class RehearsalSchedule:
    """After each new task, `amount` times its rows from old tasks, shared in proportion to `weight(age)`.

    Age counts phases, 1 for the task before. With `clock="encountered"` it counts from the last phase in which a task
    was met at all, rehearsal included; with "learned" from the phase in which it was new. `mix` puts the old rows
    "after" the new ones or "among" them. Deterministic: rows are drawn by whoever runs the stream.
    """

    weight: Weight
    amount: float = 0.1
    clock: str = "learned"
    mix: str = "after"

    def __post_init__(self) -> None:
        if self.clock not in ("learned", "encountered"):
            raise ValueError(f"clock={self.clock!r} is unknown: use 'learned' or 'encountered'")
        if self.mix not in ("after", "among"):
            raise ValueError(f"mix={self.mix!r} is unknown: use 'after' or 'among'")
        if not 0 <= self.amount < float("inf"):
            raise ValueError(f"amount={self.amount} must be a share of the new task's rows, 0 or more")

    @classmethod
    def power_law(
        cls, d: float = 1.0, amount: float = 0.1, clock: str = "learned", mix: str = "after"
    ) -> RehearsalSchedule:
        """In proportion to `age ** -d`."""
        return cls(lambda age: age ** -float(d), amount, clock, mix)

    @classmethod
    def exponential(
        cls, rate: float = 1.0, amount: float = 0.1, clock: str = "learned", mix: str = "after"
    ) -> RehearsalSchedule:
        """In proportion to `exp(-rate * age)`."""
        return cls(lambda age: np.exp(-rate * (age - 1)), amount, clock, mix)  # the same shares, without underflow

    @classmethod
    def uniform(cls, amount: float = 0.1, mix: str = "after") -> RehearsalSchedule:
        """Every old task as much."""
        return cls(np.ones_like, amount, "learned", mix)

    @classmethod
    def recent(cls, amount: float = 0.1, mix: str = "after") -> RehearsalSchedule:
        """The task before, and no other."""
        return cls(lambda age: (age == 1).astype(float), amount, "learned", mix)

    @classmethod
    def custom(
        cls, weight: Weight, amount: float = 0.1, clock: str = "learned", mix: str = "after"
    ) -> RehearsalSchedule:
        """In proportion to any function of the ages (tasks,), floats from 1."""
        return cls(weight, amount, clock, mix)

    def counts(self, phase: int, rows: int, last: np.ndarray | None = None) -> np.ndarray:
        """How many rows of each task before `phase`, (phase,), when the new one has `rows`.

        They sum to `round(amount * rows)`. `last` says in which phase each was met last (its own by default).
        Raises `ValueError` for weights that are negative or not finite.
        """
        met = np.arange(phase) if last is None else np.asarray(last)[:phase]
        weights = np.asarray(self.weight((phase - met).astype(float)), float)
        if weights.shape != (phase,) or not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("weight(age) must give a finite number of at least 0 for each age")
        return apportion(weights, round(self.amount * rows))

    def meet(self, last: np.ndarray, phase: int, counts: np.ndarray) -> np.ndarray:
        """When each task was met last, (tasks,), after a phase with these `counts` of old ones."""
        now = last.copy()
        now[phase] = phase
        if self.clock == "encountered":
            now[:phase][counts > 0] = phase
        return now
