"""Add a low-rank change's effect to a layer's output in place, by as few and as well laid out products as there are.

Autograd's own way makes a temporary of the output's size and multiplies tall by thin matrices in the order in
which they come, which is two to five times slower than the transposed order. For the backward pass only the
input, which the layer's readers share, and the thin product are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F


def add_low_rank(output: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """`output + scale * x @ down.T @ up.T`, written into `output` (..., outputs) where autograd allows it.

    `x` (..., inputs), `down` (rank, inputs), `up` (outputs, rank). Where a function transform, forward-mode
    differentiation or a compiler must see the steps, they are plain ones.
    """
    if down.dtype != x.dtype:
        down, up = down.to(x.dtype), up.to(x.dtype)
    if output.dtype == x.dtype and output.is_contiguous() and not output._is_view() and not _seen_through():
        return _AddLowRank.apply(output, x, down, up, scale)
    added = F.linear(F.linear(x, down) * scale, up)
    return output.add_(added) if output.dtype == added.dtype else output + added.to(output.dtype)


def _seen_through() -> bool:
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return transformed or forward_ad._current_level >= 0 or torch.compiler.is_compiling()


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        hidden = down @ x.reshape(-1, x.shape[-1]).t()  # (rank, tokens)
        ctx.save_for_backward(x, hidden, down, up)
        ctx.scale = scale
        ctx.mark_dirty(output)
        output.view(-1, output.shape[-1]).addmm_(hidden.t(), up.t(), alpha=scale)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, hidden, down, up) = gradients, ctx.saved_tensors
        flat, inputs = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        if torch.is_grad_enabled():  # for second derivatives it must be a function of x and down
            hidden = down @ inputs.t()
        to_up = (hidden @ flat).mul_(ctx.scale).t()
        to_hidden = (up.t() @ flat.t()).mul_(ctx.scale)
        to_down = to_hidden @ inputs
        to_x = (to_hidden.t() @ down).view_as(x) if ctx.needs_input_grad[1] else None
        return gradient, to_x, to_down, to_up, None
