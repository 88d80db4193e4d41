"""Sparse parity: one bit that depends on a few of many.

From "Hidden Progress in Deep Learning: SGD Learns Parities Near the Computational Limit", July 18, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import Problems, source


@dataclass(frozen=True)
class SparseParity:
    """`x` (n, bits), float32 of -1 and 1, and `label`, whether the product over the hidden `subset` is -1.

    The subset of `relevant` bits is fixed by `task_seed`. The counterfactual flips one relevant bit, and so the
    label; `irrelevant_x` flips one irrelevant bit, and keeps it. `flipped` and `irrelevant` say which.
    """

    bits: int = 40
    relevant: int = 3
    task_seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.relevant < self.bits:
            raise DataError(f"relevant={self.relevant}: use 1 to {self.bits - 1}, fewer than there are bits")

    @property
    def chance(self) -> float:
        return 1 / 2

    @property
    def subset(self) -> np.ndarray:
        """The relevant bits, sorted."""
        return np.sort(np.random.default_rng(self.task_seed).permutation(self.bits)[: self.relevant])

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        x = rng.integers(2, size=(n, self.bits)).astype(np.float32) * 2 - 1
        others = np.setdiff1d(np.arange(self.bits), self.subset)
        flipped, irrelevant = (bits[rng.integers(len(bits), size=n)] for bits in (self.subset, others))
        changed, kept, rows = x.copy(), x.copy(), np.arange(n)
        changed[rows, flipped] *= -1
        kept[rows, irrelevant] *= -1
        return Problems(
            {
                "x": x,
                "label": self.label(x),
                "counterfactual_x": changed,
                "irrelevant_x": kept,
                "flipped": flipped,
                "irrelevant": irrelevant,
            }
        )

    def label(self, x: np.ndarray) -> np.ndarray:
        """0 or 1 for inputs (n, bits)."""
        return (x[:, self.subset].prod(1) < 0).astype(np.int64)


ENTRIES = [source(SparseParity, "sparse-parity", "the parity of a few of many bits")]
