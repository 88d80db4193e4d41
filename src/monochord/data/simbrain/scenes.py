"""Scenes for the simulated brain: 64 by 64 colour pictures made of real image crops, with masks and captions.

Objects are pieces of clothing of Fashion-MNIST, backgrounds are crops of two photographs that ship with
scikit-learn. Every scene has one to three objects of five categories, 14 to 30 pixels large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from monochord.data.dataset import DataError, Split

SIDE = 64
CATEGORIES = ("shirt", "pair of trousers", "sneaker", "bag", "dress")
CLASSES = (0, 1, 7, 8, 3)  # of Fashion-MNIST
BACKGROUNDS = {  # photograph, top, left, bottom, right
    "sky": ("china.jpg", 0, 340, 190, 560),
    "a temple": ("china.jpg", 60, 90, 380, 330),
    "a lake": ("china.jpg", 210, 350, 295, 545),
    "trees": ("china.jpg", 300, 330, 427, 580),
    "leaves": ("flower.jpg", 60, 0, 400, 160),
    "petals": ("flower.jpg", 110, 190, 330, 420),
}
SMALL, LARGE = 14, 30  # pixels
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Stimuli:
    """What is shown: `images` (n, 64, 64, 3) uint8, and what is known of them.

    `labels` (n, 64, 64) uint8 is 0 on the background and k + 1 on category k, so `labels == k + 1` is the exact
    mask of what is visible; None for pictures without masks. `present` (n, categories) says what is in a picture.
    """

    images: np.ndarray
    present: np.ndarray
    labels: np.ndarray | None = None
    captions: tuple[str, ...] = ()
    categories: tuple[str, ...] = CATEGORIES

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[3] != 3 or self.images.dtype != np.uint8:
            raise DataError(f"images must be uint8 (n, height, width, 3), got {self.images.dtype} {self.images.shape}")
        lengths = {len(self.images), len(self.present), len(self.captions)}
        if len(lengths) != 1 or (self.labels is not None and len(self.labels) != len(self.images)):
            raise DataError(f"{len(self.images)} images, {len(self.present)} labels, {len(self.captions)} captions")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Sequence[int] | np.ndarray) -> Stimuli:
        """The given stimuli, in that order."""
        rows = np.asarray(rows)
        labels = None if self.labels is None else self.labels[rows]
        captions = tuple(self.captions[row] for row in rows.tolist())
        return Stimuli(self.images[rows], self.present[rows], labels, captions, self.categories)

    def split(self) -> Split:
        """Images and captions as columns `image` and `text`."""
        return Split({"image": self.images, "text": list(self.captions), "labels": self.present.astype(np.uint8)})


def pictures(images: np.ndarray, labels: np.ndarray, categories: Sequence[str]) -> Stimuli:
    """Plain pictures with a class label each and no masks, brought to 64 by 64; five classes at most are used."""
    from PIL import Image

    if len(categories) > len(CATEGORIES):
        raise DataError(f"{len(categories)} categories: the simulated brain has areas for {len(CATEGORIES)}")
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    if images.shape[1:3] != (SIDE, SIDE):
        size = SIDE, SIDE
        images = np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BILINEAR)) for i in images])
    present = np.asarray(labels)[:, None] == np.arange(len(CATEGORIES))
    names = (*categories, *CATEGORIES[len(categories) :])
    return Stimuli(images, present, None, tuple(f"a {categories[label]}" for label in labels), names)


def scenes(count: int, seed: int = 0, split: str = "train", start: int = 0) -> Stimuli:
    """The scenes number `start` to `start + count`; scene i depends on `seed`, `split` and i alone.

    `split` names the part of Fashion-MNIST that the objects come from.
    """
    crops, grounds = _objects(split), list(_backgrounds().items())
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    labels = np.zeros((count, SIDE, SIDE), np.uint8)
    present = np.zeros((count, len(CATEGORIES)), bool)
    captions = []
    for i in range(count):
        rng = np.random.default_rng((seed, split == "test", start + i))
        name, photograph = grounds[rng.integers(len(grounds))]
        top, left = (int(rng.integers(length - SIDE + 1)) for length in photograph.shape[:2])
        images[i] = photograph[top : top + SIDE, left : left + SIDE]
        placed: list[Placed] = []
        for _ in range(rng.integers(1, 4)):
            placed.append(_place(rng, placed))
            _paint(rng, images[i], labels[i], crops[placed[-1].category], placed[-1])
        for k in range(len(CATEGORIES)):
            present[i, k] = bool((labels[i] == k + 1).any())
        captions.append(_caption(placed, name))
    return Stimuli(images, present, labels, tuple(captions))


@dataclass(frozen=True)
class Placed:
    """An object of a scene: its category, and its square in pixels."""

    category: int
    top: int
    left: int
    size: int

    @property
    def words(self) -> str:
        third = (LARGE - SMALL) / 3
        word = "small" if self.size < SMALL + third else "large" if self.size > LARGE - third else "medium"
        return f"a {word} {CATEGORIES[self.category]}"

    def overlap(self, other: Placed) -> int:
        height = min(self.top + self.size, other.top + other.size) - max(self.top, other.top)
        width = min(self.left + self.size, other.left + other.size) - max(self.left, other.left)
        return max(0, height) * max(0, width)


def _place(rng: np.random.Generator, placed: list[Placed]) -> Placed:
    """A place that hides nothing of the others, or of twelve tries the one that hides least."""
    category, size = int(rng.integers(len(CATEGORIES))), int(rng.integers(SMALL, LARGE + 1))
    tries = []
    for top, left in rng.integers(SIDE - size + 1, size=(12, 2)).tolist():
        tries.append(Placed(category, top, left, size))
        if not any(tries[-1].overlap(other) for other in placed):
            return tries[-1]
    return min(tries, key=lambda place: sum(place.overlap(other) for other in placed))


def _paint(rng: np.random.Generator, image: np.ndarray, labels: np.ndarray, crops: np.ndarray, place: Placed) -> None:
    """Put a random crop of the category there, in a random tint, and note its mask."""
    from PIL import Image

    crop = Image.fromarray(crops[rng.integers(len(crops))])
    crop = crop.resize((place.size, place.size), Image.Resampling.BILINEAR)
    grey = np.asarray(crop, np.float32)[..., None] / 255
    tint = 60 + 195 * rng.random(3, np.float32)
    where = slice(place.top, place.top + place.size), slice(place.left, place.left + place.size)
    mask = grey[..., 0] > 0.12
    image[where][mask] = (grey * tint)[mask]
    labels[where][mask] = place.category + 1


def _caption(placed: list[Placed], background: str) -> str:
    """The template: the first object with its size, where it is from the second, and the background."""
    if len(placed) == 1:
        return f"{placed[0].words} in front of {background}"
    first, second = placed[:2]
    down = second.top + second.size / 2 - first.top - first.size / 2
    right = second.left + second.size / 2 - first.left - first.size / 2
    relation = RELATIONS[2 * (abs(down) >= abs(right)) + ((down if abs(down) >= abs(right) else right) < 0)]
    return f"{placed[0].words} {relation} a {CATEGORIES[second.category]} in front of {background}"


@cache
def all_captions() -> tuple[str, ...]:
    """Every caption that a scene can have."""
    firsts = [Placed(k, 0, 0, size).words for k in range(len(CATEGORIES)) for size in (SMALL, 22, LARGE)]
    seconds = ["", *(f" {relation} a {category}" for relation in RELATIONS for category in CATEGORIES)]
    return tuple(f"{a}{b} in front of {ground}" for a in firsts for b in seconds for ground in BACKGROUNDS)


@cache
def _objects(split: str) -> tuple[np.ndarray, ...]:
    """Grey crops (n, 28, 28) of each category; those of two splits are different garments."""
    from monochord.data.sets.fashion_mnist import ENTRIES

    garments = ENTRIES[0].open()[split]
    labels = np.asarray(garments["label"])
    return tuple(np.asarray(garments["image"][np.flatnonzero(labels == label)[:800]]) for label in CLASSES)


@cache
def _backgrounds() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_sample_image

    return {
        name: load_sample_image(photograph)[top:bottom, left:right]
        for name, (photograph, top, left, bottom, right) in BACKGROUNDS.items()
    }
