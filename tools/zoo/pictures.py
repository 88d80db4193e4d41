"""What the picture nets see: raw pictures of the catalog as `Part`s, moved and mirrored at random while training.

Every picture comes to 32 by 32 pixels through the processor that ships with the nets.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from classify import Part
from torch import Tensor

import monochord as mc
from monochord.data import Dataset
from monochord.models.images import ImageProcessor

SIDE = 32
PROCESS = ImageProcessor(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MOVED = 0.08  # of the side, at most


@cache
def pictures(name: str, **options: str) -> Dataset:
    """A data set of the catalog."""
    return mc.data(name, **options)


def part(name: str, rows: int, split: str = "train", *, still: bool = False, **options: str) -> Part:
    """A split of a set as part of a training, `rows` of it in a batch; `still` leaves its pictures as they are."""
    dataset = pictures(name, **options)
    labels = dataset[split]["label" if "label" in dataset[split] else "labels"]
    images = dataset[split]["image"]
    mirrored = name != "mnist"

    def inputs(items: np.ndarray, generator: np.random.Generator | None) -> Tensor:
        chosen = np.asarray(images[items])
        return PROCESS(chosen if still or generator is None else moved(chosen, generator, mirrored))["pixel_values"]

    return Part(dataset.label_names, np.asarray(labels), inputs, rows)


def moved(images: np.ndarray, generator: np.random.Generator, mirrored: bool = True) -> np.ndarray:
    """Each image moved a little, its edge repeated, half of them mirrored; uint8 (n, h, w) or (n, h, w, 3)."""
    n, side = images.shape[:2]
    reach = round(side * MOVED)
    around = ((0, 0), (reach, reach), (reach, reach)) + ((0, 0),) * (images.ndim - 3)
    padded = np.pad(images, around, mode="edge")
    places = generator.integers(0, 2 * reach + 1, (n, 2))
    mirror = generator.random(n) < 0.5 * mirrored
    out = np.empty_like(images)
    for i, (down, right) in enumerate(places):
        cut = padded[i, down : down + side, right : right + side]
        out[i] = cut[:, ::-1] if mirror[i] else cut
    return out
