"""Multiplication of numbers digit by digit, with or without the partial products as a chain of thought.

The format is that of "Implicit Chain of Thought Reasoning via Knowledge Distillation", November 2, 2023: digits are
apart and the least significant comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import Problems, source


@dataclass(frozen=True)
class Multiplication:
    """`2 1 * 4 3 =` is 12 times 34; the response is ` 8 0 4 0`, least significant digit first.

    With `chain=True` the response first has the partial products, each with the running sum behind it from the
    second on: ` 8 4 0 + 0 6 3 0 ( 8 0 4 0 ) #### 8 0 4 0`. Numbers have `digits` by `by` digits, the first not 0.
    The counterfactual changes one digit of the second number. Columns `a`, `b` and `product` are int64. Place:
    `changed`, that digit.
    """

    digits: int = 4
    by: int = 4
    chain: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.digits <= 9 and 1 <= self.by <= 9):
            raise DataError(f"{self.digits} by {self.by} digits: use 1 to 9, products are int64")

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        a, b = (rng.integers(10 ** (k - 1), 10**k, size=n) for k in (self.digits, self.by))
        place = rng.integers(self.by, size=n)  # 0 is the least significant
        old = b // 10**place % 10
        lowest = (place == self.by - 1).astype(np.int64)  # a number's first digit stays above 0
        new = lowest + (old - lowest + rng.integers(1, 10 - lowest)) % (10 - lowest)
        changed = b + (new - old) * 10**place
        begin = 2 * self.digits + 2 + 2 * place
        return Problems(
            {
                "prompt": self._prompts(a, b),
                "response": self._responses(a, b),
                "counterfactual": self._prompts(a, changed),
                "counterfactual_response": self._responses(a, changed),
                "a": a,
                "b": b,
                "product": a * b,
                "at_changed": np.stack([begin, begin + 1], axis=1),
            }
        )

    def _prompts(self, a: np.ndarray, b: np.ndarray) -> list[str]:
        pairs = zip(a, b, strict=True)
        return [f"{reversed_digits(x, self.digits)} * {reversed_digits(y, self.by)} =" for x, y in pairs]

    def _responses(self, a: np.ndarray, b: np.ndarray) -> list[str]:
        return [" " + self._thought(int(x), int(y)) for x, y in zip(a, b, strict=True)]

    def _thought(self, a: int, b: int) -> str:
        answer = reversed_digits(a * b, self.digits + self.by)
        if not self.chain:
            return answer
        steps, total = [], 0
        for k in range(self.by):
            part = a * (b // 10**k % 10) * 10**k
            total += part
            width = self.digits + 1 + k
            step = reversed_digits(part, width)
            steps.append(f"{step} ( {reversed_digits(total, width)} )" if k else step)
        return f"{' + '.join(steps)} #### {answer}"


def reversed_digits(number: int, width: int) -> str:
    """The digits of a number, least significant first, with spaces between them and zeros to the width."""
    return " ".join(reversed(f"{number:0{width}d}"))


ENTRIES = [source(Multiplication, "multiplication", "products digit by digit, with or without a chain of thought")]
