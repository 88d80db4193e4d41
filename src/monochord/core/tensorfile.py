"""The safetensors format: read a header, stream a file out, replace the old one once the new one is whole."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor


class StorageError(ValueError):
    """A file that can't be trusted or understood; the message is one line that names it."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file: `nbytes` bytes from `start`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: its tensors, JSON metadata and content's digest."""

    tensors: dict[str, Place]
    metadata: dict[str, Any]
    digest: str | None
    size: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a safetensors file. Raises `StorageError` unless it is one, and whole."""
    path = Path(path)
    if not path.is_file():
        raise StorageError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size and start[:2] in (b"PK", *(b"\x80" + bytes([protocol]) for protocol in range(2, 6))):
            raise StorageError(f"{path} is a pickle, which can run code when opened: use safetensors")
        if length + 8 > size:
            raise StorageError(f"{path} is truncated or not a safetensors file ({size} bytes)")
        text = file.read(length)
    try:
        table = json.loads(text)
        notes = table.pop("__metadata__", {})
        metadata = json.loads(notes["monochord"]) if "monochord" in notes else dict(notes)
        tensors = {name: _place(entry, length + 8) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{path} has a damaged header ({type(error).__name__}: {error})") from None
    end = length + 8
    for name, place in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        nbytes = torch.Size(place.shape).numel() * place.dtype.itemsize
        if (place.start, place.nbytes) != (end, nbytes) or min(place.shape, default=0) < 0:
            raise StorageError(f"{path} has a damaged header: {name!r} lies in the wrong place")
        end += place.nbytes
    if end != size:
        raise StorageError(f"{path} is {'truncated' if size < end else 'too long'}: {size} bytes instead of {end}")
    return Header(tensors, metadata, notes.get("sha256"), size)


def write_tensors(
    path: str | os.PathLike[str],
    layout: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
    chunks: Iterable[Tensor],
    metadata: Mapping[str, Any] | None = None,
    *,
    digest: bool = True,
) -> None:
    """Stream a safetensors file: `layout` says what it will hold, `chunks` are its tensors or pieces.

    Without `digest` the file is a plain checkpoint shard: no content hash and no forced write to the disk.
    """
    blank = "0" * 64
    notes = {"format": "pt"}
    if digest:
        notes |= {"monochord": json.dumps(dict(metadata or {})), "sha256": blank}
    table: dict[str, Any] = {"__metadata__": notes}
    end = 0
    for name, dtype, shape in layout:
        if dtype not in _NAMES:
            raise StorageError(f"{name!r} is {dtype}, which safetensors files can't hold")
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        table[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    hasher = hashlib.sha256()
    written = 0
    with replacing(path, sync=digest) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for chunk in chunks:
            raw = as_bytes(chunk)
            file.write(raw)
            written += len(raw)
            if digest:
                hasher.update(raw)
        if written != end:
            raise StorageError(f"{path}: wrote {written} bytes where the layout says {end}")
        if digest:
            place = text.index(b'"sha256":"' + blank.encode()) + len('"sha256":"')
            file.seek(8 + place)
            file.write(hasher.hexdigest().encode())


@contextmanager
def replacing(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends and leaves no trace if it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy when it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(bytearray())


def _place(entry: dict[str, Any], offset: int) -> Place:
    start, end = entry["data_offsets"]
    return Place(_DTYPES[entry["dtype"]], tuple(entry["shape"]), offset + start, end - start)


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
