"""Attention written out, for as long as someone looks at its scores or pattern.

While a function sits on `:scores` or `:pattern` of an attention module, fused attention inside that module
runs as `softmax(scores) @ values`, and softmax as it stands in eager code is seen too. Nothing is switched in
the model's configuration. The same works for torch's multi-head attention, whose per-head outputs no hook sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from monochord.core.pattern import SiteError
from monochord.core.sites import Site

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}


Act = Callable[[Tensor, Any], "Tensor | None"]


def install_attention(model: nn.Module, site: Site, act: Act) -> list[Any]:
    """Run `act` on the scores or pattern (batch, heads, queries, keys) or heads of one attention module."""
    module = model.get_submodule(site.path)
    watch = _Watch(site, act)
    return [
        module.register_forward_pre_hook(watch.enter, with_kwargs=True),
        module.register_forward_hook(watch.leave, always_call=True),
    ]


class _Watch:
    """Explicit attention for the length of one call of a module."""

    def __init__(self, site: Site, act: Act) -> None:
        self.site, self.act = site, act
        self.modes: list[_Explicit | None] = []

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getattr(self.act, "idle", False):  # switched off, so the fused attention runs as it would
            self.modes.append(None)
            return
        value = args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor))
        output = getattr(module, "out_proj", None) if self.site.port == "heads" else None
        batch = value.shape[0 if getattr(module, "batch_first", True) else 1] if value.dim() == 3 else 1
        mode = _Explicit(self.site, self.act, output, batch)
        self.modes.append(mode)
        mode.__enter__()

    def leave(self, module: nn.Module, args: Any, result: Any) -> None:
        if not self.modes:  # the forward failed before this module was entered
            return
        mode = self.modes.pop()
        if mode is None:
            return
        mode.__exit__(None, None, None)
        if not mode.seen and result is not None:
            raise SiteError(
                f"{self.site} was never computed: this attention hides it; load the model with "
                'attn_implementation="sdpa" or "eager"'
            )


class _Explicit(TorchFunctionMode):
    """Replaces fused attention by its formula and shows scores, pattern or heads to `act`."""

    def __init__(self, site: Site, act: Act, output: nn.Module | None, batch: int) -> None:
        super().__init__()
        self.site, self.act, self.output, self.batch = site, act, output, batch
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            # It is written in Python, so its steps can be seen, once it has been told that nobody overrides it.
            with self, mock.patch.object(F, "has_torch_function", lambda _: False):
                return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention and self.site.port != "heads":
            return self._attend(*args, **kwargs)
        if func in _SOFTMAX and self.site.port != "heads":
            return self._softmax(func, *args, **kwargs)
        if func is F.linear and self.output is not None and args[1] is self.output.weight:
            return func(self._see_heads(args[0]), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _attend(self, *args: Any, **kwargs: Any) -> Tensor:
        scores, blocked, value, dropout = attention_scores(*args, **kwargs)
        scores = self._see(scores if blocked is None else scores.masked_fill(blocked, float("-inf")), "scores")
        pattern = _without_empty(torch.softmax(scores.float(), dim=-1).to(value.dtype), scores)
        return F.dropout(self._see(pattern, "pattern"), dropout) @ value

    def _softmax(self, func: Any, scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scores = self._see(scores, "scores")
        return self._see(_without_empty(func(scores, *args, **kwargs), scores), "pattern")

    def _see(self, value: Tensor, what: str) -> Tensor:
        """Show (batch, heads, queries, keys), however they are packed.

        Torch's multi-head attention lays batch and heads on one axis; transformers lays the query heads that
        share a key along the queries when there is one query.
        """
        if what != self.site.port:
            return value
        self.seen = True
        heads = self.site.heads.n_heads if self.site.heads else value.shape[1]
        batch = value.shape[0] // heads if value.dim() == 3 else value.shape[0]
        new = self.act(value.reshape(batch, heads, -1, value.shape[-1]), None)
        return value if new is None else new.reshape(value.shape)

    def _see_heads(self, value: Tensor) -> Tensor:
        """Show (batch, seq, heads, d_head); inside, the tokens of a batch lie one after the other, time first."""
        self.seen = True
        assert self.site.heads is not None
        split = (self.site.heads.n_heads, self.site.heads.d_head)
        new = self.act(value.reshape(-1, self.batch, *split).transpose(0, 1), None)
        return value if new is None else new.transpose(0, 1).reshape(value.shape)


def _without_empty(pattern: Tensor, scores: Tensor) -> Tensor:
    """Zero for queries that may look nowhere (padding), as fused attention has it."""
    return torch.where(torch.isneginf(scores).all(-1, keepdim=True), 0.0, pattern)


def attention_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, float]:
    """The arguments of fused attention as scores before masking, the mask of what is blocked, values and dropout."""
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        repeat = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeat, -3), value.repeat_interleave(repeat, -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None or attn_mask.dtype == torch.bool:
        return scores, None if attn_mask is None else ~attn_mask, value, dropout_p
    blocked = torch.isneginf(attn_mask)
    return scores + attn_mask.masked_fill(blocked, 0.0), blocked, value, dropout_p
