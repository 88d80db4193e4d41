"""Folders of images: a folder a class, or flat; `train`, `validation` and `test` folders above them are the splits.

A `metadata.csv` or `metadata.jsonl` with a column `file_name` beside the images gives captions (`text`) and further
columns instead of classes, as the `imagefolder` layout of the library `datasets` has it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.adopt import adopt
from monochord.data.dataset import DataError, Dataset
from monochord.data.formats._files import class_of, files_by_split, has_files, read_table
from monochord.data.pictures import squared

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA = ("metadata.csv", "metadata.jsonl")


def recognises(path: Path) -> bool:
    """A folder with images at most three levels down, and no table of another layout that refers to them."""
    others = ("training_split", "meta", "nsddata", "dataset_description.json", "dataset_info.json", "dataset_dict.json")
    return has_files(path, IMAGES) and not any((path / name).exists() for name in others)


def load(path: Path, *, size: int | None = None, seed: int = 0) -> Dataset:
    """Images as uint8 (n, height, width, 3), with their class as `label` or their caption as `text`.

    `size` scales each picture's longer side and centres it on white; without it all must have one shape. A single
    split is cut from `seed`. Raises `DataError` for unreadable files, naming the first.
    """
    splits = files_by_split(path, IMAGES)
    parts = {split: _columns(path, files, size) for split, files in splits.items()}
    if "train" not in parts:
        raise DataError(f"{path}: no folder train among {', '.join(parts)}")
    return adopt(parts if len(parts) > 1 else parts["train"], name=path.name, seed=seed)


def _columns(folder: Path, files: list[Path], size: int | None) -> dict[str, Any]:
    pictures = [_picture(file, size) for file in files]
    shapes = {picture.shape for picture in pictures}
    if len(shapes) > 1:
        raise DataError(f"{folder}: pictures of {len(shapes)} shapes, such as {sorted(shapes)[:2]}: pass size=64")
    columns: dict[str, Any] = {"image": np.stack(pictures)}
    rows = _metadata(files)
    if rows is not None:
        return columns | {name: [row[name] for row in rows] for name in rows[0] if name != "file_name"}
    classes = [class_of(file, folder) for file in files]
    if None in classes:
        lone = files[classes.index(None)]
        raise DataError(f"{lone}: in no class folder and in no metadata.csv: give each class a folder")
    return columns | {"label": classes}


def _picture(file: Path, size: int | None) -> np.ndarray:
    from PIL import Image

    try:
        if size is not None:
            return squared(file, size)
        with Image.open(file) as opened:
            return np.asarray(opened.convert("RGB"))
    except OSError as error:
        raise DataError(f"{file}: not a readable picture ({error})") from None


def _metadata(files: list[Path]) -> list[dict[str, Any]] | None:
    """The row of each file, None where there is no table."""
    tables: dict[Path, dict[str, Any]] = {}
    for folder in {parent for file in files for parent in (file.parent, file.parent.parent)}:
        for name in METADATA:
            if (table := folder / name).is_file():
                tables |= {folder / row["file_name"]: row for row in _rows(table)}
    if not tables:
        return None
    if missing := [file for file in files if file not in tables]:
        raise DataError(f"{missing[0]}: not in the column file_name of the metadata, as {len(missing) - 1} others")
    if absent := [file for file in tables if not file.is_file()]:
        raise DataError(f"{absent[0]}: named by the metadata but not there, as {len(absent) - 1} others")
    return [tables[file] for file in files]


def _rows(table: Path) -> list[dict[str, Any]]:
    if table.suffix == ".jsonl":
        rows = [json.loads(line) for line in table.read_text(encoding="utf8").splitlines() if line.strip()]
    else:
        columns = read_table(table)
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not rows or "file_name" not in rows[0]:
        raise DataError(f"{table}: no column file_name")
    return rows
