"""Streams of tasks in which old ones come back, the less the longer ago: as a power law of their age, or otherwise.

From "Catastrophic Interference is Mitigated in Naturalistic Power-Law Learning Environments", January 18, 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from monochord.data.catalog import Read, Source
from monochord.data.dataset import DataError, Dataset, Split
from monochord.data.tasks.problem import MADE, signature_of

ENVIRONMENTS = ("power", "exponential", "uniform", "recent", "none")


@dataclass(frozen=True)
class PowerLawStream:
    """`tasks` phases on one data set, each with its own fixed permutation of the input's features; the first has none.

    Phase k has all of task k's rows, and `rehearsed` rows of the tasks before, in all: those of age a get a share
    proportional to `a ** -exponent` ("power"), `exp(-exponent * a)` ("exponential"), 1 ("uniform"), or only age 1
    ("recent"), or there are none ("none"). `mix` puts them among the new rows or after them.
    """

    tasks: int = 10
    rehearsed: int = 500
    environment: Literal["power", "exponential", "uniform", "recent", "none"] = "power"
    exponent: float = 1.0
    mix: Literal["among", "after"] = "among"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.environment not in ENVIRONMENTS:
            raise DataError(f"unknown environment {self.environment!r}: use {', '.join(ENVIRONMENTS)}")
        if self.tasks < 1 or self.rehearsed < 0 or self.mix not in ("among", "after"):
            raise DataError("a stream needs at least one task, rehearsed >= 0, and mix 'among' or 'after'")

    def permutation(self, task: int, features: int) -> np.ndarray:
        """The order of features of a task, counted from 0."""
        return np.arange(features) if task == 0 else np.random.default_rng((self.seed, task)).permutation(features)

    def counts(self, phase: int) -> np.ndarray:
        """Rehearsed rows of each task before `phase`, (phase,), oldest first; they sum to `rehearsed`."""
        age = np.arange(phase, 0, -1)
        weights = {
            "power": age ** -float(self.exponent),
            "exponential": np.exp(-self.exponent * age),
            "uniform": np.ones(phase),
            "recent": (age == 1).astype(float),
            "none": np.zeros(phase),
        }[self.environment]
        return apportion(weights, self.rehearsed)

    def phases(self, x: np.ndarray, label: np.ndarray) -> list[Dataset]:
        """A data set a phase, with columns `x` (n, features), `label` and `task`, of inputs (n, ...) with labels."""
        flat = np.asarray(x).reshape(len(x), -1)
        if len(flat) != len(label):
            raise DataError(f"{len(flat)} inputs but {len(label)} labels")
        return [self._phase(phase, flat, np.asarray(label)) for phase in range(self.tasks)]

    def _phase(self, phase: int, flat: np.ndarray, label: np.ndarray) -> Dataset:
        rng = np.random.default_rng((self.seed, phase, 1))
        rows, tasks = [rng.permutation(len(flat))], [np.full(len(flat), phase)]
        for old, count in enumerate(self.counts(phase)):
            rows.append(rng.choice(len(flat), size=count, replace=count > len(flat)))
            tasks.append(np.full(count, old))
        row, task = np.concatenate(rows), np.concatenate(tasks)
        begin = 0 if self.mix == "among" else len(flat)
        order = np.concatenate([np.arange(begin), begin + rng.permutation(len(row) - begin)])
        row, task = row[order], task[order]
        x = flat[row]
        for one in np.unique(task):
            x[task == one] = x[task == one][:, self.permutation(int(one), flat.shape[1])]
        split = Split({"x": x, "label": label[row].astype(np.int64), "task": task})
        title = f"phase {phase} of {self.tasks}, {self.environment} rehearsal"
        return Dataset(name=f"phase-{phase}", task="task-stream", splits={"train": split}, title=title, source=MADE)


def apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """`total` in whole shares proportional to `weights`, by largest remainders; all zero without a weight."""
    if len(weights) == 0 or weights.sum() == 0:
        return np.zeros(len(weights), np.int64)
    exact = total * weights / weights.sum()
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def read(folder: Path | None, *, dataset: str = "digits", n: int = 500, seed: int = 0, **options: Any) -> Read:
    """Splits `phase-0`, `phase-1`, ... of `n` new rows each, and `test-0`, ...: the test split, permuted as in a task.

    `dataset` is a name of the catalog with images or `x`, and labels.
    """
    from monochord.data import data

    stream = PowerLawStream(seed=seed, **options)
    given = data(dataset)
    train = given["train"].first(min(n, len(given["train"])))
    x, label = _inputs(train)
    splits = {phase.name: phase["train"] for phase in stream.phases(x, label)}
    x, label = _inputs(given["test"])
    flat = x.reshape(len(x), -1)
    for task in range(stream.tasks):
        permuted = flat[:, stream.permutation(task, flat.shape[1])]
        splits[f"test-{task}"] = Split({"x": permuted, "label": label, "task": np.full(len(flat), task)})
    note = f"{stream.environment} rehearsal of {stream.rehearsed} rows a phase; inputs are of {dataset}, as floats to 1"
    return splits, (note,)


def _inputs(split: Split) -> tuple[np.ndarray, np.ndarray]:
    if "label" not in split or not ("image" in split or "x" in split):
        raise DataError(f"a stream needs image or x, and label; this set has {', '.join(split.columns)}")
    x = np.asarray(split["image"], np.float32) / 255 if "image" in split else np.asarray(split["x"], np.float32)
    return x, np.asarray(split["label"])


read.__signature__ = signature_of(PowerLawStream, dataset="digits", n=500)  # type: ignore[attr-defined]

ENTRIES = [
    Source(
        name="power-law-stream",
        kind="task-stream",
        title="permuted tasks in which old ones come back by a power law",
        licence="that of the data set it is made of",
        package=None,
        read=read,
        ships=MADE,
    )
]
