"""A change of a weight of any order as a Tucker product: a small core and one factor an axis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from monochord.core.entries import Entry, wide


class Tucker(Entry, kind="tucker"):
    """`scale * core x1 factors[0] x2 factors[1] ...`: core (J1, ..., JN), factors (In, Jn)."""

    def __init__(self, core: Tensor, factors: Sequence[Tensor], scale: float = 1.0) -> None:
        if core.ndim != len(factors) or any(f.shape[1:] != (j,) for f, j in zip(factors, core.shape, strict=False)):
            shapes = ", ".join(str(tuple(f.shape)) for f in factors)
            raise ValueError(f"factors {shapes} do not fit a core {tuple(core.shape)}")
        self.core, self.factors, self.scale = core.detach(), [f.detach() for f in factors], float(scale)

    @classmethod
    def of(cls, tensor: Tensor, ranks: Sequence[int], sweeps: int = 20) -> Tucker:
        """The best approximation with these multilinear ranks that HOSVD and alternating `sweeps` (HOOI) find."""
        work = tensor.detach().to(wide(tensor.dtype))
        ranks = [min(rank, size) for rank, size in zip(ranks, work.shape, strict=True)]
        factors = [_leading(work, axis, rank) for axis, rank in enumerate(ranks)]
        for _ in range(sweeps):
            for axis, rank in enumerate(ranks):
                others = {i: factor.t() for i, factor in enumerate(factors) if i != axis}
                factors[axis] = _leading(multiply(work, others), axis, rank)
        core = multiply(work, {axis: factor.t() for axis, factor in enumerate(factors)})
        return cls(core.to(tensor.dtype), [factor.to(tensor.dtype) for factor in factors])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(factor) for factor in self.factors)

    @property
    def dtype(self) -> torch.dtype:
        return self.core.dtype

    def dense(self) -> Tensor:
        return self.scale * multiply(self.core, dict(enumerate(self.factors)))

    def tensors(self) -> dict[str, Tensor]:
        return {"core": self.core, **{f"factor{axis}": factor for axis, factor in enumerate(self.factors)}}

    def settings(self) -> dict[str, Any]:
        return {"scale": self.scale}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Tucker:
        factors = [tensors[f"factor{axis}"] for axis in range(tensors["core"].ndim)]
        return cls(tensors["core"], factors, settings["scale"])

    def scaled(self, factor: float) -> Tucker:
        return Tucker(self.core, self.factors, self.scale * factor)


def multiply(tensor: Tensor, matrices: dict[int, Tensor]) -> Tensor:
    """`tensor` times a matrix (new size, old size) along each of the given axes."""
    return reduce(_along, matrices.items(), tensor)


def unfold(tensor: Tensor, axis: int) -> Tensor:
    """The tensor as a matrix with `axis` for its rows, (size, rest)."""
    return tensor.movedim(axis, 0).flatten(1)


def _along(tensor: Tensor, item: tuple[int, Tensor]) -> Tensor:
    axis, matrix = item
    return torch.tensordot(matrix, tensor, dims=([1], [axis])).movedim(0, axis)


def _leading(tensor: Tensor, axis: int, rank: int) -> Tensor:
    """The first `rank` left singular vectors of an unfolding, from its smaller Gram matrix."""
    rows = unfold(tensor, axis)
    return torch.linalg.eigh(rows @ rows.t()).eigenvectors[:, -rank:].flip(1)
