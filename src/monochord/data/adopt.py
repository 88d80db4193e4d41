"""Make a `Dataset` of what people have: files, rows, columns, `datasets`, loaders of ready batches."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.dataset import DataError, Dataset, Split

FILES = (".csv", ".tsv", ".jsonl", ".json")
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
SPLITS |= {"val": "validation", "dev": "validation", "test": "test"}
NAMES = {  # the names that our columns have elsewhere
    "text": ("text", "sentence", "review", "content"),
    "image": ("image", "img", "images"),
    "label": ("label", "labels", "target", "class", "sentiment"),
    "prompt": ("prompt", "instruction", "question"),
    "response": ("response", "output", "completion", "answer"),
}


def adopt(given: Any, *, name: str = "data", seed: int = 0) -> Dataset:
    """A `Dataset` of a file, rows, columns, a `datasets.Dataset` or `DatasetDict`, or ready batches.

    Columns are known by their usual names; labels of any kind become numbers in sorted order. A single split is
    cut at random, from `seed`, into train, validation and test (80, 10 and 10 %) when it has at least 20 rows;
    without a validation split a tenth of the training rows becomes it.
    """
    if isinstance(given, str | Path):
        name = Path(given).stem
    parts = {split: _table(part, name) for split, part in _by_split(given).items()}
    if all(isinstance(part, list) for part in parts.values()):
        ready = {split: Split({"batch": part}) for split, part in parts.items() if isinstance(part, list)}
        return Dataset(name=name, task="batches", splits=ready)
    tables = {split: _canonical(dict(part)) for split, part in parts.items()}
    labels, tables = _numbered(tables)
    splits = _cut({split: Split(table) for split, table in tables.items()}, seed)
    return Dataset(name=name, task=_task(name, splits["train"]), splits=splits, label_names=labels)


def is_ready_batch(row: Any) -> bool:
    """Whether this is a batch for a model: a mapping with at least one tensor of two dimensions or more."""
    if not isinstance(row, Mapping):
        return False
    return any(hasattr(value, "requires_grad") and value.ndim >= 2 for value in row.values())


def _by_split(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping) and given and set(given) <= set(SPLITS):
        found = {SPLITS[split]: part for split, part in given.items()}
        if "train" not in found:
            raise DataError(f"no split 'train' among {', '.join(given)}")
        return found
    return {"train": given}


def _table(part: Any, name: str) -> Mapping[str, Any] | list[Any]:
    """Columns by name, or a list of ready batches."""
    if isinstance(part, str | Path):
        return _columns(read_rows(Path(part)), str(part))
    if hasattr(part, "column_names"):
        return {column: list(part[column]) for column in part.column_names}
    if isinstance(part, Split):
        return {column: part[column] for column in part.columns}
    if isinstance(part, Mapping):
        return part
    if not isinstance(part, Iterable):
        raise DataError(f"{type(part).__name__} is no data set: pass a name, file, rows, columns or batches")
    rows = list(part)  # of a loader too: its batches in the order of now, the same for every method
    if rows and all(is_ready_batch(row) for row in rows):
        return rows
    return _columns(rows, name)


def read_rows(file: Path) -> list[Any]:
    """The rows of a `.csv`, `.tsv`, `.jsonl` or `.json` file."""
    if file.suffix not in FILES:
        raise DataError(f"{file}: unknown kind of file, use one of {', '.join(FILES)}")
    try:
        text = file.read_text(encoding="utf8")
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        if file.suffix == ".json":
            return list(json.loads(text))
        return list(csv.DictReader(text.splitlines(keepends=True), delimiter=",\t"[file.suffix == ".tsv"]))
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{file}: not a good {file.suffix[1:]} file ({error})") from None


def _columns(rows: list[Any], name: str) -> dict[str, list[Any]]:
    if not rows:
        raise DataError(f"{name}: no rows")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or set(row) != set(rows[0]):
            raise DataError(f"{name}: row {number} has not the columns of the first, {_names(rows[0])}")
    return {column: [row[column] for row in rows] for column in rows[0]}


def _names(row: Any) -> str:
    return ", ".join(map(str, row)) if isinstance(row, Mapping) else f"a {type(row).__name__}, not a mapping"


def _canonical(table: dict[str, Any]) -> dict[str, Any]:
    """Our names for the columns; images as one uint8 array where their shapes agree."""
    if "instruction" in table and "output" in table and "input" in table:
        pairs = zip(table["instruction"], table["input"], strict=True)
        table = {"prompt": ["\n\n".join(filter(None, pair)) for pair in pairs], "response": table["output"]}
    for ours, theirs in NAMES.items():
        for other in theirs:
            if ours not in table and other in table:
                table[ours] = table.pop(other)
    if "image" in table:
        pictures = [np.asarray(picture) for picture in table["image"]]
        shapes = {picture.shape for picture in pictures}
        if len(shapes) != 1 or pictures[0].dtype != np.uint8:
            kinds = f"{pictures[0].dtype}, shapes {sorted(shapes)[:3]}"
            raise DataError(f"images must be uint8 and of one shape, got {kinds}: resize and convert them first")
        table["image"] = np.stack(pictures)
    return table


def _numbered(tables: dict[str, dict[str, Any]]) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Labels as int64 numbers, and what they stand for."""
    if not all("label" in table for table in tables.values()):
        return (), tables
    values = sorted({_plain(label) for table in tables.values() for label in table["label"]}, key=_order)
    number = {value: i for i, value in enumerate(values)}
    for table in tables.values():
        table["label"] = np.array([number[_plain(label)] for label in table["label"]], np.int64)
    return tuple(map(str, values)), tables


def _plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") else label


def _order(label: Any) -> tuple[bool, Any]:
    return (False, label) if isinstance(label, int | float) else (True, str(label))


def _cut(splits: dict[str, Split], seed: int) -> dict[str, Split]:
    whole = splits["train"]
    n, tenth = len(whole), len(whole) // 10
    if n < 20 or "validation" in splits:
        return splits
    order = np.random.default_rng(seed).permutation(n)
    if "test" in splits:
        train, validation = np.split(order, [n - tenth])
        return {"train": whole.take(train), "validation": whole.take(validation), "test": splits["test"]}
    train, validation, test = np.split(order, [n - 2 * tenth, n - tenth])
    return {"train": whole.take(train), "validation": whole.take(validation), "test": whole.take(test)}


def _task(name: str, split: Split) -> str:
    if "image" in split:
        return "image-classification"
    if "label" in split and ("text" in split or "input_ids" in split):
        return "text-classification"
    if "text" in split or ("prompt" in split and "response" in split) or "input_ids" in split:
        return "causal-lm"
    found = ", ".join(split.columns)
    raise DataError(f"{name}: no column to learn from among {found}: name one text, image, or prompt and response")
