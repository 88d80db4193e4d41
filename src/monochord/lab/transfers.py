"""Picture tasks that our shipped picture nets were not trained on, for papers that carry such a net to a new task.

Of three kinds, as benchmarks of transfer have them: other pictures ("digits"), the same things in another hand
("twitter"), and a question of geometry ("turned").
"""

from __future__ import annotations

from functools import cache

import numpy as np

from monochord.data import DataError, Dataset, Split, data

TRANSFERS = ("digits", "twitter", "turned")
TURNS = tuple(f"{turn * 90} degrees{mirrored}" for mirrored in ("", ", mirrored") for turn in range(4))


@cache
def transfer(name: str) -> Dataset:
    """A task by its name in `TRANSFERS`: MNIST, the categories of Twitter's emoji, or how clothes are turned.

    Twitter's emoji are split anew, so that there are 600 to test on. Of the clothes 3,000 are used to train.
    """
    if name == "digits":
        return data("mnist")
    if name == "twitter":
        return _split_anew(data("emoji", style="twitter"), validation=300, test=600)
    if name == "turned":
        return _turned(data("fashion-mnist"), train=3000, validation=600, test=2000)
    raise DataError(f"{name!r} is no transfer: use one of {', '.join(TRANSFERS)}")


def _split_anew(given: Dataset, validation: int, test: int) -> Dataset:
    images, labels = (np.concatenate([np.asarray(s[c]) for s in given.splits.values()]) for c in ("image", "label"))
    order = np.random.default_rng(0).permutation(len(labels))
    rows = np.split(order, [validation, validation + test])
    named = zip(("validation", "test", "train"), rows, strict=True)
    return _dataset(
        given.name, {n: Split({"image": images[r], "label": labels[r]}) for n, r in named}, given.label_names
    )


def _turned(given: Dataset, **sizes: int) -> Dataset:
    splits = {}
    for part, size in sizes.items():
        labels = np.random.default_rng((0, size)).integers(len(TURNS), size=size)
        images = [
            np.rot90(np.fliplr(image) if label >= 4 else image, label % 4)
            for image, label in zip(given[part]["image"][:size], labels, strict=True)
        ]
        splits[part] = Split({"image": np.stack(images), "label": labels})
    return _dataset(f"{given.name}, turned", splits, TURNS)


def _dataset(name: str, splits: dict[str, Split], label_names: tuple[str, ...]) -> Dataset:
    return Dataset(name, "image-classification", splits, label_names)
