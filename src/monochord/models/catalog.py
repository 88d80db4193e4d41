"""The catalog of models: what is in it, without importing torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monochord.core.catalog import Entry, discover


@dataclass(frozen=True, kw_only=True)
class Model(Entry):
    """A model of the catalog.

    `architecture` is the transformers class that loads its folder; `load(folder, dtype)` does it for models
    that transformers has no class for. `processor(folder, **options)` makes the tokenizer, image processor or
    feature extractor; without it transformers' `AutoTokenizer` reads the folder. `parameters` are checked.
    """

    parameters: int
    architecture: str | None = None
    load: Callable[[Path, Any], Any] | None = None
    processor: Callable[..., Any] | None = None

    def make(self, package: Any, folder: Path) -> None:
        from monochord.models.quiet import quietly

        with quietly():
            super().make(package, folder)

    def row(self) -> dict[str, Any]:
        return {**super().row(), "parameters": self.parameters}


def entries() -> Mapping[str, Model]:
    """All models of the catalog by name."""
    return discover("monochord.models.zoo")  # type: ignore[return-value]


def catalog() -> list[dict[str, Any]]:
    """A row a model: name, kind, title, licence, source, size in bytes, hub id, present, parameters."""
    return [entry.row() for entry in entries().values()]
