"""What an agent saw and did: episodes of observations, actions and rewards, one row a step.

Loaders of robot layouts and the scripted experts of simulators make this one class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monochord.data.dataset import DataError, Dataset, Split


@dataclass(frozen=True)
class Trajectories:
    """Steps of several episodes, one after the other.

    - `observations` (steps, features), what the agent saw before it acted; `actions` (steps, dims)
    - `rewards` (steps,); `done` (steps,) bool, true where the episode ended by itself and was not cut off
    - `episodes` (steps,): numbers of the episodes, in ascending order
    - `tasks` (episodes,): what was to be done, in words, "" where that is not said
    - `extra`: further columns by name, such as `next_observations`, `success` or `timestamps`
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    done: np.ndarray
    episodes: np.ndarray
    tasks: tuple[str, ...] = ()
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = {name: getattr(self, name) for name in ("observations", "actions", "rewards", "done", "episodes")}
        lengths = {name: len(column) for name, column in {**columns, **self.extra}.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise DataError(f"columns of steps need one length, got {lengths}")
        if (np.diff(self.episodes) < 0).any():
            raise DataError("the steps of an episode must follow each other, episodes in ascending order")
        for name in ("observations", "actions", "rewards"):
            if not np.isfinite(columns[name]).all():
                raise DataError(f"{name} hold values that are not finite")
        if self.tasks and len(self.tasks) != len(self.starts):
            raise DataError(f"{len(self.tasks)} tasks for {len(self.starts)} episodes")

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self.starts)

    @property
    def starts(self) -> np.ndarray:
        """The row at which each episode begins."""
        return np.flatnonzero(np.diff(self.episodes, prepend=self.episodes[0] - 1))

    @property
    def returns(self) -> np.ndarray:
        """The sum of rewards of each episode."""
        return np.add.reduceat(self.rewards, self.starts)

    def __iter__(self) -> Iterator[Trajectories]:
        """The episodes, each as `Trajectories` of one."""
        return (self.take([number]) for number in range(len(self)))

    def take(self, numbers: Sequence[int] | np.ndarray) -> Trajectories:
        """The given episodes by place, in that order, numbered anew from 0."""
        bounds = [*self.starts.tolist(), len(self.episodes)]
        chosen = [range(len(self))[number] for number in np.asarray(numbers).tolist()]
        rows = np.concatenate([np.arange(bounds[number], bounds[number + 1]) for number in chosen])
        lengths = [bounds[number + 1] - bounds[number] for number in chosen]
        return Trajectories(
            self.observations[rows],
            self.actions[rows],
            self.rewards[rows],
            self.done[rows],
            np.repeat(np.arange(len(chosen)), lengths),
            tuple(self.tasks[number] for number in chosen) if self.tasks else (),
            {name: column[rows] for name, column in self.extra.items()},
        )

    def transitions(self, steps: int = 1) -> dict[str, np.ndarray]:
        """Pairs of observations `steps` apart in one episode: `observation`, its `action`, `next_observation`.

        Raises `DataError` when no episode is that long.
        """
        if steps < 1:
            raise DataError(f"steps={steps}: use at least 1")
        first = np.flatnonzero(self.episodes[:-steps] == self.episodes[steps:])
        if not len(first):
            raise DataError(f"no episode has more than {steps} steps")
        columns = {"observation": self.observations, "action": self.actions}
        return {name: column[first] for name, column in columns.items()} | {
            "next_observation": self.observations[first + steps]
        }

    def dataset(self, name: str, **card: Any) -> Dataset:
        """As a `Dataset` of one split, "train": a row a step, with the episode's task."""
        number = np.repeat(np.arange(len(self)), np.diff([*self.starts, len(self.episodes)]))
        columns = {"observation": self.observations, "action": self.actions, "reward": self.rewards}
        columns |= {"done": self.done, "episode": self.episodes, **self.extra}
        split: dict[str, Any] = {**columns, "text": [self.tasks[i] for i in number.tolist()]} if self.tasks else columns
        return Dataset(name=name, task="trajectories", splits={"train": Split(split)}, **card)

    @staticmethod
    def of(dataset: Dataset) -> Trajectories:
        """The episodes of a `Dataset` whose split "train" has a row a step, as `dataset()` makes them."""
        steps = dataset["train"]
        known = ("observation", "action", "reward", "done", "episode")
        seen, actions, rewards, done, episodes = (np.asarray(steps[name]) for name in known)
        starts = np.flatnonzero(np.diff(episodes, prepend=episodes[0] - 1))
        tasks = tuple(steps["text"][row] for row in starts.tolist()) if "text" in steps else ()
        extra = {name: np.asarray(steps[name]) for name in steps.columns if name not in (*known, "text")}
        return Trajectories(seen, actions, rewards, done, episodes, tasks, extra)


def joined(parts: Sequence[Trajectories]) -> Trajectories:
    """Episodes of several sources one after the other; only columns that all of them have are kept."""
    if len({part.actions.shape[1:] for part in parts}) != 1 or len({p.observations.shape[1:] for p in parts}) != 1:
        shapes = sorted({(part.observations.shape[1:], part.actions.shape[1:]) for part in parts})
        raise DataError(f"observations and actions need one shape, got {shapes}")
    shared = set.intersection(*(set(part.extra) for part in parts))
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    numbers = [
        offset + np.cumsum(np.isin(np.arange(len(part.episodes)), part.starts)) - 1
        for offset, part in zip(offsets, parts, strict=False)
    ]
    known = ("observations", "actions", "rewards", "done")
    seen, actions, rewards, done = (np.concatenate([getattr(part, name) for part in parts]) for name in known)
    tasks = tuple(task for part in parts for task in part.tasks)
    extra = {name: np.concatenate([part.extra[name] for part in parts]) for name in sorted(shared)}
    return Trajectories(seen, actions, rewards, done, np.concatenate(numbers), tasks, extra)
