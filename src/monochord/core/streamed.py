"""Changes between checkpoints that are read when they are used, in pieces that fit a core's cache.

However many scalings and sums an expression has, every stored tensor is read once and none is whole in
memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from monochord.core.checkpoint import Stored, fill
from monochord.core.entries import Dense, Entry, wide

PIECE = 1 << 17  # elements read at once: the sum and one operand stay in the cache


class Between(Entry, kind="between"):
    """A linear combination of stored tensors, such as a tuned one minus its base. Read when used."""

    lazy = True

    def __init__(self, terms: Mapping[Stored, float]) -> None:
        self.terms = {stored: factor for stored, factor in terms.items() if factor != 0}
        first = next(iter(terms))
        self._shape, self._dtype = first.shape, first.dtype
        for stored in terms:
            self._dtype = torch.promote_types(self._dtype, stored.dtype)

    @classmethod
    def of(cls, base: Stored, tuned: Stored) -> Between:
        return cls({tuned: 1.0, base: -1.0} if base != tuned else {base: 0.0})

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        return wide(self._dtype)

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def dense(self) -> Tensor:
        total = torch.zeros(self.shape, dtype=self.dtype)
        self.add_to(total)
        return total

    def tensors(self) -> dict[str, Tensor]:
        return {"tensor": self.dense()}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Entry:
        return Dense(tensors["tensor"])

    def scaled(self, factor: float) -> Between:
        return self._with({stored: factor * mine for stored, mine in self.terms.items()})

    def plus(self, other: Entry) -> Entry | None:
        if not isinstance(other, Between):
            return None
        terms = dict(self.terms)
        for stored, factor in other.terms.items():
            terms[stored] = terms.get(stored, 0.0) + factor
        return self._with(terms)

    def masked(self, mask: Tensor) -> Entry:
        return Masked(self, mask)

    def add_to(self, weight: Tensor, scale: float = 1.0) -> None:
        if not weight.is_contiguous():
            return super().add_to(weight, scale)
        flat, start = weight.view(-1), 0
        for piece in combine(self.terms, self.dtype):
            Dense(piece).add_to(flat[start : start + len(piece)], scale)
            start += len(piece)

    def norm(self) -> float:
        squares = (
            torch.linalg.vector_norm(piece, dtype=torch.float64).item() ** 2
            for piece in combine(self.terms, self.dtype)
        )
        return sum(squares) ** 0.5

    def _with(self, terms: Mapping[Stored, float]) -> Between:
        return Between(terms or {next(iter(self.terms)): 0.0}) if terms or self.terms else self


class Masked(Entry, kind="masked"):
    """The masked part of a change that is read when used. Saved as dense."""

    lazy = True

    def __init__(self, entry: Entry, mask: Tensor) -> None:
        self.entry, self.mask = entry, mask

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.entry.dtype

    @property
    def nbytes(self) -> int:
        return self.entry.nbytes

    def dense(self) -> Tensor:
        return self.entry.dense().mul_(self.mask)

    def tensors(self) -> dict[str, Tensor]:
        return {"tensor": self.dense()}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Entry:
        return Dense(tensors["tensor"])

    def scaled(self, factor: float) -> Masked:
        return Masked(self.entry.scaled(factor), self.mask)

    def masked(self, mask: Tensor) -> Masked:
        return Masked(self.entry, self.mask * mask)


def combine(terms: Mapping[Stored, float], dtype: torch.dtype) -> Iterator[Tensor]:
    """The flat linear combination in `dtype`, piece by piece; a piece is overwritten when the next is asked
    for.

    The sum is taken in float32 at least. One tensor with factor 1 passes through untouched.

    """
    if not terms:
        return
    size = min(PIECE, next(iter(terms)).numel())
    if not size:
        return
    exact = wide(dtype)
    for stored in terms:
        exact = torch.promote_types(exact, stored.dtype)
    total, result = torch.empty(size, dtype=exact), torch.empty(size, dtype=dtype)
    (first, weight), *others = terms.items()
    copied = not others and weight == 1 and first.dtype == dtype
    with ExitStack() as stack:
        files = [stack.enter_context(stored.open()) for stored in terms]
        buffers = [torch.empty(size, dtype=stored.dtype) for stored in terms]
        for start in range(0, first.numel(), size):
            count = min(size, first.numel() - start)
            for file, stored, buffer in zip(files, terms, buffers, strict=True):
                fill(file, stored.place.start + start * stored.dtype.itemsize, buffer[:count])
            if copied:
                yield buffers[0][:count]
                continue
            sums = total[:count].copy_(buffers[0][:count])
            if weight != 1:
                sums.mul_(weight)
            for buffer, (_, factor) in zip(buffers[1:], others, strict=True):
                sums.add_(buffer[:count], alpha=factor)
            yield sums if dtype == exact else result[:count].copy_(sums)


def changed(stored: Stored, entry: Entry | None, scale: float = 1.0) -> Iterator[Tensor]:
    """A stored tensor with a change added, in pieces of its own dtype."""
    if entry is None or isinstance(entry, Between):
        terms = {stored: 1.0}
        for term, factor in entry.terms.items() if entry is not None else ():
            terms[term] = terms.get(term, 0.0) + scale * factor
        yield from combine({term: factor for term, factor in terms.items() if factor}, stored.dtype)
    else:
        weight = stored.read()
        entry.add_to(weight, scale)
        yield weight
