"""Which rows train, validate and test: by chance, evenly by class, or by group so that what belongs together stays."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

PARTS = ("train", "validation", "test")


def by_chance(n: int, seed: int = 0, tenths: tuple[int, int] = (1, 1)) -> dict[str, np.ndarray]:
    """Rows of each part in random order: so many tenths to validate and to test, at least one row each."""
    return by_class(np.zeros(n, np.int64), seed, tenths)


def by_class(labels: np.ndarray, seed: int = 0, tenths: tuple[int, int] = (1, 1)) -> dict[str, np.ndarray]:
    """The same within every class, at least one row of it in each part; the rows of a part are in ascending order."""
    generator = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in PARTS}
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        cuts = np.cumsum([max(1, round(len(rows) * tenth / 10)) for tenth in tenths])
        for name, chosen in zip(("validation", "test", "train"), np.split(rows, cuts), strict=True):
            parts[name].append(chosen)
    return {name: np.sort(np.concatenate(chosen)) for name, chosen in parts.items()}


def by_group(groups: Sequence[str], seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of one group are all in one part, about 80, 10 and 10 % of the groups, by a hash of the group and `seed`."""
    place = np.array([zlib.crc32(f"{seed}:{group}".encode()) % 10 for group in groups])
    return {
        "train": np.flatnonzero(place > 1),
        "validation": np.flatnonzero(place == 0),
        "test": np.flatnonzero(place == 1),
    }
