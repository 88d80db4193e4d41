"""Tables of R packages without R: the lazy-load data base (`Rdata.rdx`, `Rdata.rdb`) and R's serialisation.

The format is described in "R Internals", section "Serialization Formats". Read are vectors, lists, attributes,
factors and data frames; functions and environments are not.
"""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.dataset import DataError

NULL, SYMBOL, PAIRS, CHARACTER = 254, 1, 2, 9
LOGICAL, INTEGER, REAL, STRINGS, LIST, RAW = 10, 13, 14, 16, 19, 24
REFERENCE, ATTRIBUTED, TAGGED, MISSING = 255, 0x200, 0x400, -(2**31)
ENVIRONMENTS = (253, 242, 241)  # the global, the empty and the base environment
ALTERNATIVE = 238  # compact sequences


class Vector:
    """An R vector or list: its `values` and its `attributes` by name."""

    def __init__(self, values: Any, attributes: dict[str, Any] | None = None) -> None:
        self.values, self.attributes = values, attributes or {}

    def named(self) -> dict[str, Any]:
        """The elements of a list by name."""
        return dict(zip(self.attributes["names"].values, self.values, strict=True))


def read_frame(data: Path, name: str) -> dict[str, Any]:
    """The columns of a data frame of a package's `data` folder: arrays, and lists of str for text and factors.

    Raises `DataError` when the folder has no such table or it can't be read.
    """
    try:
        index = _Reader(gzip.decompress((data / "Rdata.rdx").read_bytes())).read()
        places = index.named()["variables"].named()
        if name not in places:
            raise DataError(f"{data}: no table {name!r}: there are {', '.join(sorted(places))}")
        start, length = (int(number) for number in places[name].values)
        record = (data / "Rdata.rdb").read_bytes()[start : start + length]
        frame = _Reader(_unpacked(record)).read()
        columns = {name: _column(vector) for name, vector in frame.named().items()}
    except (OSError, KeyError, struct.error, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"{data}: the table {name!r} is not readable ({error})") from None
    if len({len(column) for column in columns.values()}) != 1:
        raise DataError(f"{data}: the columns of {name!r} have different lengths")
    return columns


def _unpacked(record: bytes) -> bytes:
    """A record is its length, perhaps a letter for the method, and the packed bytes."""
    if record[4:5] == b"Z":
        return lzma.decompress(record[5:])
    if record[4:5] == b"2":
        import bz2

        return bz2.decompress(record[5:])
    return zlib.decompress(record[4:])


def _column(vector: Vector) -> Any:
    levels = vector.attributes.get("levels")
    if levels is None:
        return vector.values
    names = levels.values
    return [names[code - 1] if code != MISSING else "" for code in vector.values.tolist()]


class _Reader:
    """Reads one object of the binary (XDR) format, versions 2 and 3."""

    def __init__(self, content: bytes) -> None:
        if content[:2] != b"X\n":
            raise DataError("not R's binary serialisation")
        self.content, self.place, self.seen = content, 2, list[Any]()
        version, _, _ = (self.integer() for _ in range(3))
        if version == 3:
            self.bytes(self.integer())  # the encoding's name

    def bytes(self, count: int) -> bytes:
        self.place += count
        return self.content[self.place - count : self.place]

    def integer(self) -> int:
        return int(struct.unpack(">i", self.bytes(4))[0])

    def array(self, kind: str) -> np.ndarray:
        count = self.integer()
        dtype = np.dtype(kind)
        return np.frombuffer(self.bytes(count * dtype.itemsize), dtype).astype(dtype.newbyteorder("="))

    def read(self) -> Any:
        flags = self.integer()
        kind = flags & 255
        if kind == NULL or kind in ENVIRONMENTS:
            return None
        if kind == REFERENCE:
            return self.seen[(flags >> 8 or self.integer()) - 1]
        if kind == SYMBOL:
            self.seen.append(self.read())
            return self.seen[-1]
        if kind == PAIRS:
            return self._pairs(flags)
        if kind == CHARACTER:
            length = self.integer()
            return "" if length == -1 else self.bytes(length).decode("utf8", "replace")
        if kind == ALTERNATIVE:
            return self._alternative()
        values: Any
        if kind in (LOGICAL, INTEGER):
            values = self.array(">i4")
        elif kind == REAL:
            values = self.array(">f8")
        elif kind == RAW:
            values = self.bytes(self.integer())
        elif kind in (STRINGS, LIST):
            values = [self.read() for _ in range(self.integer())]
        else:
            raise DataError(f"R objects of type {kind} are not read")
        return Vector(values, self.read() if flags & ATTRIBUTED else None)

    def _pairs(self, flags: int) -> dict[str, Any]:
        """A chain of tagged values; the last link is null."""
        found: dict[str, Any] = {}
        while True:
            if flags & ATTRIBUTED:
                self.read()
            tag = self.read() if flags & TAGGED else str(len(found))
            found[tag] = self.read()
            flags = self.integer()
            if flags & 255 != PAIRS:
                return found

    def _alternative(self) -> Vector:
        info, state, attributes = self.read(), self.read(), self.read()
        name = next(iter(info.values())) if isinstance(info, dict) else ""
        if name in ("compact_intseq", "compact_realseq"):
            count, first, step = state.values.tolist()
            return Vector(first + step * np.arange(int(count)), attributes)
        if str(name).startswith("wrap_"):
            wrapped = next(iter(state.values())) if isinstance(state, dict) else state.values[0]
            return Vector(wrapped.values, attributes or wrapped.attributes)
        raise DataError(f"R's compact form {name!r} is not read")
