"""Pictures with spurious cues: the background's texture and the border's colour, which mostly agree with the class.

The cues say the class to a model that would rather not look at the thing itself; at a rate of one over the number of
classes they say nothing. For what pretraining gets wrong and what fine-tuning gets wrong, apart and together:

    data = spurious_images(mc.data("fashion-mnist"), pretraining={"texture": 0.95}, finetuning={"border": 0.9})
    data["pretraining"], data["train"], data["validation"], data["test"], data["ood"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from monochord.data.dataset import DataError, Dataset, Split

SIDE, EDGE = 32, 2
CUES = ("texture", "border")
GROUND, SWING = 96.0, 64.0  # the background's mean and how far a texture goes from it, of 255
SATURATION, JITTER = 1.0, 12.0  # how far a border goes from grey to its hue, and the spread of its colour
SIZES = {"pretraining": 20_000, "train": 1000, "validation": 500, "test": 2000}


def spurious_images(
    base: Dataset,
    *,
    pretraining: Mapping[str, float],
    finetuning: Mapping[str, float],
    sizes: Mapping[str, int] = SIZES,
    seed: int = 0,
) -> Dataset:
    """Splits "pretraining", "train", "validation", "test" and "ood" from the grey pictures of `base`.

    `pretraining` and `finetuning` are rates by cue, "texture" or "border": how often the cue agrees with the class; a
    cue that is not named is not there. "test" has the cues of fine-tuning, "ood" the same things with every cue there
    and random. Rows of `base["train"]` are drawn by the seed and used once, those of `base["test"]` are the first.
    Raises `DataError` for other cues or rates, or when there are too few rows.
    """
    drawn = [sizes[name] for name in ("pretraining", "train", "validation")]
    if sum(drawn) > len(base["train"]) or sizes["test"] > len(base["test"]):
        raise DataError(f"{base.name} has {len(base['train'])} and {len(base['test'])} rows: too few for {dict(sizes)}")
    order = np.random.default_rng((seed, 17)).permutation(len(base["train"]))
    parts = [base["train"].take(rows) for rows in np.split(order, np.cumsum(drawn))[:3]]
    test = base["test"].take(np.arange(sizes["test"]))
    chance = dict.fromkeys(CUES, 1 / base.n_classes)
    plan = {
        "pretraining": (parts[0], pretraining),
        "train": (parts[1], finetuning),
        "validation": (parts[2], finetuning),
        "test": (test, finetuning),
        "ood": (test, chance),
    }
    splits = {
        name: with_cues(part, base.n_classes, rates, seed=5 * seed + number)
        for number, (name, (part, rates)) in enumerate(plan.items())
    }
    notes = (f"pretraining: {_told(pretraining)}; fine-tuning: {_told(finetuning)}; ood: every cue is random",)
    return Dataset(f"{base.name} with cues", "image-classification", splits, base.label_names,
                   licence=base.licence, source=base.source, notes=notes)  # fmt: skip


def with_cues(split: Split, n_classes: int, rates: Mapping[str, float], *, seed: int = 0) -> Split:
    """The grey pictures of `split` (n, h, w), of at most 28 a side, in colour with cues: `image` (n, 32, 32, 3), uint8.

    `rates` says of each cue, "texture" or "border", how often it is that of the row's class; else it is any other
    class's. Columns "label", "texture" and "border" are classes; -1 where a cue is not there. Raises `DataError` for
    other cues, rates outside 0 to 1 and other pictures.
    """
    for cue, rate in rates.items():
        if cue not in CUES or not 0 <= rate <= 1:
            raise DataError(f"{cue}={rate}: give rates from 0 to 1 of {' and '.join(CUES)}")
    grey, labels = np.asarray(split["image"]), np.asarray(split["label"], dtype=np.int64)
    if grey.ndim != 3 or max(grey.shape[1:]) > SIDE - 2 * EDGE:
        raise DataError(f"pictures must be (n, height, width), at most {SIDE - 2 * EDGE} a side, got {grey.shape}")
    rng = np.random.default_rng((seed, 19))
    cues = {cue: _agreeing(labels, n_classes, rates.get(cue), rng) for cue in CUES}
    ground = np.full((len(labels), SIDE, SIDE), GROUND, np.float32)
    if "texture" in rates:
        ground += SWING * textures(cues["texture"], n_classes, rng)
    thing = np.zeros((len(labels), SIDE, SIDE), np.float32)
    top, left = ((SIDE - side) // 2 for side in grey.shape[1:])
    thing[:, top : top + grey.shape[1], left : left + grey.shape[2]] = grey
    opaque = np.clip(thing / 64, 0, 1)
    image = np.repeat((opaque * thing + (1 - opaque) * ground)[..., None], 3, axis=3)
    colours = np.full((len(labels), 3), GROUND, np.float32)
    if "border" in rates:
        colours += SATURATION * (hues(n_classes)[cues["border"]] - GROUND)
        colours += JITTER * rng.standard_normal((len(labels), 3), np.float32)
    frame = np.ones((SIDE, SIDE), bool)
    frame[EDGE:-EDGE, EDGE:-EDGE] = False
    image[:, frame] = colours[:, None]
    return Split({"image": np.rint(image.clip(0, 255)).astype(np.uint8), "label": labels, **cues})


def textures(numbers: np.ndarray, n_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Gratings (n, 32, 32) from -1 to 1: a class has a direction and one of two widths, the phase is random."""
    directions = math.ceil(n_classes / 2)
    angle = math.pi * (numbers % directions) / directions
    turns = np.where(numbers < directions, 0.25, 0.14) * 2 * math.pi  # a pixel
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    phase = rng.uniform(0, 2 * math.pi, len(numbers))
    return np.sin(turns[:, None, None] * along + phase[:, None, None]).astype(np.float32)


def hues(n_classes: int) -> np.ndarray:
    """Colours (n_classes, 3), from 0 to 255, evenly around the wheel."""
    turn = np.arange(n_classes)[:, None] / n_classes + np.array([0.0, 2 / 3, 1 / 3])
    return (255 * np.clip(np.abs(6 * (turn % 1) - 3) - 1, 0, 1)).astype(np.float32)


def _agreeing(labels: np.ndarray, n_classes: int, rate: float | None, rng: np.random.Generator) -> np.ndarray:
    """Each row's own class at `rate`, else any other; -1 without a rate."""
    if rate is None:
        return np.full(len(labels), -1)
    other = (labels + rng.integers(1, n_classes, len(labels))) % n_classes
    return np.where(rng.random(len(labels)) < rate, labels, other)


def _told(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{cue} agrees with the class in {rate:.0%}" for cue, rate in rates.items()) or "no cue"
