"""Optical digits: 1,797 grey pictures of handwritten digits, 8 by 8, as shipped with scikit-learn."""

from __future__ import annotations

import numpy as np

from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split


def read(folder: None, *, seed: int = 0) -> Read:
    """Random splits of 1,297, 200 and 300 from `seed`; the 17 grey levels are spread over 0 to 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    check(len(digits.target), 1_797, "digits")
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(images))
    parts = zip(("train", "validation", "test"), np.split(order, [1_297, 1_497]), strict=True)
    splits = {
        name: Split({"image": images[rows], "label": digits.target[rows].astype(np.int64)}) for name, rows in parts
    }
    return splits, ("the writers are not stated, so the same hand may be in two splits",)


ENTRIES = [
    Source(
        name="digits",
        kind="image-classification",
        title="1,797 handwritten digits, 8 by 8",
        licence="CC-BY-4.0 (UCI), BSD-3-Clause (scikit-learn)",
        package=None,
        read=read,
        label_names=tuple("0123456789"),
    )
]
