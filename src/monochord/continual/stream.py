"""Learn tasks one after another, with old ones coming back and a strategy against forgetting, and see what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from monochord.continual.rehearsal import RehearsalSchedule
from monochord.continual.retention import Retention
from monochord.core.fit import fit
from monochord.core.history import Callback
from monochord.core.objective import Objective
from monochord.core.update import Gradient


class Strategy(Protocol):
    """What protects old tasks: it may add to the objective, watch the steps, and look back after each task."""

    def wrap(self, objective: Objective, model: nn.Module) -> Objective: ...
    def update(self, model: nn.Module, update: Gradient) -> Sequence[Callback]: ...
    def after(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]], objective: Objective) -> None: ...


def learn_stream(
    model: nn.Module,
    tasks: Sequence[Any],
    objective: Objective,
    evaluate: Callable[[nn.Module, int], float],
    *,
    schedule: RehearsalSchedule | None = None,
    strategy: Strategy | None = None,
    epochs: float = 1,
    batch_size: int = 64,
    lr: float = 1e-3,
    optimizer: str = "adam",
    seed: int = 0,
    phases: int | None = None,
    source: Callable[[int, int], int] | None = None,
) -> Retention:
    """Train `model` on each of `tasks` in turn; `evaluate(model, k)` scores task k after every phase from its own on.

    A task is a mapping of named tensors of one length, or any data set with `len` and `[row]` that gives named
    tensors. A phase has `epochs` passes over the new task and the rows that `schedule` brings back, drawn fresh from
    the whole of each old task in every phase. Every phase starts with a new optimizer. For controls `source(phase,
    old)` may say from which of `tasks` the rows of an old one are really taken: the new one, or one beyond the first
    `phases`, which are then all that are learnt.
    """
    sizes = [_length(task) for task in tasks]
    rng = np.random.default_rng(seed)
    phases = len(tasks) if phases is None else phases
    last = np.zeros(phases, np.int64)
    scores = np.full((phases, phases), np.nan)
    curves = []
    for phase, task in enumerate(tasks[:phases]):
        plan = [(phase, row) for row in range(sizes[phase])]
        counts = np.zeros(phase, np.int64) if schedule is None else schedule.counts(phase, sizes[phase], last)
        old = []
        for k, count in enumerate(counts.tolist()):
            taken = k if source is None else source(phase, k)
            rows = rng.choice(sizes[taken], size=count, replace=count > sizes[taken])
            old += [(taken, row) for row in rows.tolist()]
        among = schedule is not None and schedule.mix == "among"
        batches = _Phase(tasks, plan + old if among else plan, [] if among else old, epochs, batch_size, seed, phase)
        whole = strategy.wrap(objective, model) if strategy is not None else objective
        update = Gradient(optimizer, lr)
        watchers = strategy.update(model, update) if strategy is not None else ()
        history = fit(
            model, batches, whole, steps=len(batches), update=update, callbacks=watchers, seed=seed, progress=False
        )
        curves.append(history.losses)
        if strategy is not None:
            strategy.after(
                model, _Phase([task], [(0, r) for r in range(sizes[phase])], [], 1, batch_size, seed, phase), objective
            )
        last = schedule.meet(last, phase, counts) if schedule is not None else last
        for k in range(phase + 1):
            scores[phase, k] = evaluate(model, k)
    return Retention(scores, curves)


class _Phase(Sequence[dict[str, Tensor]]):
    """The batches of one phase: shuffled passes over `first`, each followed by its share of `then`."""

    def __init__(
        self,
        tasks: Sequence[Any],
        first: list[tuple[int, int]],
        then: list[tuple[int, int]],
        epochs: float,
        batch_size: int,
        seed: int,
        phase: int,
    ) -> None:
        rng = np.random.default_rng((seed, phase))
        self.tasks = tasks
        self.batches: list[list[tuple[int, int]]] = []
        for rows in (first, then):
            if not rows:
                continue
            order: list[tuple[int, int]] = []
            while len(order) < epochs * len(rows):
                order += [rows[i] for i in rng.permutation(len(rows))]
            order = order[: math.ceil(epochs * len(rows))]
            self.batches += [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: Any) -> Any:
        rows = self.batches[step]
        if all(isinstance(self.tasks[k], Mapping) for k, _ in rows):
            parts = []
            for k in sorted({k for k, _ in rows}):
                chosen = torch.tensor([row for task, row in rows if task == k])
                parts.append({name: column[chosen] for name, column in self.tasks[k].items()})
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return default_collate([self.tasks[k][row] for k, row in rows])


def _length(task: Any) -> int:
    if isinstance(task, Mapping):
        lengths = {len(column) for column in task.values()}
        if len(lengths) != 1:
            raise ValueError(f"the columns of a task need one length, got {sorted(lengths)}")
        return lengths.pop()
    return len(task)
