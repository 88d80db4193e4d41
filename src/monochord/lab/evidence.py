"""What a paper's arms measured, as its claims and figures see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monochord.lab.paper import PaperError
from monochord.lab.statistics import Interval, mean_interval, paired_difference


class Metric:
    """One metric of one arm over seeds: numbers, or curves of equal length."""

    def __init__(self, values: Sequence[Any], seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)
        self.values = np.asarray(values, dtype=np.float64)  # (seeds,) or (seeds, points)

    @property
    def mean(self) -> Any:
        """The mean over seeds: a float, or an array of a curve's points."""
        mean = self.values.mean(0)
        return float(mean) if mean.ndim == 0 else mean

    @property
    def interval(self) -> Interval:
        """The mean and its t interval; of a curve, that of its mean over points."""
        values = self.values if self.values.ndim == 1 else self.values.reshape(len(self.values), -1).mean(1)
        return mean_interval(values.tolist())

    @property
    def low(self) -> float:
        return self.interval.low

    @property
    def high(self) -> float:
        return self.interval.high

    @property
    def min(self) -> float:
        """The smallest value of any seed."""
        return float(self.values.min())

    @property
    def max(self) -> float:
        """The largest value of any seed."""
        return float(self.values.max())

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Looked:
    """A figure that a claim looked at."""

    arm: str
    metric: str
    interval: Interval


class ArmEvidence:
    """The metrics of one arm, by attribute or key."""

    def __init__(self, name: str, trials: Sequence[Mapping[str, Any]], looked: list[Looked]) -> None:
        self._name, self._looked = name, looked
        self._seeds = [trial["seed"] for trial in trials]
        names = sorted(set.intersection(*(set(trial["metrics"]) for trial in trials))) if trials else []
        self._metrics = {n: Metric([trial["metrics"][n] for trial in trials], self._seeds) for n in names}

    def __getitem__(self, metric: str) -> Metric:
        if metric not in self._metrics:
            raise PaperError(f"{self._name} has no metric {metric!r}: it has {', '.join(self._metrics) or 'none'}")
        found = self._metrics[metric]
        seen = Looked(self._name, metric, found.interval)
        if seen not in self._looked:
            self._looked.append(seen)
        return found

    def __getattr__(self, metric: str) -> Metric:
        if metric.startswith("_"):
            raise AttributeError(metric)
        return self[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)


class Evidence:
    """Arms by name: `evidence["lora"].accuracy.mean`. Remembers what was looked at, for the claim's report."""

    def __init__(self, trials: Mapping[str, Sequence[Mapping[str, Any]]], chance: Mapping[str, float]) -> None:
        self.looked: list[Looked] = []
        self.chance = dict(chance)
        self._arms = {name: ArmEvidence(name, list(found), self.looked) for name, found in trials.items()}

    def __getitem__(self, arm: str) -> ArmEvidence:
        if arm not in self._arms:
            raise PaperError(f"no arm {arm!r}: there are {', '.join(self._arms)}")
        return self._arms[arm]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arms)

    def difference(self, first: str, second: str, metric: str) -> Interval:
        """The mean of first minus second, paired by seed, with its t interval."""
        one, other = self._pairs(first, second, metric)
        found = paired_difference(one, other)
        self.looked.append(Looked(f"{first} - {second}", metric, found))
        return found

    def wins(self, first: str, second: str, metric: str, by: float = 0.0) -> int:
        """In how many seeds the first exceeds the second by more than `by`."""
        one, other = self._pairs(first, second, metric)
        return sum(a > b + by for a, b in zip(one, other, strict=True))

    def _pairs(self, first: str, second: str, metric: str) -> tuple[list[float], list[float]]:
        one, other = self[first][metric], self[second][metric]
        a, b = dict(zip(one.seeds, one.values, strict=True)), dict(zip(other.seeds, other.values, strict=True))
        shared = [seed for seed in a if seed in b]
        if not shared:
            raise PaperError(f"{first} and {second} share no seed")
        return [float(a[seed]) for seed in shared], [float(b[seed]) for seed in shared]
