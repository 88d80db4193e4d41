"""In-context Boolean functions: inputs and values of a hidden function, then an input whose value is asked for.

From "Understanding In-Context Learning in Transformers and LLMs by Learning to Learn Discrete Functions",
October 4, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import Problems, source

KINDS = ("conjunction", "disjunction", "parity", "majority", "dictator")
SPACE = 4  # the id between examples
ON = 2  # added to a value's bit, so that values and inputs have different ids


@dataclass(frozen=True)
class BooleanFunctions:
    """Ids of `shots` examples, each its bits (0 or 1), its value (2 or 3) and a separator (4), then a last input.

    Each problem has a function of its own, of `kind`, on a random subset of the `bits` (column `subset`, (n, bits),
    bool): the dictator's has one bit, the others' two or more. Inputs are chosen so that half the values are 1.
    The answer is 2 or 3; the counterfactual flips every shown value, for which the answer is the other; it is also
    the `wrong` one. Place: `query`, the last input's first bit.
    """

    kind: str = "conjunction"
    bits: int = 8
    shots: int = 16

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"unknown kind {self.kind!r}: use {', '.join(KINDS)}")
        if not 2 <= self.bits <= 64 or self.shots < 1:
            raise DataError(f"bits={self.bits}, shots={self.shots}: use 2 to 64 bits and at least one shot")

    @property
    def chance(self) -> float:
        return 1 / 2

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        subset = self._subsets(n, rng)
        inputs = rng.integers(2, size=(n, self.shots + 1, self.bits))
        wanted = rng.integers(2, size=(n, self.shots + 1))
        if self.kind in ("conjunction", "disjunction"):  # of uniform inputs nearly all have the same value
            rare = int(self.kind == "conjunction")
            settle = (wanted == rare)[..., None] & subset[:, None]
            inputs = np.where(settle, rare, inputs)
        values = evaluate(self.kind, inputs, subset)
        ids = np.concatenate([inputs, (values + ON)[..., None], np.full((n, self.shots + 1, 1), SPACE)], axis=2)
        prompt = ids.reshape(n, -1)[:, :-2]
        flipped = prompt.copy()
        at_values = np.arange(self.shots) * (self.bits + 2) + self.bits
        flipped[:, at_values] = 2 * ON + 1 - flipped[:, at_values]
        answer = values[:, -1] + ON
        return Problems(
            {
                "input_ids": prompt,
                "answer": answer,
                "wrong": 2 * ON + 1 - answer,
                "counterfactual_ids": flipped,
                "counterfactual_answer": 2 * ON + 1 - answer,
                "subset": subset,
                "at_query": np.full(n, self.shots * (self.bits + 2)),
            }
        )

    def _subsets(self, n: int, rng: np.random.Generator) -> np.ndarray:
        size = np.ones(n, np.int64) if self.kind == "dictator" else rng.integers(2, max(3, self.bits // 2 + 1), size=n)
        rank = np.argsort(np.argsort(rng.random((n, self.bits)), axis=1), axis=1)
        return np.asarray(rank < size[:, None])


def evaluate(kind: str, inputs: np.ndarray, subset: np.ndarray) -> np.ndarray:
    """Values, 0 or 1, of functions on subsets (n, bits) at inputs (n, k, bits); a majority needs more than half."""
    on = (inputs * subset[:, None]).sum(2)
    size = subset.sum(1)[:, None]
    if kind == "conjunction":
        return (on == size).astype(np.int64)
    if kind in ("disjunction", "dictator"):
        return (on > 0).astype(np.int64)
    return (on % 2 if kind == "parity" else 2 * on > size).astype(np.int64)


ENTRIES = [source(BooleanFunctions, "boolean-functions", "hidden functions of bits, shown by examples")]
