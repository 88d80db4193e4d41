"""How reliably a dendritic segment recognises sparse patterns: exact probabilities.

From "How do neurons operate on sparse distributed representations? A mathematical theory of sparsity, neurons and
active dendrites", January 4, 2016. Of `n` cells `active` are on at a time; a segment has synapses to `synapses` of
them and fires when at least `threshold` of these are on. All formulas are hypergeometric and computed in log space,
so that 1e-21 does not underflow. Arguments may be arrays; they broadcast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, logsumexp


def log_choose(n: ArrayLike, k: ArrayLike) -> Any:
    """log of the binomial coefficient, -inf where there is no way to choose."""
    n, k = np.asarray(n, float), np.asarray(k, float)
    possible = (k >= 0) & (k <= n)
    with np.errstate(invalid="ignore"):
        value = gammaln(n + 1) - gammaln(np.where(possible, k, 0) + 1) - gammaln(np.where(possible, n - k, 0) + 1)
    return np.where(possible, value, -np.inf)


def log_overlap_set(n: ArrayLike, active: ArrayLike, synapses: ArrayLike, overlap: ArrayLike) -> Any:
    """log of the number of patterns with `active` of `n` cells on that meet `synapses` given cells in `overlap`."""
    synapses, overlap = np.asarray(synapses), np.asarray(overlap)
    return log_choose(synapses, overlap) + log_choose(np.asarray(n) - synapses, np.asarray(active) - overlap)


def false_positive(
    n: ArrayLike, active: ArrayLike, synapses: ArrayLike, threshold: ArrayLike, log: bool = False
) -> Any:
    """The probability that a random pattern makes the segment fire; its natural logarithm with `log`.

    Raises `ValueError` for more active cells or synapses than cells.
    """
    n, active, synapses, threshold = np.broadcast_arrays(n, active, synapses, threshold)
    if np.any(active > n) or np.any(synapses > n):
        raise ValueError("there are more active cells or synapses than cells: active and synapses are at most n")
    overlaps = np.arange(int(synapses.max()) + 1).reshape(-1, *(1,) * n.ndim)
    counted = np.where(overlaps >= threshold, log_overlap_set(n, active, synapses, overlaps), -np.inf)
    value = np.minimum(logsumexp(counted, axis=0) - log_choose(n, active), 0.0)
    return _result(value, log)


def false_negative(
    active: ArrayLike, synapses: ArrayLike, threshold: ArrayLike, noise: ArrayLike, log: bool = False
) -> Any:
    """The probability that a stored pattern is missed when a share `noise` of its active cells is off.

    The segment's synapses are a random part of the pattern's `active` cells.
    """
    active, synapses, threshold, noise = np.broadcast_arrays(active, synapses, threshold, noise)
    if np.any((noise < 0) | (noise > 1)):
        raise ValueError("noise is a share of the active cells: 0 to 1")
    left = np.rint(active * (1 - noise))
    overlaps = np.arange(int(synapses.max()) + 1).reshape(-1, *(1,) * active.ndim)
    counted = np.where(overlaps < threshold, log_overlap_set(active, left, synapses, overlaps), -np.inf)
    with np.errstate(divide="ignore"):
        value = np.minimum(logsumexp(counted, axis=0) - log_choose(active, left), 0.0)
    return _result(value, log)


def union_size(n: ArrayLike, synapses: ArrayLike, patterns: ArrayLike) -> Any:
    """The expected number of distinct synapses of a segment that holds `synapses` of each of `patterns` patterns."""
    n, synapses = np.asarray(n, float), np.asarray(synapses, float)
    return n * -np.expm1(np.asarray(patterns) * np.log1p(-synapses / n))


def union_false_positive(
    n: ArrayLike, active: ArrayLike, synapses: ArrayLike, threshold: ArrayLike, patterns: ArrayLike, log: bool = False
) -> Any:
    """`false_positive` of a segment that holds several patterns, at the expected number of distinct synapses.

    This is the paper's formula; `exact_union_false_positive` minds that the number varies.
    """
    return false_positive(n, active, np.rint(union_size(n, synapses, patterns)).astype(int), threshold, log)


def exact_union_false_positive(n: int, active: int, synapses: int, threshold: int, patterns: int) -> float:
    """The probability itself: cells of the met pattern are covered by one stored pattern's synapses after the other.

    Of `active - k` cells not covered yet, the next `synapses` cover a hypergeometric number.
    """
    most = min(active, patterns * synapses)
    covered = np.zeros(most + 1)
    covered[0] = 1.0
    k, new = np.arange(most + 1)[:, None], np.arange(min(synapses, most) + 1)[None]
    ways = log_overlap_set(n, synapses, active - k, new) - log_choose(n, synapses)
    step = np.exp(ways)  # (covered so far, newly covered)
    for _ in range(patterns):
        following = np.zeros_like(covered)
        for j in range(step.shape[1]):
            following[j:] += covered[: most + 1 - j] * step[: most + 1 - j, j]
        covered = following
    return float(covered[threshold:].sum())


def any_segment(probability: ArrayLike, segments: ArrayLike) -> Any:
    """The probability that at least one of `segments` independent segments fires."""
    with np.errstate(divide="ignore"):
        return -np.expm1(np.asarray(segments) * np.log1p(-np.asarray(probability, float)))


def optimal_threshold(n: int, active: int, synapses: int, noise: float, weight: float = 1.0) -> int:
    """The threshold with the smallest `false_positive + weight * false_negative`; the smaller of equals."""
    thresholds = np.arange(1, synapses + 1)
    cost = false_positive(n, active, synapses, thresholds)
    cost = cost + weight * false_negative(active, synapses, thresholds, noise)
    return int(thresholds[np.argmin(cost)])


def smallest_threshold(n: int, active: int, synapses: int, at_most: float) -> int:
    """The smallest threshold whose false positives are at most so probable. Raises `ValueError` if none is."""
    thresholds = np.arange(synapses + 1)
    rare = thresholds[false_positive(n, active, synapses, thresholds) <= at_most]
    if not len(rare):
        raise ValueError(f"no threshold up to {synapses} brings false positives down to {at_most:g}: more synapses do")
    return int(rare[0])


def _result(value: Any, log: bool) -> Any:
    value = value if log else np.exp(value)
    return value.item() if np.ndim(value) == 0 else value
