"""A change of one weight: what any kind of it must say of itself, and the plain kinds, dense and sparse.

A third party adds a kind by subclassing `Entry`: the five abstract members are enough, the rest saves work.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor


class Entry(ABC):
    """A change of one weight of any shape. As a matrix it is (out, rest), (experts, out, in) if `batched`."""

    kind: ClassVar[str] = ""
    kinds: ClassVar[dict[str, type[Entry]]] = {}
    lazy: bool = False  # read from files when used; saved as dense

    def __init_subclass__(cls, kind: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kind = kind
        Entry.kinds[kind] = cls

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @abstractmethod
    def dense(self) -> Tensor:
        """The change as one tensor of `shape`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What has to be saved, by name."""

    @classmethod
    @abstractmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Entry:
        """The entry again, from `tensors()` and `settings()`."""

    def settings(self) -> dict[str, Any]:
        """The JSON-able rest of what has to be saved."""
        return {}

    def scaled(self, factor: float) -> Entry:
        return Dense(self.dense() * factor)

    def plus(self, other: Entry) -> Entry | None:
        """The sum in one cheap form, or None when there is none."""
        return None

    def masked(self, mask: Tensor) -> Entry:
        """The entries where `mask` (boolean, or a weight per entry) is set."""
        return Dense(self.dense() * mask.to(self.dtype)).compact()

    def add_to(self, weight: Tensor, scale: float = 1.0) -> None:
        """Add the change to `weight` in place, in the finer of the two dtypes."""
        change = self.dense().to(weight.device)
        if change.dtype == weight.dtype or torch.promote_types(change.dtype, weight.dtype) == weight.dtype:
            weight.add_(change, alpha=scale)
        else:
            weight.copy_(weight.to(change.dtype).add_(change, alpha=scale))

    def norm(self) -> float:
        """The Frobenius norm."""
        return torch.linalg.vector_norm(self.dense().flatten(), dtype=wide(self.dtype)).item()

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Left vectors (out, k), singular values (k,) and right vectors (k, rest) of the matrix, thin."""
        matrix = as_matrix(self.dense()).to(wide(self.dtype))
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right

    def random_like(self, generator: Generator) -> Entry:
        """A Gaussian matrix of the same shape, norm and rank."""
        matrix = as_matrix(self.dense()).to(wide(self.dtype))
        rank = int(torch.linalg.matrix_rank(matrix)) if matrix.numel() else 0
        noise = torch.randn(matrix.shape, generator=generator, dtype=matrix.dtype)
        if rank < min(matrix.shape):
            noise = noise[:, :rank] @ torch.randn(rank, matrix.shape[1], generator=generator, dtype=matrix.dtype)
        return Dense(with_norm(noise, self.norm()).reshape(self.shape).to(self.dtype))

    @property
    def batched(self) -> bool:
        return False

    @property
    def nbytes(self) -> int:
        """The bytes it takes when saved."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({' x '.join(map(str, self.shape))}, {self.nbytes} bytes)"


class Dense(Entry, kind="dense"):
    """The change as a plain tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def dense(self) -> Tensor:
        return self.tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"tensor": self.tensor}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Dense:
        return cls(tensors["tensor"])

    def plus(self, other: Entry) -> Entry | None:
        return None if other.lazy else Dense(self.tensor + other.dense().to(self.tensor.device))

    def compact(self) -> Entry:
        """The sparse form where that is smaller, else itself."""
        count = int(torch.count_nonzero(self.tensor))
        if count * (8 + self.tensor.element_size()) >= self.tensor.nbytes:
            return self
        indices = self.tensor.flatten().nonzero().flatten()
        return Sparse(indices, self.tensor.flatten()[indices], self.shape)


class Sparse(Entry, kind="sparse"):
    """`values` at the flat `indices` (int64, no index twice) of a tensor of `shape`, zero elsewhere."""

    def __init__(self, indices: Tensor, values: Tensor, shape: tuple[int, ...]) -> None:
        if indices.shape != values.shape or indices.ndim != 1:
            raise ValueError(f"{tuple(indices.shape)} indices do not fit {tuple(values.shape)} values")
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < math.prod(shape):
            raise ValueError(f"an index lies outside the {math.prod(shape)} entries of {tuple(shape)}")
        self.indices, self.values, self._shape = indices.long(), values.detach(), tuple(shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def dense(self) -> Tensor:
        flat = self.values.new_zeros(math.prod(self.shape))
        return flat.index_add_(0, self.indices, self.values).reshape(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"indices": self.indices, "values": self.values}

    def settings(self) -> dict[str, Any]:
        return {"shape": list(self.shape)}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Sparse:
        return cls(tensors["indices"], tensors["values"], tuple(settings["shape"]))

    def scaled(self, factor: float) -> Sparse:
        return Sparse(self.indices, self.values * factor, self.shape)

    def plus(self, other: Entry) -> Entry | None:
        if not isinstance(other, Sparse):
            return None
        both = torch.cat((self.indices, other.indices))
        indices, place = torch.unique(both, return_inverse=True)
        dtype = torch.promote_types(self.dtype, other.dtype)
        values = torch.cat((self.values.to(dtype), other.values.to(dtype)))
        return Sparse(indices, values.new_zeros(len(indices)).index_add_(0, place, values), self.shape)

    def masked(self, mask: Tensor) -> Sparse:
        weight = mask.reshape(-1)[self.indices]
        kept = weight != 0
        return Sparse(self.indices[kept], (self.values * weight.to(self.dtype))[kept], self.shape)

    def add_to(self, weight: Tensor, scale: float = 1.0) -> None:
        if not weight.is_contiguous():
            return super().add_to(weight, scale)
        flat, indices = weight.view(-1), self.indices.to(weight.device)
        values = self.values.to(weight.device)
        dtype = torch.promote_types(values.dtype, weight.dtype)
        flat[indices] = flat[indices].to(dtype).add_(values.to(dtype), alpha=scale).to(weight.dtype)

    def norm(self) -> float:
        return torch.linalg.vector_norm(self.values, dtype=wide(self.dtype)).item()

    def random_like(self, generator: Generator) -> Sparse:
        indices = torch.randperm(math.prod(self.shape), generator=generator)[: len(self.indices)].sort().values
        noise = torch.randn(len(indices), generator=generator, dtype=wide(self.dtype))
        return Sparse(indices, with_norm(noise, self.norm()).to(self.dtype), self.shape)


def as_matrix(tensor: Tensor) -> Tensor:
    """Any weight as (out, rest)."""
    return tensor.reshape(tensor.shape[0] if tensor.ndim else 1, -1)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float32 for the halves."""
    return torch.promote_types(dtype, torch.float32)


def with_norm(noise: Tensor, norm: float) -> Tensor:
    """`noise` scaled to have this norm."""
    size = torch.linalg.vector_norm(noise.flatten()).item()
    return noise * (norm / size if size else 0.0)
