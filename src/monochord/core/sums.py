"""Sums of changes of one weight, in the cheapest form there is, and changes read back from what was saved."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from monochord.core.entries import Dense, Entry
from monochord.core.storage import StorageError, load_tensors
from monochord.core.tensorfile import write_tensors


class Sum(Entry, kind="sum"):
    """Entries of different kinds whose sum has no cheaper form."""

    def __init__(self, parts: tuple[Entry, ...]) -> None:
        self.parts = parts
        self.lazy = any(part.lazy for part in parts)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    @property
    def dtype(self) -> torch.dtype:
        dtype = self.parts[0].dtype
        for part in self.parts:
            dtype = torch.promote_types(dtype, part.dtype)
        return dtype

    def dense(self) -> Tensor:
        total = self.parts[0].dense().to(self.dtype, copy=True)
        for part in self.parts[1:]:
            part.add_to(total)
        return total

    def tensors(self) -> dict[str, Tensor]:
        if self.lazy:
            return {"tensor": self.dense()}
        return {f"{i}.{name}": t for i, part in enumerate(self.parts) for name, t in part.tensors().items()}

    def settings(self) -> dict[str, Any]:
        return {"parts": [{"kind": part.kind, **part.settings()} for part in self.parts]}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Sum:
        def part(i: int, told: dict[str, Any]) -> Entry:
            mine = {name.split(".", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{i}.")}
            return build_entry(mine, told)

        return cls(tuple(part(i, told) for i, told in enumerate(settings["parts"])))

    def scaled(self, factor: float) -> Entry:
        return Sum(tuple(part.scaled(factor) for part in self.parts))

    def masked(self, mask: Tensor) -> Entry:
        return add_entries(*(part.masked(mask) for part in self.parts))

    def add_to(self, weight: Tensor, scale: float = 1.0) -> None:
        if torch.promote_types(self.dtype, weight.dtype) != weight.dtype:
            return super().add_to(weight, scale)
        for part in self.parts:
            part.add_to(weight, scale)


def add_entries(*entries: Entry) -> Entry:
    """The sum of entries of one shape, in its cheapest form."""
    waiting = [part for entry in entries for part in (entry.parts if isinstance(entry, Sum) else (entry,))]
    waiting.sort(key=lambda part: not isinstance(part, Dense))
    parts: list[Entry] = []
    for new in waiting:
        for place, old in enumerate(parts):
            merged = old.plus(new)
            if merged is not None:
                parts[place] = merged
                break
        else:
            parts.append(new)
    total = parts[0] if len(parts) == 1 else Sum(tuple(parts))
    if total.lazy or isinstance(total, Dense) or total.nbytes < math.prod(total.shape) * total.dtype.itemsize:
        return total
    return Dense(total.dense())


def build_entry(tensors: dict[str, Tensor], told: dict[str, Any]) -> Entry:
    """An entry from what was saved of it; `told` holds its kind and its settings."""
    kind = told.get("kind")
    if kind not in Entry.kinds:
        known = ", ".join(sorted(Entry.kinds))
        raise ValueError(f"unknown kind of entry {kind!r}: import the module that defines it (known: {known})")
    try:
        return Entry.kinds[kind].build(tensors, {key: value for key, value in told.items() if key != "kind"})
    except KeyError as error:
        raise ValueError(f"a {kind} entry lacks {error}") from None


def save_entries(path: str | os.PathLike[str], entries: Mapping[str, Entry], metadata: Mapping[str, Any]) -> None:
    """Stream entries to one safetensors file. Lazy ones are read one at a time and saved as dense."""
    parts: list[tuple[str, str, torch.dtype, tuple[int, ...]]] = []
    told: dict[str, Any] = {}
    for name, entry in entries.items():
        if entry.lazy:
            told[name] = {"kind": "dense"}
            parts.append((name, "tensor", entry.dtype, entry.shape))
            continue
        told[name] = {"kind": entry.kind, **entry.settings()}
        parts += [(name, part, t.dtype, tuple(t.shape)) for part, t in entry.tensors().items()]
    parts.sort(key=lambda part: -part[2].itemsize)
    layout = [(f"{name}::{part}", dtype, shape) for name, part, dtype, shape in parts]
    tensors = (entries[name].tensors()[part] for name, part, _, _ in parts)
    write_tensors(path, layout, tensors, {**metadata, "entries": told})


def load_entries(path: str | os.PathLike[str]) -> tuple[dict[str, Entry], dict[str, Any]]:
    """Read what `save_entries` wrote: the entries, none for a file it did not write, and the metadata."""
    tensors, metadata = load_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("::")
        parts.setdefault(name, {})[part] = tensor
    try:
        told = metadata.get("entries", {})
        return {name: build_entry(parts.get(name, {}), told[name]) for name in told}, metadata
    except ValueError as error:
        raise StorageError(f"{path}: {error}") from None
