"""What is kept of a stream of tasks: accuracy, forgetting, its curve over age, and whether later tasks come easier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Retention:
    """`scores[k, j]` is the score of task j after phase k, (tasks, tasks), NaN before j was learnt.

    `losses` has the training loss of every step, a list a phase.
    """

    scores: np.ndarray
    losses: Sequence[Sequence[float]] = field(default=())

    @property
    def final(self) -> float:
        """The mean score over all tasks at the end."""
        return float(self.scores[-1].mean())

    @property
    def learned(self) -> float:
        """The mean score of each task right after its own phase."""
        return float(self.scores.diagonal().mean())

    @property
    def forgetting(self) -> float:
        """How far the tasks before the last fell from their best, on average."""
        best = np.nanmax(self.scores, axis=0)
        return float((best - self.scores[-1])[:-1].mean()) if len(best) > 1 else 0.0

    def curve(self) -> np.ndarray:
        """The mean score by age, (tasks,): 0 is right after learning, the last is that of the first task at the end."""
        return np.array([self.scores.diagonal(-age).mean() for age in range(len(self.scores))])

    def steps_to(self, loss: float) -> list[int]:
        """For each task the first step at which the mean of the last five losses is below `loss` (else all steps).

        Falling numbers mean that earlier tasks made later ones easier.
        """
        found = []
        for losses in self.losses:
            smooth = np.convolve(losses, np.ones(5) / 5, "valid") if len(losses) >= 5 else np.asarray(losses)
            below = np.flatnonzero(smooth < loss)
            found.append(int(below[0]) if len(below) else len(losses))
        return found
