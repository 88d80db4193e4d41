"""What low precision does to a model: arithmetic with few bits of mantissa, forwards and backwards.

For "Mamba State-Space Models Are Lyapunov-Stable Learners", May 31, 2024, whose half precision can be made coarser here
until its effect is seen on small models.

    with coarse(bits=4):
        mc.fit(model, data, steps=100)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
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
def coarse(bits: int, *, exact: Collection[Callable[..., Any]] = ()) -> Iterator[None]:
    """For a block every product of matrices and every convolution takes and gives numbers of `bits` bits of mantissa.

    As autocast does: weights stay as they are and are rounded where they are used, attention's weights too; sums,
    norms and softmax keep their precision, and so does a recurrence written step by step. One written in products has
    them named in `exact`: `(torch.einsum,)` for the scan of transformers' Mamba-2, which its kernel does in float32.
    Raises `ValueError` for bits outside 1 to 23.
    """
    round_mantissa(torch.zeros(()), bits)
    with _Coarse(bits, PRODUCTS.difference(exact)):
        yield


def rounding_drift(step: Callable[[Tensor, Any], Tensor], state: Tensor, inputs: Iterable[Any], bits: int) -> Tensor:
    """How far a recurrence gets from itself when its state is rounded to `bits` bits of mantissa at every step.

    `state = step(state, input)` for the inputs in turn, from a `state` (rows, ...). Returns (steps, rows): the distance
    of the rounded state from the exact one, in lengths of the exact one. Raises `ValueError` for bits outside 1 to 23.
    """
    exact, rounded, drift = state, state, []
    for given in inputs:
        exact, rounded = step(exact, given), round_mantissa(step(rounded, given), bits)
        drift.append((rounded - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1))
    return torch.stack(drift)


class _Coarse(TorchFunctionMode):
    def __init__(self, bits: int, products: Collection[Any]) -> None:
        super().__init__()
        self.bits, self.products = bits, products

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.products or self.bits >= FULL:
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map(self._rounded, (args, kwargs))
        made = self._attention if func is F.scaled_dot_product_attention else func
        return pytree.tree_map(self._rounded, made(*args, **kwargs))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        """Attention whose weights are rounded between its two products, as they are in a kernel that fuses these."""
        math = torch.ops.aten._scaled_dot_product_attention_math
        weights: Tensor = math(query, key, value, attn_mask, dropout_p, is_causal, **options)[1]
        return round_mantissa(weights, self.bits) @ value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)

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
    if x.dtype == torch.float32:  # on its bits, which is four times as fast: half an ulp is added, ties to even
        stored, drop = x.contiguous().view(torch.int32), FULL - bits
        half = (stored >> drop).bitwise_and_(1).add_((1 << (drop - 1)) - 1)
        rounded = half.add_(stored).bitwise_and_(-1 << drop).view(torch.float32)
        return torch.where(torch.isfinite(x), rounded, x)
    mantissa, exponent = torch.frexp(x)  # mantissa from 0.5 to 1, whose first bit is not stored
    rounded = torch.ldexp(torch.ldexp(mantissa, torch.tensor(bits + 1)).round(), exponent - (bits + 1))
    return torch.where(torch.isfinite(x), rounded, x).to(x.dtype)
