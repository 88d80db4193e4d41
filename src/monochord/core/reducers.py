"""Running statistics for `capture(..., reduce=...)`: equal to those of all rows at once, whatever the batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from monochord.core.subspace import StreamingCovariance


class Mean:
    """The mean of the rows, (d,), summed in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Take in rows (n, d)."""
        total = x.detach().sum(0, dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total
        self.count += len(x)

    def result(self) -> Tensor:
        return _seen(self._sum) / self.count


@dataclass(frozen=True)
class MomentsResult:
    """Statistics of each unit, all of shape (d,)."""

    count: int
    mean: Tensor
    std: Tensor
    minimum: Tensor
    maximum: Tensor


class Moments:
    """Mean, standard deviation (of the population), minimum and maximum of each unit."""

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Take in rows (n, d)."""
        if not len(x):
            return
        x = x.detach()
        rows = x.double()
        mean, count = rows.mean(0), len(x)
        squares = (rows - mean).square().sum(0)
        low, high = x.amin(0), x.amax(0)
        if self._mean is None or self._squares is None or self._low is None or self._high is None:
            self.count, self._mean, self._squares, self._low, self._high = count, mean, squares, low, high
            return
        shift, total = mean - self._mean, self.count + count
        self._mean = self._mean + shift * (count / total)
        self._squares = self._squares + squares + shift.square() * (self.count * count / total)
        self._low, self._high = torch.minimum(self._low, low), torch.maximum(self._high, high)
        self.count = total

    def result(self) -> MomentsResult:
        std = (_seen(self._squares) / self.count).sqrt()
        return MomentsResult(self.count, _seen(self._mean), std, _seen(self._low), _seen(self._high))


class Covariance(StreamingCovariance):
    """Mean and covariance of the rows; the result is this object, with `.mean` (d,) and `.covariance` (d, d)."""

    def result(self) -> Covariance:
        return self


class Reservoir:
    """A uniform random sample of `size` rows, the same for the same seed and rows in the same order."""

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size={size} must be at least 1")
        self.size, self.count = size, 0
        self._generator = Generator().manual_seed(seed)
        self._keys: Tensor | None = None
        self._rows: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Take in rows (n, d): each gets a random key, and the rows with the largest keys stay."""
        keys = torch.rand(len(x), generator=self._generator, dtype=torch.float64)
        rows = x.detach()
        if self._keys is not None and self._rows is not None:
            keys, rows = torch.cat([self._keys, keys]), torch.cat([self._rows, rows])
        self.count += len(x)
        kept = keys.topk(min(self.size, len(keys))).indices.sort().values
        self._keys, self._rows = keys[kept], rows[kept.to(rows.device)]

    def result(self) -> Tensor:
        """The sampled rows, (size, d), in the order in which they came."""
        return _seen(self._rows)


def _seen(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("nothing was reduced: run the model inside the capture's block")
    return value
