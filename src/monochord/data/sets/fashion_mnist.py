"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 by 28, in ten classes.

From "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", August 25, 2017.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split

FILES = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
VALIDATION = 5_000


def convert(package: Path, folder: Path) -> None:
    """The idx files as arrays that can be memory-mapped."""
    source = package / "usr/share/datasets/fashion-mnist"
    for split, (prefix, count) in FILES.items():
        with gzip.open(source / f"{prefix}-images-idx3-ubyte.gz") as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        with gzip.open(source / f"{prefix}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
        check(len(images), count, f"{split} images")
        check(len(labels), count, f"{split} labels")
        np.save(folder / f"{split}-images.npy", images)
        np.save(folder / f"{split}-labels.npy", labels)


def read(folder: Path, *, validation: int = VALIDATION) -> Read:
    """The official test split; the last `validation` of the training images are held out for choices."""
    parts = {}
    for split, (_, count) in FILES.items():
        images = np.load(folder / f"{split}-images.npy", mmap_mode="r")
        labels = np.load(folder / f"{split}-labels.npy")
        check(len(images), count, f"{split} images")
        for label in range(10):
            check(int((labels == label).sum()), count // 10, f"{split} images of class {label}")
        parts[split] = images, labels
    images, labels = parts["train"]
    cut = len(images) - validation
    splits = {"train": Split({"image": images[:cut], "label": labels[:cut]})}
    if validation:
        splits["validation"] = Split({"image": images[cut:], "label": labels[cut:]})
    splits["test"] = Split({"image": parts["test"][0], "label": parts["test"][1]})
    return splits, (f"the last {validation} of the 60,000 training images are the validation split",)


ENTRIES = [
    Source(
        name="fashion-mnist",
        kind="image-classification",
        title="70,000 grey pictures of clothes, 28 by 28",
        licence="MIT",
        package=Package(
            "debian",
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            size=30_900_652,
            members=("usr/share/datasets/fashion-mnist/*.gz", "*copyright"),
        ),
        convert=convert,
        read=read,
        label_names=(
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
    )
]
