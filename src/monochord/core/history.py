"""What happened in a training run, and the callbacks that watch it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass
class History:
    """`steps` has a record of each step (step, loss, its terms, lr_factor, grad_norm where there is one),
    `evals` of each evaluation, `monitors` a list of (step, value) by monitor.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    evals: list[dict[str, float]] = field(default_factory=list)
    monitors: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return [record["loss"] for record in self.steps]

    def to_json(self) -> dict[str, Any]:
        return {"steps": self.steps, "evals": self.evals, "monitors": self.monitors}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> History:
        monitors = {name: [(step, value) for step, value in seen] for name, seen in told["monitors"].items()}
        return cls(list(told["steps"]), list(told["evals"]), monitors)


@dataclass
class Run:
    """A training run as callbacks see it. `step` is how many steps are done; set `stop` to end after this
    one.
    """

    model: nn.Module
    objective: Any
    update: Any
    history: History
    steps: int
    step: int = 0
    stop: bool = False


class Callback:
    """Watches a run. A subclass writes those of the four methods it needs."""

    def on_start(self, run: Run) -> None:
        """Before the first step (of a resumed run: before the next)."""

    def on_step(self, run: Run) -> None:
        """After each step."""

    def on_eval(self, run: Run) -> None:
        """After each evaluation: `run.history.evals[-1]`."""

    def on_end(self, run: Run) -> None:
        """After the last step."""


class Monitor(Callback):
    """Calls `measure(model)` on a schedule and keeps its JSON-able result in `history.monitors[name]`.

    `at` are numbers of steps done (0 is before training); or `every` so many. The model is in evaluation
    mode.
    """

    def __init__(
        self,
        name: str,
        measure: Callable[[nn.Module], Any],
        *,
        at: Iterable[int] = (),
        every: int | None = None,
    ) -> None:
        self.name, self.measure, self.at, self.every = name, measure, frozenset(at), every

    def on_start(self, run: Run) -> None:
        self._look(run)

    def on_step(self, run: Run) -> None:
        self._look(run)

    def _look(self, run: Run) -> None:
        from monochord.core.forward import evaluating

        due = run.step in self.at or (self.every is not None and run.step % self.every == 0)
        seen = run.history.monitors.setdefault(self.name, [])
        if due and not any(step == run.step for step, _ in seen):
            with evaluating(run.model):
                seen.append((run.step, self.measure(run.model)))
