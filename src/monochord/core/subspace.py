"""Subspaces of activations and weights: project, reject, compare; similarity of representations; streamed
statistics.

CKA is from "Similarity of Neural Network Representations Revisited", May 1, 2019; its unbiased form from "Do
Wide and Deep Networks Learn the Same Things?", October 29, 2020; the randomized SVD from "Finding structure
with randomness", September 22, 2009, algorithms 4.4 and 5.1.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor


class Subspace:
    """The span of `basis`, orthonormal columns of shape (dim, k)."""

    def __init__(self, basis: Tensor) -> None:
        if basis.ndim != 2 or basis.shape[1] > basis.shape[0]:
            raise ValueError(f"a basis is (dim, k) with k <= dim, got {tuple(basis.shape)}")
        error = (basis.mT @ basis - torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)).abs()
        if basis.numel() and error.max() > 1e-3:
            raise ValueError("the columns of a basis must be orthonormal: use Subspace.spanned_by(vectors)")
        self.basis = basis

    @classmethod
    def of(cls, matrix: Tensor, k: int | None = None, *, energy: float | None = None, side: str = "left") -> Subspace:
        """The span of the top-`k` singular vectors of `matrix` (rows, columns), or of as many as hold
        `energy`.

        `energy` is the share of the squared norm. `side="left"` is a subspace of the column space (dim =
        rows), `"right"` of the row space: for samples by features, the principal directions of the features.
        """
        if side not in ("left", "right"):
            raise ValueError(f"side must be 'left' or 'right', got {side!r}")
        if (k is None) == (energy is None):
            raise ValueError("pass one of k and energy")
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        if energy is not None:
            if not 0 < energy <= 1:
                raise ValueError(f"energy must be in (0, 1], got {energy}")
            held = values.double().square().cumsum(0)
            k = int((held < energy * (1 - 1e-12) * held[-1]).sum()) + 1
        if k is None or not 1 <= k <= len(values):
            raise ValueError(f"k must be an int in [1, {len(values)}], got {k}")
        return cls((left if side == "left" else right.mT)[:, :k].contiguous())

    @classmethod
    def spanned_by(cls, vectors: Tensor) -> Subspace:
        """The span of the columns of `vectors` (dim, k), which must be linearly independent."""
        return cls(torch.linalg.qr(vectors)[0])

    @property
    def dim(self) -> int:
        """The dimension of the space around it."""
        return self.basis.shape[0]

    @property
    def k(self) -> int:
        """Its own dimension."""
        return self.basis.shape[1]

    def coordinates(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., k)."""
        return x @ self.basis.to(x)

    def project(self, x: Tensor) -> Tensor:
        """The part of `x` (..., dim) inside."""
        basis = self.basis.to(x)
        return x @ basis @ basis.mT

    def reject(self, x: Tensor) -> Tensor:
        """The part of `x` (..., dim) outside."""
        return x - self.project(x)

    def complement(self) -> Subspace:
        """Everything orthogonal to it."""
        full = torch.linalg.qr(self.basis, mode="complete")[0]
        return Subspace(full[:, self.k :])

    def principal_angles(self, other: Subspace) -> Tensor:
        """In radians, ascending, as many as the smaller of the two dimensions."""
        self._check(other)
        small, large = (self, other) if self.k <= other.k else (other, self)
        mine, yours = small.basis.double(), large.basis.double()
        left, cosines, right = torch.linalg.svd(mine.mT @ yours, full_matrices=False)
        sines = torch.linalg.vector_norm(mine @ left - yours @ (right.mT * cosines), dim=0)
        return torch.atan2(sines, cosines)

    def overlap(self, other: Subspace) -> float:
        """The mean squared cosine of the principal angles: 1 when one holds the other, 0 when orthogonal."""
        self._check(other)
        cross = self.basis.double().mT @ other.basis.double()
        return (cross.square().sum() / min(self.k, other.k)).item()

    def expected_random_overlap(self, other: Subspace) -> float:
        """The mean overlap with a uniformly random subspace of the other's dimension: the chance level."""
        self._check(other)
        return max(self.k, other.k) / self.dim

    def random_like(self, seed: int) -> Subspace:
        """A uniformly random subspace of the same dimension: the matched control."""
        noise = torch.randn(self.basis.shape, generator=Generator().manual_seed(seed), dtype=torch.float64)
        q, r = torch.linalg.qr(noise)
        return Subspace((q * r.diagonal().sign()).to(self.basis))

    def _check(self, other: Subspace) -> None:
        if self.dim != other.dim:
            raise ValueError(f"subspaces of {self.dim} and of {other.dim} dimensions can't be compared")

    def __repr__(self) -> str:
        return f"Subspace({self.k} of {self.dim} dimensions)"


def randomized_svd(
    matrix: Tensor, k: int, *, oversample: int = 10, iterations: int = 2, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The top-`k` left vectors (rows, k), singular values (k,) and right vectors (k, columns),
    approximately.
    """
    limit = min(matrix.shape)
    if not 1 <= k <= limit:
        raise ValueError(f"k must be an int in [1, {limit}], got {k}")
    noise = torch.randn(
        matrix.shape[1], min(k + oversample, limit), generator=Generator().manual_seed(seed), dtype=matrix.dtype
    ).to(matrix.device)
    basis = torch.linalg.qr(matrix @ noise)[0]
    for _ in range(iterations):
        basis = torch.linalg.qr(matrix.mT @ basis)[0]
        basis = torch.linalg.qr(matrix @ basis)[0]
    left, values, right = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
    return (basis @ left)[:, :k], values[:k], right[:k]


def cka(x: Tensor, y: Tensor, *, unbiased: bool = False) -> float:
    """Linear centred kernel alignment of two representations (samples, features) of the same samples: 0 to 1.

    `unbiased` removes the bias of few samples (at least 4): 0 in expectation for independent ones.
    """
    if unbiased:
        parts = MinibatchCKA()
        parts.update(x, y)
        return parts.value
    x, y = _pair(x, y)
    x, y = x - x.mean(0), y - y.mean(0)
    if max(x.shape[1], y.shape[1]) > len(x):
        one, other = x @ x.mT, y @ y.mT
        return _ratio((one * other).sum(), one.square().sum(), other.square().sum())
    cross, one, other = x.mT @ y, x.mT @ x, y.mT @ y
    return _ratio(cross.square().sum(), one.square().sum(), other.square().sum())


class MinibatchCKA:
    """Unbiased linear CKA from minibatches of at least 4 samples: numerator and norms are averaged over
    them.
    """

    def __init__(self) -> None:
        self.cross, self.one, self.other = 0.0, 0.0, 0.0

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in two representations (samples, features) of the same samples."""
        x, y = _pair(x, y)
        if len(x) < 4:
            raise ValueError(f"unbiased CKA needs at least 4 samples a batch, got {len(x)}")
        x, y = x - x.mean(0), y - y.mean(0)
        k, m = x @ x.mT, y @ y.mT
        self.cross += _hsic(k, m)
        self.one += _hsic(k, k)
        self.other += _hsic(m, m)

    @property
    def value(self) -> float:
        norm = math.sqrt(max(self.one, 0.0) * max(self.other, 0.0))
        return self.cross / norm if norm else math.nan


class StreamingCovariance:
    """Mean and covariance of samples that come in batches, in float64; equal to those of all samples at
    once.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def update(self, batch: Tensor) -> None:
        """Take in samples (..., features); leading dimensions are flattened."""
        flat = batch.detach().reshape(-1, batch.shape[-1]).double()
        if not len(flat):
            return
        mean = flat.mean(0)
        centred = flat - mean
        self._merge(len(flat), mean, centred.mT @ centred)

    def merge(self, other: StreamingCovariance) -> None:
        """Take in what another one has seen."""
        if other.count:
            self._merge(other.count, other.mean, other._seen(other._scatter))

    @property
    def mean(self) -> Tensor:
        """(features,)"""
        return self._seen(self._mean)

    @property
    def covariance(self) -> Tensor:
        """(features, features), over n - 1 samples."""
        return self._seen(self._scatter) / max(self.count - 1, 1)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = count, mean.clone(), scatter.clone()
            return
        total = self.count + count
        shift = mean - self._mean
        self._scatter += scatter + torch.outer(shift, shift) * (self.count * count / total)
        self._mean += shift * (count / total)
        self.count = total

    @staticmethod
    def _seen(value: Tensor | None) -> Tensor:
        if value is None:
            raise ValueError("no sample was seen yet: call update(batch) first")
        return value


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"CKA compares (samples, features) of the same samples, got {tuple(x.shape)}, {tuple(y.shape)}"
        )
    return x.double(), y.double()


def _ratio(cross: Tensor, one: Tensor, other: Tensor) -> float:
    norm = (one * other).sqrt().item()
    return cross.item() / norm if norm else math.nan


def _hsic(k: Tensor, m: Tensor) -> float:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion from two (n, n) kernels."""
    n = len(k)
    k, m = (kernel - torch.diag(kernel.diagonal()) for kernel in (k, m))
    middle = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
    return ((k * m).sum() + middle).item() / (n * (n - 3))
