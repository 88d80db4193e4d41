"""Checkpoints that stay on disk: folders of (sharded) safetensors, read and written tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from monochord.core.tensorfile import (
    Header,
    Place,
    StorageError,
    as_bytes,
    read_header,
    replacing,
    write_tensors,
)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not read yet. Two are equal when they are the same tensor of the same file."""

    path: Path
    name: str
    place: Place = field(compare=False)
    stamp: tuple[int, int] = field(compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.place.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.place.dtype

    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    def read(self) -> Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with self.open() as file:
            fill(file, self.place.start, tensor)
        return tensor

    def sample(self, indices: Tensor) -> Tensor:
        """The values at flat `indices`, read one by one."""
        values = torch.empty(len(indices), dtype=self.dtype)
        with self.open() as file:
            for i, index in enumerate(indices.tolist()):
                fill(file, self.place.start + index * self.dtype.itemsize, values[i])
        return values

    def open(self) -> IO[bytes]:
        file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (the caller closes it)
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != self.stamp:
            file.close()
            raise StorageError(f"{self.path} was changed after it was opened")
        return file


class Checkpoint(Mapping[str, Stored]):
    """The tensors of a safetensors file, or of a folder of them, by name, unread."""

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self.folder = Path(source).resolve()
        paths = [self.folder] if self.folder.is_file() else _shards(self.folder)
        self.shards: dict[str, Header] = {path.name: read_header(path) for path in paths}
        self._tensors: dict[str, Stored] = {}
        for path, header in zip(paths, self.shards.values(), strict=True):
            status = path.stat()
            for name, place in sorted(header.tensors.items(), key=lambda item: item[1].start):
                if name in self._tensors:
                    raise StorageError(f"{name!r} is in {self._tensors[name].path.name} and in {path.name}")
                self._tensors[name] = Stored(path, name, place, (status.st_size, status.st_mtime_ns))

    def __getitem__(self, name: str) -> Stored:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def fill(file: IO[bytes], start: int, tensor: Tensor) -> None:
    """Read a contiguous tensor from `start`."""
    view, done = as_bytes(tensor), 0
    file.seek(start)
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise StorageError(f"{file.name} ends early")
        done += count


def rewrite(
    source: Checkpoint,
    out: str | os.PathLike[str],
    change: Callable[[Stored], Iterator[Tensor]],
    max_shard_bytes: int | None = None,
) -> None:
    """Write the checkpoint again with every tensor passed through `change`, which yields its pieces.

    Shards stay as they are unless `max_shard_bytes` is given. The other files of the folder are copied,
    except weights in other formats. The new folder appears when it is whole.
    """
    out = Path(out).resolve()
    if out == source.folder or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise StorageError(f"{out} exists: choose an empty folder for the result")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        plan = _plan(source, max_shard_bytes)
        for name, tensors in plan.items():
            layout = [(stored.name, stored.dtype, stored.shape) for stored in tensors]
            pieces = (piece for stored in tensors for piece in change(stored))
            write_tensors(temporary / name, layout, pieces, digest=False)
        if len(plan) > 1:
            stem = next(iter(plan)).rpartition("-of-")[0].rpartition("-")[0] or "model"
            size = sum(stored.place.nbytes for stored in source.values())
            where = {stored.name: name for name, tensors in plan.items() for stored in tensors}
            table = {"metadata": {"total_size": size}, "weight_map": where}
            with replacing(temporary / f"{stem}.safetensors.index.json") as file:
                file.write(json.dumps(table, indent=2).encode())
        for path in sorted(source.folder.iterdir()) if source.folder.is_dir() else ():
            weights = path.suffix in (
                ".safetensors",
                ".bin",
                ".pt",
                ".pth",
                ".ckpt",
                ".h5",
                ".msgpack",
                ".onnx",
            )
            if path.is_file() and not weights and not path.name.endswith(".index.json"):
                shutil.copy2(path, temporary / path.name)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _plan(source: Checkpoint, max_shard_bytes: int | None) -> dict[str, Sequence[Stored]]:
    if max_shard_bytes is None:
        return {name: [s for s in source.values() if s.path.name == name] for name in source.shards}
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    shards: list[list[Stored]] = [[]]
    room = max_shard_bytes
    for stored in source.values():
        if shards[-1] and stored.place.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(stored)
        room -= stored.place.nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise StorageError(f"{folder} does not exist")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            raise StorageError(f"{index} is not an index of shards") from None
        if outside := [name for name in names if Path(name).name != name]:
            raise StorageError(f"{index} names {outside[0]!r}, which is outside the folder")
        return [folder / name for name in sorted(names)]
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in _WEIGHTS[1:5]]
        why = f"{pickles[0]} may be a pickle, which can run code when opened" if pickles else "it has none"
        raise StorageError(f"{folder} is no safetensors checkpoint: {why}")
    return paths


_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx")
