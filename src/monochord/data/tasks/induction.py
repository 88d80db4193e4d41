"""Induction: a random sequence comes again, and what followed a token the first time follows it now.

From "In-context Learning and Induction Heads", March 8, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import Problems, source


@dataclass(frozen=True)
class Induction:
    """`length` random ids, then the same again up to somewhere; the answer is what came next the first time.

    Ids are from `first` to `first + vocabulary - 1`, none twice within the sequence. The counterfactual changes
    the id that is the answer, at its first place, and nothing else. Places: `match` (the earlier occurrence of the
    last token) and `source` (where the answer stands, one later). With `repeats` > 2 the sequence has come whole
    `repeats - 1` times before, and the counterfactual changes every occurrence of the answer.
    """

    length: int = 20
    vocabulary: int = 1000
    first: int = 0
    repeats: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.length < self.vocabulary:
            raise DataError(f"length={self.length}: use 2 to {self.vocabulary - 1}, one less than the vocabulary")
        if self.repeats < 2:
            raise DataError(f"repeats={self.repeats}: use 2 or more")

    @property
    def chance(self) -> float:
        return 1 / self.length  # of naming some id that was seen

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        ids = _distinct_ids(n, self.length + 1, self.vocabulary, rng) + self.first
        segment, fresh = ids[:, :-1], ids[:, -1]
        # all prompts of a draw are as long as one another; the sequence is turned instead of cut elsewhere
        kept = self.length // 2
        prompt = np.concatenate([np.tile(segment, (1, self.repeats - 1)), segment[:, :kept]], axis=1)
        answer = segment[:, kept]
        wrong = segment[:, (kept + 1) % self.length]
        changed = np.where(prompt == answer[:, None], fresh[:, None], prompt)
        start = (self.repeats - 2) * self.length
        return Problems(
            {
                "input_ids": prompt,
                "answer": answer,
                "wrong": wrong,
                "counterfactual_ids": changed,
                "counterfactual_answer": fresh,
                "at_match": np.full(n, start + kept - 1),
                "at_source": np.full(n, start + kept),
            }
        )


def _distinct_ids(n: int, k: int, vocabulary: int, rng: np.random.Generator) -> np.ndarray:
    """`k` different ids below `vocabulary` for each of `n` rows."""
    return np.argsort(rng.random((n, vocabulary)), axis=1)[:, :k].astype(np.int64)


ENTRIES = [source(Induction, "induction", "a random sequence that comes again")]
