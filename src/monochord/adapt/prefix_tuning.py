"""Prefix tuning: trained keys and values that every head attends to, beside those of the tokens.

From "Prefix-Tuning: Optimizing Continuous Prompts for Generation", January 1, 2021; seen as an adapter of each head in
"Towards a Unified View of Parameter-Efficient Transfer Learning", October 8, 2021. With share `lam` of the attention,
a head becomes `(1 - lam) * head + lam * softmax(q keys') values`. Keys and values join where attention is computed and
nowhere else: positions, masks, labels and a key-value cache stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from monochord.core.modification import Modification, uniform
from monochord.core.sites import Site, SiteError, resolve, width
from monochord.core.switch import Switch
from monochord.core.tuner import Tuner

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": partial(F.softmax, dim=-1),
    "relu": F.relu,
    "linear": nn.Identity(),
}


@dataclass(frozen=True)
class PrefixTuning(Tuner):
    """Give each attention that `sites` names `length` trained keys and values a key-value head.

    `compose="gate"` is prefix tuning: the tokens' attention and the prefix's are normalised together. With "add" a
    head's output grows by `scale * function(q keys' / sqrt(d_head)) values`, where `function` is "softmax", "relu" or
    "linear": an adapter of each head in parallel, unchanged until trained. `hidden` trains the prefix through a small
    network of that width instead of directly; `Prefix.settled()` leaves it out afterwards.
    Needs attention by `scaled_dot_product_attention`, the default of transformers.
    """

    default_lr: ClassVar[float] = 1e-2

    length: int = 8
    sites: str | tuple[str, ...] = "blocks.*.attn"
    compose: str = "gate"
    function: str = "softmax"
    scale: float = 1.0
    hidden: int | None = None

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Prefix]]:
        if self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1")
        if self.compose not in ("gate", "add"):
            raise ValueError(f"compose={self.compose!r} is unknown: use 'gate' or 'add'")
        if self.function not in _FUNCTIONS:
            raise ValueError(f"function={self.function!r} is unknown: use one of {', '.join(_FUNCTIONS)}")
        if self.compose == "gate" and (self.function != "softmax" or self.scale != 1.0):
            raise ValueError("compose='gate' shares one softmax: use function='softmax' and scale=1, or compose='add'")
        for site in resolve(model, self.sites):
            if site.heads is None:
                raise SiteError(f"{site} has no heads that a prefix could join: name attentions, such as blocks.*.attn")
            shape = (site.heads.n_kv_heads, self.length, site.heads.d_head)
            form = (self.compose, self.function, self.scale)
            yield site, Prefix(shape, *form, hidden=self.hidden, d_model=width(model, site), generator=generator)


class Prefix(Modification):
    """`keys` and `values`, (kv_heads, length, d_head) each, for one attention."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        compose: str = "gate",
        function: str = "softmax",
        scale: float = 1.0,
        *,
        hidden: int | None = None,
        d_model: int = 0,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.compose, self.function, self.scale = shape, compose, function, scale
        self.neutral = compose == "add" and hidden is None
        heads, length, d_head = shape
        if hidden is None:
            self.keys = nn.Parameter(torch.randn(shape, generator=generator) / math.sqrt(d_head))
            start = torch.zeros(shape) if self.neutral else 0.02 * torch.randn(shape, generator=generator)
            self.values = nn.Parameter(start)
            return
        self.seed = nn.Parameter(torch.randn(length, d_model, generator=generator))
        self.inner = nn.Parameter(uniform((hidden, d_model), d_model, generator))
        self.inner_bias = nn.Parameter(torch.zeros(hidden))
        outputs = 2 * heads * d_head
        self.outer = nn.Parameter(uniform((outputs, hidden), hidden, generator))
        self.outer_bias = nn.Parameter(torch.zeros(outputs))

    def table(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (kv_heads, length, d_head)."""
        if hasattr(self, "keys"):
            return self.keys, self.values
        flat = F.linear(torch.tanh(F.linear(self.seed, self.inner, self.inner_bias)), self.outer, self.outer_bias)
        heads, length, d_head = self.shape
        keys, values = flat.reshape(length, 2, heads, d_head).permute(1, 2, 0, 3)
        return keys, values

    def settled(self) -> Prefix:
        """The same prefix with its keys and values as plain parameters."""
        made = Prefix(self.shape, self.compose, self.function, self.scale)
        with torch.no_grad():
            for own, value in zip((made.keys, made.values), self.table(), strict=True):
                own.copy_(value)
        return made

    def install(self, site: Site, model: nn.Module, switch: Switch, number: int) -> list[Any]:
        watch = _Watch(site, self, switch, number)
        module = model.get_submodule(site.path)
        return [
            module.register_forward_pre_hook(watch.enter, with_kwargs=True),
            module.register_forward_hook(watch.leave, always_call=True),
        ]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        """Attention (batch, heads, queries, d_head) of tokens and prefix together."""
        keys, values = (self._like(part, key if own == 0 else value) for own, part in enumerate(self.table()))
        if self.compose == "gate":
            mask = _longer(query, key, keys.shape[-2], options)
            key, value = torch.cat([keys, key], -2), torch.cat([values, value], -2)
            return F.scaled_dot_product_attention(
                query, key, value, **{**options, "attn_mask": mask, "is_causal": False}
            )
        plain = F.scaled_dot_product_attention(query, key, value, **options)
        if keys.shape[1] != query.shape[1]:
            keys, values = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (keys, values))
        scores = query @ keys.mT / math.sqrt(query.shape[-1])
        return plain + self.scale * _FUNCTIONS[self.function](scores) @ values

    def _like(self, part: Tensor, other: Tensor) -> Tensor:
        """(kv_heads, length, d_head) for every example and as many heads as the tokens' (repeated for groups)."""
        part = part.to(other.dtype)
        if part.shape[0] != other.shape[1]:
            part = part.repeat_interleave(other.shape[1] // part.shape[0], 0)
        return part.expand(other.shape[0], -1, -1, -1)


class _Watch:
    """A prefix in one attention, for the length of each of its calls."""

    def __init__(self, site: Site, prefix: Prefix, switch: Switch, number: int) -> None:
        self.site, self.prefix, self.switch, self.number = site, prefix, switch, number
        self.modes: list[_Joined | None] = []

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mode = None if self.switch.strength is None else _Joined(self.prefix, self.switch)
        self.modes.append(mode)
        if mode is not None:
            mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, args: Any, result: Any) -> None:
        mode = self.modes.pop() if self.modes else None
        if mode is None:
            return
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if result is None:  # the forward failed
            return
        if not mode.seen:
            raise SiteError(
                f"{self.site} computes its attention in a way that no prefix can join: "
                'load the model with attn_implementation="sdpa"'
            )
        self.switch.reached.add(self.number)


class _Joined(TorchFunctionMode):
    """Adds the prefix to fused attention."""

    def __init__(self, prefix: Prefix, switch: Switch) -> None:
        super().__init__()
        self.prefix, self.switch, self.seen = prefix, switch, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.seen = True
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
        options = {**dict(zip(names, args, strict=False)), **kwargs}
        query, key, value = (options.pop(name) for name in names[:3])
        joined = self.prefix.attend(query, key, value, options)
        if isinstance(self.switch.strength, float) and self.switch.strength == 1.0:
            return joined
        return self.switch.blend(func(query, key, value, **options), joined)


def _longer(query: Tensor, key: Tensor, length: int, options: dict[str, Any]) -> Tensor | None:
    """The mask with `length` keys in front that everyone may see; queries that see nothing else see only those."""
    mask = options.get("attn_mask")
    if options.get("is_causal"):
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is None:
        return None
    free = True if mask.dtype == torch.bool else 0.0
    return torch.cat([mask.new_full((*mask.shape[:-1], length), free), mask], -1)
