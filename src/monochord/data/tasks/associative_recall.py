"""Associative recall: pairs of a key and a value in a row, then a key whose value is asked for.

The multi-query form is from "Zoology: Measuring and Improving Recall in Efficient Language Models", December 8, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import Problems, source


@dataclass(frozen=True)
class AssociativeRecall:
    """`key value key value ... key`, and the answer is the last key's value.

    Keys are ids from `first` to `first + keys - 1`, values the `values` ids after those; within a problem no key
    and no value comes twice. `queries` keys are asked in a row, each but the last with its answer behind it. The
    counterfactual swaps the value of the asked pair with that of another pair that is not asked, which is the
    `wrong` answer. Places: `key` and `value` of the asked pair.
    """

    pairs: int = 8
    queries: int = 1
    keys: int = 64
    values: int = 64
    first: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.pairs <= min(self.keys, self.values):
            raise DataError(
                f"pairs={self.pairs}: use 2 to {min(self.keys, self.values)}, the keys and values there are"
            )
        if not 1 <= self.queries < self.pairs:
            raise DataError(f"queries={self.queries}: use 1 to {self.pairs - 1}, fewer than there are pairs")

    @property
    def chance(self) -> float:
        return 1 / self.pairs  # of naming some value that was seen

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        keys = np.argsort(rng.random((n, self.keys)), axis=1)[:, : self.pairs] + self.first
        values = np.argsort(rng.random((n, self.values)), axis=1)[:, : self.pairs] + self.first + self.keys
        asked = np.argsort(rng.random((n, self.pairs)), axis=1)[:, : self.queries + 1]
        asked, other = asked[:, :-1], asked[:, -1]  # the pair of the wrong answer is asked nowhere
        last, rows = asked[:, -1], np.arange(n)
        swapped = values.copy()
        swapped[rows, last], swapped[rows, other] = values[rows, other], values[rows, last]
        return Problems(
            {
                "input_ids": _written(keys, values, asked),
                "answer": values[rows, last],
                "wrong": values[rows, other],
                "counterfactual_ids": _written(keys, swapped, asked),
                "counterfactual_answer": swapped[rows, last],
                "at_key": 2 * last,
                "at_value": 2 * last + 1,
            }
        )


def _written(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Pairs in order, then the asked keys with their values between them; the last value is left to say."""
    n = len(keys)
    shown = np.stack([keys, values], axis=2).reshape(n, -1)
    queries = [np.take_along_axis(column, asked, axis=1) for column in (keys, values)]
    return np.concatenate([shown, np.stack(queries, axis=2).reshape(n, -1)[:, :-1]], axis=1)


ENTRIES = [source(AssociativeRecall, "associative-recall", "the value that stood behind a key")]
