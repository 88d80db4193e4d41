"""Arithmetic modulo a prime: a small closed world in which a network can memorise or understand.

From "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets", January 6, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import Problems, source

OPERATIONS = ("add", "subtract", "multiply", "divide")


@dataclass(frozen=True)
class ModularArithmetic:
    """Ids `a operation b =` with the answer's id below `modulus`, a prime.

    Ids 0 to `modulus - 1` are numbers, `modulus` is the operation, `modulus + 1` the equals sign. There are
    modulus squared problems (divisors are not 0), and the splits share none. The counterfactual has another b,
    whose answer differs and is the `wrong` one. Places: `a` and `b`.
    """

    modulus: int = 97
    operation: Literal["add", "subtract", "multiply", "divide"] = "add"

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise DataError(f"unknown operation {self.operation!r}: use {', '.join(OPERATIONS)}")
        if self.modulus < 3 or any(self.modulus % k == 0 for k in range(2, int(self.modulus**0.5) + 1)):
            raise DataError(f"modulus={self.modulus}: use an odd prime, like 97 or 113")

    @property
    def chance(self) -> float:
        return 1 / self.modulus

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        p = self.modulus
        least = int(self.operation == "divide")  # the least b
        a = rng.integers(int(self.operation in ("multiply", "divide")), p, size=n)  # with 0 no b makes a difference
        b = rng.integers(least, p, size=n)
        other = least + (b - least + rng.integers(1, p - least, size=n)) % (p - least)
        prompt, changed = (np.stack([a, np.full(n, p), value, np.full(n, p + 1)], axis=1) for value in (b, other))
        return Problems(
            {
                "input_ids": prompt,
                "answer": self.answer(a, b),
                "wrong": self.answer(a, other),
                "counterfactual_ids": changed,
                "counterfactual_answer": self.answer(a, other),
                "at_a": np.zeros(n, np.int64),
                "at_b": np.full(n, 2),
            }
        )

    def answer(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The operation's result modulo the prime."""
        p = self.modulus
        if self.operation == "divide":
            inverse = np.array([pow(int(x), -1, p) if x else 0 for x in range(p)])
            return np.asarray(a * inverse[b] % p)
        return np.asarray({"add": a + b, "subtract": a - b, "multiply": a * b}[self.operation] % p)


ENTRIES = [source(ModularArithmetic, "modular-arithmetic", "sums, products and quotients modulo a prime")]
