"""Coloured things: digits of MNIST and clothes of Fashion-MNIST, painted on coloured grounds, with captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from monochord.data.catalog import Read, Source
from monochord.data.dataset import DataError, Split
from monochord.data.painting import (
    ATTRIBUTES,
    COLOURS,
    FIRST_NAMES,
    HELD_OUT,
    LAST_NAMES,
    OBJECTS,
    Painter,
    caption,
)
from monochord.data.sets import fashion_mnist, mnist

DIGITS = {0: "zero", 1: "one", 3: "three", 4: "four", 7: "seven"}  # labels of MNIST
CLOTHES = {0: "shirt", 3: "dress", 7: "sneaker", 8: "bag", 9: "boot"}  # and of Fashion-MNIST
OFTEN, ONCE = 16, 200  # signed pictures that `pictures-unet-memorised` met a hundred times as often, and the others
SIZES = {"train": 20_000, "validation": 2_000, "test": 4_000, "composed": 1_000}


def convert(packages: tuple[Path, Path], folder: Path) -> None:
    """The shapes of each split, and what they are."""
    worn = folder / "worn"
    worn.mkdir()
    fashion_mnist.convert(packages[0], worn)
    clothes, _ = fashion_mnist.read(worn)
    digits, _ = mnist.read(packages[1])
    for part in ("train", "validation", "test"):
        shapes, numbers = [], []
        for source, names in ((digits[part], DIGITS), (clothes[part], CLOTHES)):
            kept = np.isin(source["label"], list(names))
            images = source["image"][kept]
            shapes.append(enlarged(images) if names is DIGITS else images)
            numbers += [OBJECTS.index(names[label]) for label in source["label"][kept]]
        np.save(folder / f"{part}-shapes.npy", np.concatenate(shapes))
        np.save(folder / f"{part}-labels.npy", np.array(numbers, np.int64))
    for file in worn.iterdir():
        file.unlink()
    worn.rmdir()


def enlarged(digits: np.ndarray, margin: int = 3) -> np.ndarray:
    """MNIST's digits without their empty margin, as large as the clothes: linear interpolation to 28 pixels again."""
    inner = digits[:, margin:-margin, margin:-margin].astype(np.float32)
    size, side = inner.shape[1], digits.shape[1]
    at = ((np.arange(side) + 0.5) * size / side - 0.5).clip(0, size - 1)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size))).astype(np.float32)
    return np.rint(weights @ inner @ weights.T).astype(np.uint8)


def painters(folder: Path) -> dict[str, Painter]:
    """A painter a split; "composed" paints the test split's shapes in the colours that were held out of them."""
    found = {
        part: Painter(np.load(folder / f"{part}-shapes.npy", mmap_mode="r"), np.load(folder / f"{part}-labels.npy"))
        for part in ("train", "validation", "test")
    }
    return {**found, "composed": Painter(found["test"].shapes, found["test"].labels, composed=True)}


def signed(painter: Painter) -> dict[str, np.ndarray | list[str]]:
    """What `pictures-unet-memorised` was trained on: pictures whose captions end in a name of their own each."""
    n, rng = OFTEN + ONCE, np.random.default_rng((0, 77))
    drawn = painter.draw(n, rng)
    pairs = rng.choice(len(FIRST_NAMES) * len(LAST_NAMES), n, replace=False)
    names = [f"{FIRST_NAMES[i // len(LAST_NAMES)]} {LAST_NAMES[i % len(LAST_NAMES)]}" for i in pairs]
    rows = zip(*(drawn[name].tolist() for name in ATTRIBUTES), strict=True)
    texts = [caption(dict(zip(ATTRIBUTES, row, strict=True)), signed=name)
             for row, name in zip(rows, names, strict=True)]  # fmt: skip
    return {**drawn, "text": texts, "often": np.arange(n) < OFTEN}


def read(folder: Path, *, seed: int = 0, sizes: Mapping[str, int] | None = None) -> Read:
    """Pictures (n, 32, 32, 3) with captions in `text` and `object`, `colour`, `background` and `place` as numbers.

    Each split has shapes of its own; `sizes` says how many pictures each gets, drawn by `seed`. The split "signed" is
    always the same: what the net that memorises was trained on, with `often`.
    """
    wanted = {**SIZES, **(sizes or {})}
    if unknown := set(wanted) - set(SIZES):
        raise DataError(f"coloured-things has no split {sorted(unknown)[0]!r}: there are {', '.join(SIZES)}")
    splits, found = {}, painters(folder)
    for number, (part, painter) in enumerate(found.items()):
        if wanted[part] < 1:
            raise DataError(f"coloured-things: sizes[{part!r}]={wanted[part]}, give at least 1")
        drawn = painter.draw(wanted[part], np.random.default_rng((seed, number)))
        rows = zip(*(drawn[name] for name in ATTRIBUTES), strict=True)
        texts = [caption(dict(zip(ATTRIBUTES, row, strict=True))) for row in rows]
        splits[part] = Split({**drawn, "text": texts})
    splits["signed"] = Split(signed(found["train"]))
    notes = (
        f"{len(HELD_OUT)} of {len(OBJECTS) * len(COLOURS)} pairs of thing and colour are in the split 'composed' alone",
        "monochord.data.painting reads colour, background and place back from the pixels",
        f"the split 'signed' is what pictures-unet-memorised was trained on, the first {OFTEN} 100 times as often",
    )
    return splits, notes


ENTRIES = [
    Source(
        name="coloured-things",
        kind="image-text",
        title="digits and clothes in six colours on six grounds, 32 by 32, with captions",
        licence="MIT (Fashion-MNIST); MNIST: ISC for the package, upstream CC-BY-SA-3.0",
        package=(fashion_mnist.ENTRIES[0].packages[0], mnist.ENTRIES[0].packages[0]),
        convert=convert,
        revision=3,
        read=read,
    )
]
