"""Tables: a Parquet file, or a folder of Parquet, CSV or JSON Lines files named after their splits.

`train.csv`, `test-00000-of-00002.parquet` and a folder `data` above them are understood. Columns of pictures, as the
library `datasets` stores them (a struct of `bytes` and `path`), become pictures.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.adopt import FILES, SPLITS, adopt, read_rows
from monochord.data.dataset import DataError, Dataset
from monochord.data.formats._files import need

PARQUET = ".parquet"


def recognises(path: Path) -> bool:
    """A Parquet file, or a folder (or its `data`) with tables named after splits; no folder of robots' episodes."""
    if path.is_file():
        return path.suffix == PARQUET
    return path.is_dir() and not (path / "meta").is_dir() and bool(_files(path))


def load(path: Path, *, seed: int = 0) -> Dataset:
    """The table with columns known by their usual names, as `adopt` has them; several files of a split are joined."""
    if path.is_file():
        return adopt(_read([path]), name=path.stem, seed=seed)
    splits = {split: _read(files) for split, files in _files(path).items()}
    if "train" not in splits:
        raise DataError(f"{path}: no table of a split train among {', '.join(splits)}")
    return adopt(splits, name=path.name, seed=seed)


def _files(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        for file in sorted(place.glob("*")) if place.is_dir() else ():
            split = re.split(r"[-_.]", file.name.lower())[0]
            if file.suffix in (*FILES, PARQUET) and split in SPLITS:
                found.setdefault(SPLITS[split], []).append(file)
    return found


def _read(files: list[Path]) -> dict[str, list[Any]]:
    """The rows of several files as columns."""
    parts = [_parquet(file) if file.suffix == PARQUET else _rows(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if set(part) != set(parts[0]):
            raise DataError(f"{file}: columns {', '.join(part)}, but {files[0].name} has {', '.join(parts[0])}")
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _parquet(file: Path) -> dict[str, list[Any]]:
    parquet = need("pyarrow.parquet", "data", file)
    try:
        table = parquet.read_table(file)
    except Exception as error:
        raise DataError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    columns = table.to_pydict()
    for name, values in columns.items():
        if values and isinstance(values[0], dict) and set(values[0]) >= {"bytes", "path"}:
            columns[name] = [_picture(file, value) for value in values]
    return columns


def _picture(file: Path, value: dict[str, Any]) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(value["bytes"])) as opened:
            return np.asarray(opened.convert("L" if opened.mode in ("1", "L") else "RGB"))
    except (OSError, TypeError) as error:
        raise DataError(f"{file}: the picture {value['path']!r} is not readable ({error})") from None


def _rows(file: Path) -> dict[str, list[Any]]:
    rows = read_rows(file)
    if not rows:
        raise DataError(f"{file}: no rows")
    return {name: [row.get(name) for row in rows] for name in rows[0]}
