"""A data set: named splits of columns, what its labels mean, and what a person should know of it.

The columns' names tell what they are: `text`, `image` (uint8), `audio` (`Clips`), `label` (int64 numbers of classes),
`labels` (uint8, rows by labels, several may hold), `prompt` and `response`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Column = Sequence[Any] | np.ndarray
NEEDED = {  # the columns that every split of a task has
    "text-classification": ("label",),  # texts, or token ids
    "image-classification": ("image", "label"),
    "audio-classification": ("audio", "label"),
    "image-multilabel": ("image", "labels"),
    "image-text": ("image", "text"),
    "speech": ("audio", "text"),
    "pairs": ("text", "other"),
    "text-regression": ("text", "value"),
    "multiple-choice": ("question", "options", "answer"),
    "question-answer": ("question", "answer"),
    "preference": ("prompt", "chosen", "rejected"),
    "feedback": ("prompt", "response", "label"),
    "summary": ("text", "summary"),
    "prompts": ("prompt",),
    "code": ("prompt", "solution", "test"),
    "relations": ("subject", "relation", "object"),
}


class DataError(ValueError):
    """Data that can't be used; the message names the set, the reason and the way out."""


class Split:
    """Columns of equal length: numpy arrays, lists of str, or sequences that have a `take(rows)` of their own.

    `split["text"]` is a column, `split[3]` a row as a dict, `len(split)` the number of rows.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"columns need one length, got {lengths or 'no columns'}")
        self._columns = dict(columns)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __contains__(self, column: str) -> bool:
        return column in self._columns

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return {name: column[key] for name, column in self._columns.items()}
        if key not in self._columns:
            raise DataError(f"no column {key!r}: there are {', '.join(self._columns)}")
        return self._columns[key]

    def take(self, rows: Sequence[int] | np.ndarray) -> Split:
        """The given rows, in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        return Split({name: _taken(column, rows) for name, column in self._columns.items()})

    def first(self, n: int) -> Split:
        """The first `n` rows; where there are labels, the first of each class in turn, so classes stay even."""
        if not 0 < n <= len(self):
            raise DataError(f"{n} rows asked of a split of {len(self)}: take 1 to {len(self)}")
        if "label" not in self:
            return self.take(np.arange(n))
        labels = np.asarray(self["label"])
        rank = np.empty(len(labels), dtype=np.int64)  # how many of the same class come before
        for label in np.unique(labels):
            rank[labels == label] = np.arange((labels == label).sum())
        return self.take(np.sort(np.argsort(rank, kind="stable")[:n]))


@dataclass(frozen=True)
class Dataset:
    """Splits of one data set, its task and its story.

    `task` is one of those in `NEEDED`, which says what columns it has, or "causal-lm", "facts" or "batches" (ready
    ones). `notes` are the known flaws and what the loader did. `len` is the number of rows in all splits.
    """

    name: str
    task: str
    splits: Mapping[str, Split]
    label_names: tuple[str, ...] = ()
    title: str = ""
    licence: str = "unstated"
    source: str = "given by the caller"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.splits:
            raise DataError(f"{self.name}: no splits")
        for name, split in self.splits.items():
            if len(split) == 0:
                raise DataError(f"{self.name}: the split {name!r} is empty")
            for column in NEEDED.get(self.task, ()):
                if column not in split:
                    found, lacking = ", ".join(split.columns), "labels" if column == "label" else column
                    raise DataError(f"{self.name}: the split {name!r} has no {lacking}, only {found}")
            if "labels" in split and np.shape(split["labels"]) != (len(split), self.n_classes):
                found = " by ".join(map(str, np.shape(split["labels"])))
                raise DataError(f"{self.name}: labels of {name!r} are {found}, not {len(split)} by {self.n_classes}")
        if self.task.endswith("-classification") and self.n_classes < 2:
            raise DataError(f"{self.name}: all labels are {self.label_names[0]!r}, at least 2 classes are needed")

    def __len__(self) -> int:
        return sum(len(split) for split in self.splits.values())

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise DataError(f"{self.name}: no split {split!r}, there are {', '.join(self.splits)}")
        return self.splits[split]

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 where there are no labels."""
        return len(self.label_names)

    def limit(self, **rows: int) -> Dataset:
        """At most so many rows of a split, classes kept even: `dataset.limit(train=2000, test=500)`."""
        for name in rows:
            self[name]
        limited = {
            name: split.first(min(rows[name], len(split))) if name in rows else split
            for name, split in self.splits.items()
        }
        return replace(self, splits=limited)

    def card(self) -> str:
        """What a person should know, as plain text: task, counts, licence, source, known flaws."""
        lines = [f"{self.name}: {self.title}" if self.title else self.name]
        lines += [f"  task      {self.task}", f"  licence   {self.licence}", f"  source    {self.source}"]
        for name, split in self.splits.items():
            lines.append(f"  {name:<9} {len(split)} rows ({', '.join(split.columns)}){self._balance(split)}")
        lines += [f"  note      {note}" for note in self.notes]
        return "\n".join(lines)

    def _balance(self, split: Split) -> str:
        if not self.label_names or not ("label" in split or "labels" in split):
            return ""
        if "labels" in split:
            counts = np.asarray(split["labels"]).sum(axis=0, dtype=np.int64)
            return f", {self.n_classes} labels of {counts.min()} to {counts.max()}"
        counts = np.bincount(np.asarray(split["label"]), minlength=self.n_classes)
        if self.n_classes > 12 or counts.min() == counts.max():
            return f", {self.n_classes} classes of {counts.min()} to {counts.max()}"
        return ", " + ", ".join(f"{name} {n}" for name, n in zip(self.label_names, counts, strict=True))


def _taken(column: Any, rows: np.ndarray) -> Column:
    taken: Column
    if isinstance(column, np.ndarray):
        taken = column[rows]
    elif hasattr(column, "take"):
        taken = column.take(rows)
    else:
        taken = [column[row] for row in rows]
    return taken
