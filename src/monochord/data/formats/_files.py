"""What several layouts need: optional libraries, tables of tab-separated text, folders of files by class and split."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.adopt import SPLITS
from monochord.data.dataset import DataError


def need(library: str, extra: str, what: object) -> Any:
    """An optional library, or a `DataError` that says how to install it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        top = library.split(".")[0]
        lacking = top if error.name in (None, library, top) else f"{top} (which lacks {error.name})"
        raise DataError(f"{what}: this needs {lacking}: pip install 'monochord[{extra}]'") from None


def read_table(file: Path) -> dict[str, list[str]]:
    """A `.tsv` or `.csv` file with a header as columns of text; every column needs a name of its own."""
    header, rows = read_lines(file)
    if twice := {name for name in header if header.count(name) > 1}:
        raise DataError(f"{file}: two columns are called {min(twice)!r}")
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}


def read_lines(file: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a `.tsv` or `.csv` file, all of one length."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            header, *rows = csv.reader(stream, delimiter=",\t"[file.suffix == ".tsv"])
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a readable table ({error})") from None
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"{file}: line {number} has {len(row)} fields, the header {len(header)}")
    return header, rows


def numbers(file: Path, column: str, values: Iterable[str]) -> np.ndarray:
    """A column of numbers, "n/a" as NaN."""
    try:
        return np.array([np.nan if value in ("n/a", "") else float(value) for value in values])
    except ValueError as error:
        raise DataError(f"{file}: column {column} holds no numbers ({error})") from None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a file."""
    try:
        found = json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: a JSON object expected, got a {type(found).__name__}")
    return found


def files_by_split(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Files below a folder by split, in order of names; all are "train" where no folder is named after a split."""
    parts = [(SPLITS[sub.name.lower()], sub) for sub in _folders(folder) if sub.name.lower() in SPLITS]
    found = {
        split: sorted(f for f in part.rglob("*") if f.suffix.lower() in suffixes and f.is_file() and not _hidden(f))
        for split, part in parts or [("train", folder)]
    }
    empty = [split for split, files in found.items() if not files]
    if empty:
        raise DataError(f"{folder}: no {', '.join(suffixes)} file for the split {empty[0]!r}")
    return found


def class_of(file: Path, folder: Path) -> str | None:
    """The name of the folder that a file is in, below the split's; None for files directly in it."""
    parts = file.relative_to(folder).parts[:-1]
    if parts and parts[0].lower() in SPLITS:
        parts = parts[1:]
    return parts[0] if parts else None


def has_files(folder: Path, suffixes: tuple[str, ...], depth: int = 3) -> bool:
    """Whether a folder has files of a kind at most so many levels down."""
    patterns = ("/".join(["*"] * level) for level in range(1, depth + 1))
    return folder.is_dir() and any(
        file.suffix.lower() in suffixes and not _hidden(file) for pattern in patterns for file in folder.glob(pattern)
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not _hidden(sub))


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")
