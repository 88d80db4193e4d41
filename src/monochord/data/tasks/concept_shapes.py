"""Concept-space shapes: small pictures of one object, with factors that are known and a combination held out.

From "Emergence of Hidden Capabilities: Exploring Learning Dynamics in Concept Space", June 27, 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.catalog import Read, Source
from monochord.data.dataset import DataError, Split
from monochord.data.tasks.problem import MADE, Problems, signature_of


@dataclass(frozen=True)
class ConceptShapes:
    """`image` (n, side, side, 3), uint8: a disc (or a square) on a grey background.

    Three binary concepts, column `concepts` (n, 3): colour (0 red, 1 blue), size (0 large, 1 small), shape (0 disc,
    1 square; always 0 unless `shapes`). `colour_signal` and `size_signal` say how far their two classes are apart,
    from 0 to 1. `factors` (n, 7) are the continuous values: centre y and x and radius as shares of the side, red,
    green, blue, background. The training and validation splits lack the combination `held_out` of colour and size
    (and shape); the test split has only that one.
    """

    side: int = 32
    colour_signal: float = 0.6
    size_signal: float = 0.4
    shapes: bool = False
    jitter: float = 0.08
    noise: float = 0.001
    held_out: tuple[int, ...] = (1, 1)

    def __post_init__(self) -> None:
        if len(self.held_out) != (3 if self.shapes else 2) or not set(self.held_out) <= {0, 1}:
            raise DataError(f"held_out={self.held_out}: give 0 or 1 for each of colour, size" + ", shape" * self.shapes)
        if not (0 <= self.colour_signal <= 1 and 0 <= self.size_signal <= 1 and 0 <= self.jitter <= 0.2):
            raise DataError("signals are from 0 to 1 and jitter from 0 to 0.2")

    def draw(self, n: int, rng: np.random.Generator, *, held_out: bool = False) -> Problems:
        """`n` pictures of the combinations that are trained on, or of the one held out."""
        concepts = np.zeros((n, 3), np.int64)
        width = len(self.held_out)
        codes = np.arange(2**width)
        left_out = int("".join(map(str, self.held_out)), 2)
        chosen = np.full(n, left_out) if held_out else rng.permutation(np.resize(codes[codes != left_out], n))
        concepts[:, :width] = chosen[:, None] >> np.arange(width - 1, -1, -1) & 1
        factors = self.factors(concepts, rng)
        image = self.render(factors, concepts[:, 2])
        image = image + rng.normal(0, self.noise, image.shape)
        pixels = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
        return Problems({"image": pixels, "concepts": concepts, "factors": factors.astype(np.float32)})

    def factors(self, concepts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The continuous factors of given concepts, with jitter, (n, 7)."""
        n = len(concepts)
        centre = 0.5 + rng.uniform(-self.jitter, self.jitter, (n, 2))
        radius = 0.2 + 0.2 * self.size_signal * (0.5 - concepts[:, 1]) + rng.uniform(-0.005, 0.005, n)
        redness = self.colour_signal / 2 * (1 - 2 * concepts[:, 0]) + rng.uniform(-0.02, 0.02, n)
        background = rng.uniform(0.85, 0.95, n)
        parts = (centre[:, 0], centre[:, 1], radius, 0.5 + redness, np.full(n, 0.4), 0.5 - redness, background)
        return np.stack(parts, axis=1)

    def render(self, factors: np.ndarray, square: np.ndarray) -> np.ndarray:
        """Pictures from 0 to 1 of the factors alone, (n, side, side, 3); edges cover pixels in part."""
        at = (np.arange(self.side) + 0.5) / self.side
        y, x, radius = (factors[:, k, None, None] for k in range(3))
        down, right = np.abs(at[None, :, None] - y), np.abs(at[None, None, :] - x)
        half = radius * np.sqrt(np.pi) / 2  # a square of the disc's area
        distance = np.where(square[:, None, None] == 1, np.maximum(down, right) - half, np.hypot(down, right) - radius)
        inside = (0.5 - distance * self.side).clip(0, 1)[..., None]
        colour, background = factors[:, None, None, 3:6], factors[:, None, None, 6:]
        return np.asarray(inside * colour + (1 - inside) * background)


def read(folder: Path | None, *, n: int = 1000, seed: int = 0, **options: Any) -> Read:
    """`n` training pictures, a fifth as many for validation, and as many of the combination held out."""
    if n < 5:
        raise DataError(f"concept-shapes: n={n}, at least 5 pictures are needed")
    task, rng = ConceptShapes(**options), np.random.default_rng(seed)
    made: dict[str, Split] = {"train": task.draw(n, rng), "validation": task.draw(n // 5, rng)}
    made["test"] = task.draw(n // 5, rng, held_out=True)
    return made, (f"the combination {task.held_out} is in the test split only",)


read.__signature__ = signature_of(ConceptShapes, n=1000)  # type: ignore[attr-defined]

ENTRIES = [
    Source(
        name="concept-shapes",
        kind="images",
        title="coloured shapes with known factors, one combination held out",
        licence="Apache-2.0, ours",
        package=None,
        read=read,
        ships=MADE,
    )
]
