"""Intrinsic dimension of point clouds, globally and in the neighbourhood of each point.

From "Less is More: Local Intrinsic Dimensions of Contextual Language Models", June 1, 2025. `TwoNN` is that of
"Estimating the intrinsic dimension of datasets by a minimal neighborhood information", September 22, 2017, `MLE` that
of Levina and Bickel, 2004. Estimators take points (n, d) and give a number; `Local` gives one a point, with all
neighbourhoods in batches. Exact duplicates are dropped: they have no distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 64  # neighbourhoods, or rows of distances, at a time


class Estimator(Protocol):
    """Dimension from squared distances (batch, n, n) within each of a batch of point clouds: (batch,)."""

    def of_distances(self, squared: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class TwoNN:
    """From the ratio of each point's distances to its second and first neighbour.

    The empirical distribution of the ratios is linear in log space with the dimension as its slope; the largest
    `discard` of the ratios are left out of the fit.
    """

    discard: float = 0.1

    def __call__(self, points: Tensor) -> float:
        """Raises `ValueError` for fewer than 10 distinct points."""
        ratio = _nearest(distinct(points, 10), 2)
        return float(self._fit((ratio[None, :, 1] / ratio[None, :, 0]).log() / 2))

    def of_distances(self, squared: Tensor) -> Tensor:
        near = _without_self(squared).topk(2, dim=-1, largest=False).values
        return self._fit((near[..., 1] / near[..., 0]).log() / 2)

    def _fit(self, logs: Tensor) -> Tensor:
        n = logs.shape[-1]
        kept = int(n * (1 - self.discard))
        x = logs.sort(dim=-1).values[..., :kept]
        y = -torch.log1p(-torch.arange(kept, dtype=x.dtype, device=x.device) / n)
        return (x * y).sum(-1) / x.square().sum(-1)


@dataclass(frozen=True)
class MLE:
    """Maximum likelihood from the distances to the `neighbours` nearest, their inverses averaged over points."""

    neighbours: int = 20

    def __call__(self, points: Tensor) -> float:
        """Raises `ValueError` for too few distinct points."""
        points = distinct(points, self.neighbours + 1)
        return float(self._fit(_nearest(points, self.neighbours)[None]))

    def of_distances(self, squared: Tensor) -> Tensor:
        k = min(self.neighbours, squared.shape[-1] - 1)
        return self._fit(_without_self(squared).topk(k, dim=-1, largest=False).values)

    def _fit(self, squared: Tensor) -> Tensor:
        near = squared.sort(dim=-1).values.log() / 2
        inverse = (near[..., -1:] - near[..., :-1]).mean(-1)
        return 1 / inverse.mean(-1)


@dataclass(frozen=True)
class LocalPCA:
    """The number of directions whose variance is more than `threshold` of the largest."""

    threshold: float = 0.05

    def __call__(self, points: Tensor) -> float:
        centred = points.double() - points.double().mean(0)
        values = torch.linalg.svdvals(centred).square()
        return float((values > self.threshold * values[0]).sum())

    def of_distances(self, squared: Tensor) -> Tensor:
        middle = squared - squared.mean(-1, keepdim=True) - squared.mean(-2, keepdim=True)
        gram = -(middle + squared.mean((-1, -2), keepdim=True)) / 2
        values = torch.linalg.eigvalsh(gram)
        count: Tensor = (values > self.threshold * values[..., -1:]).sum(-1)
        return count.to(squared.dtype)


@dataclass(frozen=True)
class Local:
    """The dimension around each point: an estimator on its `neighbours` nearest points."""

    estimator: Estimator = TwoNN()
    neighbours: int = 128

    def __call__(self, points: Tensor) -> Tensor:
        """Dimensions (n,) of the distinct points. Raises `ValueError` when there are not more than `neighbours`."""
        points = distinct(points, self.neighbours + 1)
        found = []
        for part in torch.split(points, BLOCK):
            squared = _squared(part, points)
            near = squared.topk(self.neighbours + 1, dim=-1, largest=False).indices[:, 1:]  # without the point
            cloud = points[near]
            cloud = cloud - cloud.mean(1, keepdim=True)  # distances of near points, not of large numbers
            found.append(self.estimator.of_distances(_squared(cloud, cloud)))
        return torch.cat(found)


def distinct(points: Tensor, least: int) -> Tensor:
    """The points (n, d) without repetitions, as doubles. Raises `ValueError` if fewer than `least` are left."""
    if points.ndim != 2:
        raise ValueError(f"points must be (n, d), got {tuple(points.shape)}")
    rows, first = torch.unique(points, dim=0, return_inverse=True)
    order = torch.full((len(rows),), len(points), dtype=torch.long, device=points.device)
    order.scatter_reduce_(0, first, torch.arange(len(points), device=points.device), "amin")
    kept = points[order.sort().values].double()
    if len(kept) < least:
        raise ValueError(f"{len(kept)} distinct points are too few: at least {least} are needed")
    return kept


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances by one product, (..., n, m)."""
    norms = a.square().sum(-1, keepdim=True) + b.square().sum(-1).unsqueeze(-2)
    return torch.baddbmm(norms, a, b.mT, alpha=-2).clamp_min_(0) if a.ndim == 3 else (norms - 2 * a @ b.T).clamp_min_(0)


def _nearest(points: Tensor, k: int) -> Tensor:
    """Squared distances to the `k` nearest others, rising, (n, k)."""
    centred = points - points.mean(0)
    parts = [
        _squared(p, centred).topk(k + 1, dim=-1, largest=False).values[:, 1:] for p in torch.split(centred, 16 * BLOCK)
    ]
    return torch.cat(parts)


def _without_self(squared: Tensor) -> Tensor:
    return squared + torch.diag(torch.full((squared.shape[-1],), float("inf"), dtype=squared.dtype)).to(squared.device)
