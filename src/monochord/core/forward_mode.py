"""Forward-mode differentiation of any model: what torch has no forward-mode derivative for, written out.

Fused attention and group normalisation run by their formulas, fused experts and torch's multi-head attention by
their Python code. Only for the length of a block; no module is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from monochord.core.attention import attention_scores


@contextmanager
def written_out(model: nn.Module) -> Iterator[None]:
    """Every step of `model` has a forward-mode derivative inside this block."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    fused = [c for c in configs.values() if getattr(c, "_experts_implementation", None) == "grouped_mm"]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for config in fused:
            config._experts_implementation = "eager"
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH), _Written():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for config in fused:
            config._experts_implementation = "grouped_mm"


class _Written(TorchFunctionMode):
    """Functions replaced by their formulas wherever Python code calls them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            func = _attention
        elif func is F.group_norm:
            func = _group_norm
        return func(*args, **(kwargs or {}))


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    """Attention whose derivatives are finite also for queries that may look nowhere; they get zeros."""
    scores, blocked, value, dropout = attention_scores(*args, **kwargs)
    if blocked is None:
        return F.dropout(torch.softmax(scores, -1), dropout) @ value
    pattern = torch.softmax(scores.masked_fill(blocked, torch.finfo(scores.dtype).min), -1)
    return F.dropout(pattern.masked_fill(blocked, 0.0), dropout) @ value


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Group normalisation; torch's own fails in forward mode on values whose layout is not plain."""
    grouped = input.reshape(input.shape[0], num_groups, -1)
    variance, mean = torch.var_mean(grouped, -1, correction=0, keepdim=True)
    normed = ((grouped - mean) * torch.rsqrt(variance + eps)).reshape(input.shape)
    shape = (-1, *(1,) * (input.dim() - 2))
    normed = normed if weight is None else normed * weight.reshape(shape)
    return normed if bias is None else normed + bias.reshape(shape)
