"""What low precision does to a model: arithmetic with few bits of mantissa, forwards and backwards.

For "Mamba State-Space Models Are Lyapunov-Stable Learners", May 31, 2024, whose half precision can be made coarser here
until its effect is seen on small models.

    with coarse(bits=4):
        mc.fit(model, data, steps=100)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

FULL = 23  # bits of mantissa that float32 stores

PRODUCTS = frozenset((
    F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    F.scaled_dot_product_attention, torch.matmul, torch.mm, torch.bmm, torch.mv, torch.einsum, torch.addmm,
    torch.baddbmm, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm,
))  # fmt: skip


def round_mantissa(x: Tensor, bits: int) -> Tensor:
    """`x` with `bits` bits of mantissa, to nearest: 7 as bfloat16 stores, 10 as float16 and TF32; range is kept.

    The gradient is rounded on its way back. Raises `ValueError` for bits outside 1 to 23.
    """
    if not 1 <= bits <= FULL:
        raise ValueError(f"bits={bits}: use 1 to {FULL}, of which float32 has all")
    rounded: Tensor = _Round.apply(x, bits) if bits < FULL else x  # type: ignore[no-untyped-call]
    return rounded


@contextmanager
def coarse(bits: int) -> Iterator[None]:
    """For a block every product of matrices and every convolution takes and gives numbers of `bits` bits of mantissa.

    As autocast does: weights stay as they are and are rounded where they are used; sums, norms and recurrences
    keep their precision.
    """
    round_mantissa(torch.zeros(()), bits)
    with _Coarse(bits):
        yield


class _Coarse(TorchFunctionMode):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or self.bits >= FULL:
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map(self._rounded, (args, kwargs))
        return pytree.tree_map(self._rounded, func(*args, **kwargs))

    def _rounded(self, value: Any) -> Any:
        real = isinstance(value, Tensor) and value.is_floating_point()
        return round_mantissa(value, self.bits) if real else value


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return _nearest(x, bits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _nearest(grads[0], ctx.bits), None


def _nearest(x: Tensor, bits: int) -> Tensor:
    mantissa, exponent = torch.frexp(x)  # mantissa from 0.5 to 1, whose first bit is not stored
    rounded = torch.ldexp(torch.ldexp(mantissa, torch.tensor(bits + 1)).round(), exponent - (bits + 1))
    return torch.where(torch.isfinite(x), rounded, x).to(x.dtype)
