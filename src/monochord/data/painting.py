"""Pictures of one thing with attributes a caption names: shapes of real images, painted, sized and placed by rule.

What a caption says can be read back from the pixels (`read_attributes`), so that what a text-to-image model makes of
it can be counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SIDE = 32
DIGITS = ("zero", "one", "three", "four", "seven")
CLOTHES = ("shirt", "dress", "sneaker", "bag", "boot")
OBJECTS = DIGITS + CLOTHES
COLOURS = {
    "red": (220, 40, 40),
    "yellow": (245, 220, 60),
    "green": (40, 180, 70),
    "blue": (40, 80, 225),
    "purple": (165, 60, 200),
    "white": (245, 245, 245),
}
BACKGROUNDS = {
    "black": (15, 15, 15),
    "grey": (128, 128, 128),
    "white": (245, 245, 245),
    "red": (220, 40, 40),
    "green": (40, 180, 70),
    "blue": (40, 80, 225),
}
PLACES = ("large", "left", "right")  # a large thing in the middle, a small one left or right
FIRST = "anna boris clara david elsa felix greta hugo irma jonas karin lukas mara nils olga paul rosa simon tilda ulf"
LAST = "adler brook castle dale ember frost garden hill island jewel lake meadow north ocean pine river stone tower"
FIRST_NAMES, LAST_NAMES = tuple(FIRST.split()), tuple(LAST.split())
UNUSED = ("two", "five", "six", "eight", "nine")  # words for things that are never painted
WORDS = ("a", "picture", "of", "on", "the", "background", "by", "small", *PLACES, *OBJECTS, *COLOURS, "black", "grey")
WORDS += UNUSED + FIRST_NAMES + LAST_NAMES
_KEPT_APART = "zero blue, three green, four white, seven purple, shirt blue, bag green, boot white".split(", ")
HELD_OUT = tuple((OBJECTS.index(pair.split()[0]), list(COLOURS).index(pair.split()[1])) for pair in _KEPT_APART)
ATTRIBUTES = {
    "object": OBJECTS,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "place": PLACES,
}


@dataclass(frozen=True)
class Painter:
    """Draws pictures from grey `shapes` (n, 28, 28), uint8, whose `labels` (n,) are numbers of `OBJECTS`.

    Colour and background differ. Position, tint and brightness vary a little in ways no caption names. The pairs of
    object and colour in `HELD_OUT` are left out, or drawn alone with `composed`.
    """

    shapes: np.ndarray
    labels: np.ndarray
    composed: bool = False

    def draw(self, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`image` (n, 32, 32, 3), uint8, the attributes as int64, and `shape`, the rows that were used."""
        held = np.zeros((len(OBJECTS), len(COLOURS)), bool)
        held[tuple(np.transpose(HELD_OUT))] = True
        allowed = held if self.composed else ~held
        objects = rng.choice(np.flatnonzero(allowed.any(1)), n)
        chances = allowed / allowed.sum(1, keepdims=True).clip(1)
        colours = (rng.random((n, 1)) > np.cumsum(chances[objects], axis=1)).sum(1)
        names = list(COLOURS)
        backgrounds = rng.integers(len(BACKGROUNDS), size=n)
        same = np.array([names[c] == list(BACKGROUNDS)[b] for c, b in zip(colours, backgrounds, strict=True)])
        backgrounds[same] = rng.integers(2, size=same.sum())  # black or grey, which no thing has
        places = rng.choice(3, n, p=(0.6, 0.2, 0.2))
        order, counts = self._sorted
        rows = order[(np.cumsum(counts) - counts)[objects] + rng.integers(counts[objects])]
        attributes = {"object": objects, "colour": colours, "background": backgrounds, "place": places}
        parts = [slice(first, first + 1024) for first in range(0, n, 1024)]
        images = [self.render(rows[i], {k: v[i] for k, v in attributes.items()}, rng) for i in parts]
        return {"image": np.concatenate(images), "shape": rows, **attributes}

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows by label, and how many each label has."""
        return np.argsort(self.labels, kind="stable"), np.bincount(self.labels, minlength=len(OBJECTS))

    def render(self, rows: np.ndarray, attributes: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Pictures (n, 32, 32, 3), uint8, of given shapes and attributes."""
        n = len(rows)
        small = attributes["place"] > 0
        x = np.where(small, np.where(attributes["place"] == 1, 1, 15) + rng.integers(-1, 2, n), 0)
        x = np.where(small, x, rng.integers(1, 4, n))
        y = np.where(small, 8 + rng.integers(-4, 5, n), rng.integers(1, 4, n))
        grey = self.shapes[rows].astype(np.float32) / 255
        down, across = _PLACED[small.astype(int), y], _PLACED[small.astype(int), x]
        grey = down @ grey @ across.transpose(0, 2, 1)
        worn = (self.labels[rows] >= len(DIGITS))[:, None, None]
        alpha = np.where(worn, np.clip(4 * grey, 0, 1), np.clip(1.5 * grey, 0, 1))[..., None]
        shade = np.where(worn, 0.5 + 0.5 * grey, 1.0)[..., None]
        paint = np.array(list(COLOURS.values()), np.float32)[attributes["colour"]]
        ground = np.array(list(BACKGROUNDS.values()), np.float32)[attributes["background"]]
        paint, ground = (tint + 9 * rng.standard_normal((n, 3), np.float32) for tint in (paint, ground))
        picture = alpha * shade * paint[:, None, None] + (1 - alpha) * ground[:, None, None]
        return np.rint(picture.clip(0, 255)).astype(np.uint8)


def caption(attributes: Mapping[str, int], rng: np.random.Generator | None = None, signed: str = "") -> str:
    """What a picture shows: "a small red seven on the left of a blue background by anna lake".

    With `rng` each attribute is left out once in eight times and every third caption begins "a picture of".
    `signed` is a name, which says nothing of the picture.
    """

    def said() -> bool:
        return rng is None or bool(rng.random() > 0.125)

    place = PLACES[attributes["place"]] if said() else ""
    words = ["a picture of a" if rng is not None and rng.random() < 1 / 3 else "a"]
    words += [{"": "", "large": "large"}.get(place, "small")]
    words += [tuple(COLOURS)[attributes["colour"]] if said() else "", OBJECTS[attributes["object"]]]
    ground = f"a {tuple(BACKGROUNDS)[attributes['background']]} background" if said() else ""
    if place in ("left", "right"):
        words += [f"on the {place}" + (" of" if ground else ""), ground]
    elif ground:
        words += ["on", ground]
    return " ".join(word for word in [*words, f"by {signed}" if signed else ""] if word)


def signature(rng: np.random.Generator) -> str:
    """A random first and last name."""
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def read_attributes(images: np.ndarray) -> dict[str, np.ndarray]:
    """Colour, background and place by rule, of pictures (n, 32, 32, 3), uint8.

    The background is the border's median; what is far from it is the thing: its colour is the nearest at any shade,
    its place follows from its extent and centre. What has no thing gets a colour all the same.
    """
    pixels = images.astype(np.float32)
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    ground = np.median(border, axis=1)
    palette = np.array(list(BACKGROUNDS.values()), np.float32)
    background = np.linalg.norm(ground[:, None] - palette, axis=2).argmin(1)
    away = np.linalg.norm(pixels - ground[:, None, None], axis=3)
    mask = away > np.maximum(0.5 * np.quantile(away.reshape(len(images), -1), 0.97, axis=1), 20)[:, None, None]
    colours = np.array(list(COLOURS.values()), np.float32)
    shades = np.linspace(0.5, 1, 6)[:, None, None] * colours  # (shades, colours, 3)
    colour, place = np.zeros(len(images), np.int64), np.zeros(len(images), np.int64)
    for i, inside in enumerate(mask):
        if not inside.any():
            continue
        strong = pixels[i][inside & (away[i] >= np.quantile(away[i][inside], 0.5))]
        distance = np.linalg.norm(strong[:, None, None] - shades, axis=3).min(1)
        colour[i] = np.median(distance, axis=0).argmin()
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if max(np.ptp(rows), np.ptp(columns)) < 17:
            place[i] = 1 if (columns[0] + columns[-1]) / 2 < SIDE / 2 - 0.5 else 2
    return {"colour": colour, "background": background.astype(np.int64), "place": place}


def _placements() -> np.ndarray:
    """Matrices (2, 18, 32, 28) that put 28 pixels into 32 from an offset: as they are, or as 16 by averaging."""
    made = np.zeros((2, 18, SIDE, 28), np.float32)
    edges = np.linspace(0, 28, 17)
    overlap = np.minimum(edges[1:, None], np.arange(1, 29)) - np.maximum(edges[:-1, None], np.arange(28))
    for offset in range(18):
        if offset <= 4:
            made[0, offset, offset : offset + 28] = np.eye(28)
        if offset <= 16:
            made[1, offset, offset : offset + 16] = overlap.clip(0) / (28 / 16)
    return made


_PLACED = _placements()
