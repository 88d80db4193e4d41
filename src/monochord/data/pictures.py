"""Pictures of any size and mode as small square arrays, and whole sets of them as one memory-mapped file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

SIDE = 64


def squared(file: Path | IO[bytes], side: int = SIDE) -> np.ndarray:
    """The picture of a file as uint8 (side, side, 3): its longer side scaled to `side`, centred on white."""
    from PIL import Image

    with Image.open(file) as opened:
        picture = opened.convert("RGBA")
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    premultiplied = picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(premultiplied, ((side - width) // 2, (side - height) // 2))
    return np.asarray(canvas.convert("RGB"))


def save_pictures(file: Path, pictures: Iterable[np.ndarray], count: int, side: int = SIDE) -> None:
    """Write `count` pictures as one `.npy` file (count, side, side, 3) that can be memory-mapped."""
    stored = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(count, side, side, 3))
    for place, picture in enumerate(pictures):
        stored[place] = picture
    stored.flush()
