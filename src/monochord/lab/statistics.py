"""Numbers over seeds: means with intervals, paired differences, bootstrap intervals.

Scores of the same seeds under two methods are paired: they saw the same data order and the same
initial head, so their difference varies far less than either score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; `low` and `high` are NaN when one value can't give any."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        if math.isnan(self.half_width):
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} ± {self.half_width:.2g}"


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean and its Student t interval over seeds.

    One value has a mean and no interval. Raises `ValueError` when there is no value at all or when
    one of them is not a finite number.
    """
    from scipy import stats

    numbers = _checked(values)
    n = len(numbers)
    mean = math.fsum(numbers) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (n - 1) / n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of `first - second`, seed by seed, with its t interval."""
    if len(first) != len(second):
        raise ValueError(f"paired values must come in pairs: got {len(first)} and {len(second)}")
    return mean_interval([a - b for a, b in zip(first, second, strict=True)], confidence)


def paired_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of the paired t-test: how likely a difference this large is when there is none.

    Identical differences have no spread to test against: p is 1 when they are all zero, else 0.
    """
    from scipy import stats

    difference = paired_difference(first, second)
    if difference.n < 2:
        return math.nan
    if difference.half_width == 0:
        return 1.0 if difference.mean == 0 else 0.0
    return float(stats.ttest_rel(first, second).pvalue)


def paired_effect(first: Sequence[float], second: Sequence[float]) -> float:
    """Cohen's d of paired values: the mean difference over the differences' standard deviation.

    NaN for fewer than two pairs or without spread.
    """
    difference = paired_difference(first, second)
    if difference.n < 2 or difference.half_width == 0:
        return math.nan
    deviation = math.fsum((a - b - difference.mean) ** 2 for a, b in zip(first, second, strict=True))
    return difference.mean / math.sqrt(deviation / (difference.n - 1))


def permutation_p(first: Sequence[float], second: Sequence[float], *, paired: bool = False, seed: int = 0) -> float:
    """Two-sided p of the difference of means under relabelling; exact where there are few enough of them."""
    import numpy as np
    from scipy import stats

    result = stats.permutation_test(
        (_checked(first), _checked(second)),
        lambda a, b, axis: np.mean(a, axis) - np.mean(b, axis),
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, *, seed: int = 0, resamples: int = 2000
) -> Interval:
    """The mean and its percentile bootstrap interval, for many values that are far from normal."""
    import numpy as np
    from scipy import stats

    numbers = _checked(values)
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    if min(numbers) == max(numbers):
        return Interval(mean, mean, mean, len(numbers))
    result = stats.bootstrap(
        (np.asarray(numbers),),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high), len(numbers))


def _checked(values: Sequence[float]) -> list[float]:
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("no values to average")
    bad = [x for x in numbers if not math.isfinite(x)]
    if bad:
        raise ValueError(f"{len(bad)} of {len(numbers)} values are not finite: {bad[0]}")
    return numbers
