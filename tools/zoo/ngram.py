"""Counting models of tokens, the baselines that the nets must beat: unigram and interpolated Kneser-Ney.

From "An Empirical Study of Smoothing Techniques for Language Modeling", July 24, 1998; one discount an order,
`n1 / (n1 + 2 n2)`.
"""

from __future__ import annotations

import numpy as np

VOCABULARY = 2048


class Counts:
    """Counted n-grams of one order: sorted codes with their counts, and sums over the last token."""

    def __init__(self, codes: np.ndarray, counts: np.ndarray) -> None:
        self.codes, self.counts = codes, counts
        ones, twos = (int((counts == k).sum()) for k in (1, 2))
        self.discount = ones / max(1, ones + 2 * twos)
        self.histories, first = np.unique(codes // VOCABULARY, return_index=True)
        self.totals = np.add.reduceat(counts, first)
        self.kinds = np.diff(np.append(first, len(codes)))

    def interpolate(self, history: np.ndarray, token: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Probabilities of tokens after histories (codes), given those of the order below."""
        total, kinds = _look_up(self.histories, history, self.totals, self.kinds)
        (count,) = _look_up(self.codes, history * VOCABULARY + token, self.counts)
        seen = total > 0
        total = np.maximum(total, 1)
        own = np.maximum(count - self.discount, 0) / total
        return np.where(seen, own + self.discount * kinds / total * lower, lower)


class KneserNey:
    """Interpolated Kneser-Ney of an order on rows of token ids, (rows, length)."""

    def __init__(self, rows: np.ndarray, order: int = 4) -> None:
        self.order = order
        ids = rows.astype(np.int64)
        self.unigram = np.bincount(ids.ravel(), minlength=VOCABULARY) + 1.0
        self.unigram /= self.unigram.sum()
        self.levels: list[Counts] = []
        codes, counts = np.unique(_codes(ids, order), return_counts=True)
        self.levels.append(Counts(codes, counts))
        for n in range(order - 1, 0, -1):  # below the highest order: in how many contexts, not how often
            whole = np.unique(_codes(ids, n + 1))
            codes, counts = np.unique(whole % VOCABULARY**n, return_counts=True)
            self.levels.insert(0, Counts(codes, counts))

    def log_probability(self, ids: np.ndarray) -> np.ndarray:
        """Of every token but the first, given those before it, in nats."""
        ids = ids.astype(np.int64)
        token = ids[1:]
        p = self.levels[0].interpolate(np.zeros_like(token), token, np.full(len(token), 1 / VOCABULARY))
        for n in range(2, self.order + 1):
            known = np.arange(len(token)) >= n - 2  # the first tokens have a short history
            history = sum(ids[np.maximum(np.arange(len(token)) - k, 0)] * VOCABULARY**k for k in range(n - 1))
            p = np.where(known, self.levels[n - 1].interpolate(np.asarray(history), token, p), p)
        return np.asarray(np.log(p))


def _codes(ids: np.ndarray, n: int) -> np.ndarray:
    """The n-grams within rows as numbers to the base of the vocabulary."""
    width = ids.shape[1] - n + 1
    return np.asarray(sum(ids[:, k : k + width] * VOCABULARY ** (n - 1 - k) for k in range(n))).ravel()


def _look_up(keys: np.ndarray, wanted: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
    """Values at the wanted keys, 0 where a key is not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    there = keys[at] == wanted
    return [np.where(there, value[at], 0) for value in values]
