"""A random projection to many dimensions that is rebuilt from a seed and applied in O(D log D).

The Fastfood transform of "Fastfood: Approximate Kernel Expansions in Loglinear Time", August 13, 2014.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Generator, Tensor


class Fastfood:
    """x (..., d) to P x (..., D) with the same norm on average: Hadamard, permutation, Gauss, Hadamard, signs.

    `matvec` is P x and `rmatvec` its adjoint P^T y; both are differentiable. P is a function of the sizes and the
    seed. Raises `ValueError` when there are fewer outputs than inputs.
    """

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        if not 1 <= inputs <= outputs:
            raise ValueError(f"inputs={inputs} must be at least 1 and at most outputs={outputs}")
        self.inputs, self.outputs = inputs, outputs
        self.small, self.large = _power_of_two(inputs), _power_of_two(outputs)
        generator = Generator().manual_seed(seed)
        self.signs = torch.randint(0, 2, (inputs,), generator=generator, dtype=torch.int8) * 2 - 1
        order = torch.randperm(self.large, generator=generator)
        self.place = order % self.small  # the first transform of a padded vector repeats itself
        self.gauss = torch.randn(self.large, generator=generator)
        self.scale = float(1 / torch.sqrt(outputs * self.gauss.double().square().sum()))

    def to(self, device: torch.device) -> Fastfood:
        """Move what it is made of, in place."""
        self.signs, self.place, self.gauss = (t.to(device) for t in (self.signs, self.place, self.gauss))
        return self

    def matvec(self, x: Tensor) -> Tensor:
        image: Tensor = _Product.apply(x, self, False)
        return image

    def rmatvec(self, y: Tensor) -> Tensor:
        image: Tensor = _Product.apply(y, self, True)
        return image

    def _image(self, x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x * self.signs.to(x), (0, self.small - self.inputs))
        mixed = fwht(padded)[..., self.place] * self.gauss.to(x)
        return fwht(mixed)[..., : self.outputs] * self.scale

    def _adjoint(self, y: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(y * self.scale, (0, self.large - self.outputs))
        mixed = fwht(padded) * self.gauss.to(y)
        gathered = mixed.new_zeros(*mixed.shape[:-1], self.small).index_add(-1, self.place, mixed)
        return fwht(gathered)[..., : self.inputs] * self.signs.to(y)


class _Product(torch.autograd.Function):
    """P x or P^T y; each is the gradient of the other, so that nothing need be kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, projection: Fastfood, adjoint: bool) -> Tensor:
        ctx.projection, ctx.adjoint = projection, adjoint
        return projection._adjoint(x) if adjoint else projection._image(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Product.apply(gradients[0], ctx.projection, not ctx.adjoint), None, None


def fwht(x: Tensor) -> Tensor:
    """The Walsh-Hadamard transform of the last axis, not normalised: `fwht(fwht(x)) == n * x`.

    By products with small Hadamard matrices, one for each group of axes, instead of log2(n) passes. Raises
    `ValueError` unless the axis is a power of two.
    """
    n = x.shape[-1]
    if n & (n - 1) or not n:
        raise ValueError(f"the last axis has {n} entries, which is no power of two")
    result: Tensor = _Transform.apply(x)
    return result


class _Transform(torch.autograd.Function):
    """H x, whose matrix is symmetric and so its own adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _hadamard_times(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return fwht(gradients[0])


def _hadamard_times(x: Tensor) -> Tensor:
    n = x.shape[-1]
    bits = n.bit_length() - 1
    chunks = [bits // -(-bits // 6) + (i < bits % -(-bits // 6)) for i in range(-(-bits // 6))] if bits else []
    sizes = [1 << chunk for chunk in chunks]
    out = x.reshape(-1, *sizes)
    for axis, size in enumerate(sizes, 1):
        matrix = _hadamard(size).to(x)
        out = torch.tensordot(out, matrix, dims=([axis], [0])).movedim(-1, axis)
    return out.reshape(x.shape)


@lru_cache(maxsize=8)
def _hadamard(n: int) -> Tensor:
    """The Hadamard matrix (n, n) of 1 and -1: the parity of the bits that row and column share."""
    rows = torch.arange(n)
    shared, parity = rows[:, None] & rows, torch.zeros(n, n, dtype=torch.int64)
    for bit in range(n.bit_length()):
        parity ^= shared >> bit & 1
    return (1 - 2 * parity).float()


def _power_of_two(n: int) -> int:
    return 1 << math.ceil(math.log2(n)) if n > 1 else 1
