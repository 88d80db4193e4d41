"""Operators that keep a few bits a number for their backward pass: forward values exact, gradients rounded.

From "S2A: A Unified Framework for Parameter and Memory Efficient Transfer Learning", March 11, 2025. An activation
function keeps its derivative, whose range is known, a norm its normalised input in groups, a softmax its output. Fused
attention, which the paper leaves alone, keeps queries, keys and values in groups and is run again in the backward pass.

    with compressed(model, bits=4):
        fit(model, data, objective, steps=100)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import get_device_states, set_device_states

from monochord.core.blocks import kind

OPERATORS = ("activation", "norm", "softmax", "attention")
_SLOPES = {  # the range of the derivative, by class of torch or transformers
    (0.0, 1.0): "ReLU ReLU6 Tanh Softplus",
    (0.0, 0.25): "Sigmoid",
    (-0.13, 1.13): "GELU GELUActivation NewGELUActivation FastGELUActivation GELUTanh AccurateGELUActivation",
    (-0.1, 1.1): "SiLU SiLUActivation QuickGELUActivation",
    (-0.5, 1.5): "Hardswish",
}
_SPANS = {name: span for span, names in _SLOPES.items() for name in names.split()}


@dataclass(frozen=True)
class Code:
    """How numbers are stored: `bits` each (1, 2, 4, 8 or 16), one range for every `group` numbers where none is known,
    rounded to the nearest level or, `stochastic`, to one of the two around with the right mean."""

    bits: int = 4
    group: int = 128
    stochastic: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8, 16):
            raise ValueError(f"bits={self.bits} must be 1, 2, 4, 8 or 16")

    @property
    def levels(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    def encode(self, x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
        """Packed codes of `x` within [low, high]."""
        scaled = (x - low) / (high - low) * self.levels
        scaled = torch.floor(scaled + torch.rand_like(scaled)) if self.stochastic else scaled.round()
        return pack(scaled.clamp(0, self.levels), self.bits)

    def decode(self, codes: Tensor, shape: torch.Size, low: Tensor | float, high: Tensor | float) -> Tensor:
        """What `encode` packed, of `shape`, in float32."""
        return unpack(codes, self.bits, math.prod(shape)).reshape(shape) * ((high - low) / self.levels) + low

    def encode_groups(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Packed codes and each group's range (groups, 2) in float16."""
        rows = self._groups(x.float())
        span = torch.stack([rows.min(1).values, rows.max(1).values], 1).half()
        low, high = span.float().unbind(1)
        return self.encode(rows, low[:, None], torch.maximum(high, low + 1e-6)[:, None]), span

    def decode_groups(self, codes: Tensor, span: Tensor, shape: torch.Size) -> Tensor:
        low, high = span.float().unbind(1)
        size = torch.Size((len(span), self.group))
        rows = self.decode(codes, size, low[:, None], torch.maximum(high, low + 1e-6)[:, None])
        return rows.reshape(-1)[: math.prod(shape)].reshape(shape)

    def _groups(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1)
        short = -len(flat) % self.group
        return (
            torch.cat([flat, flat[-1:].expand(short)]).reshape(-1, self.group)
            if short
            else flat.reshape(-1, self.group)
        )


@contextmanager
def compressed(
    model: nn.Module,
    bits: int = 4,
    operators: tuple[str, ...] = OPERATORS,
    *,
    group: int = 128,
    stochastic: bool = False,
) -> Iterator[list[str]]:
    """Within the block the model's activation functions, norms and softmaxes keep `bits` a number; yields their names.

    Those are reached that are modules of their own, and attention that is torch's one fused call while `model` itself
    runs. Raises `ValueError` when the model has none of the `operators`.
    """
    if unknown := set(operators) - set(OPERATORS):
        raise ValueError(f"operators={sorted(unknown)[0]!r} is unknown: use some of {', '.join(OPERATORS)}")
    code = Code(bits, group, stochastic)
    swapped: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        found = operator(module)
        if found is not None and found in operators and "forward" not in module.__dict__:
            object.__setattr__(module, "forward", _Compressed(module, found, code))
            swapped.append((name, module))
    if not swapped and set(operators) != {"attention"}:
        raise ValueError(f"{type(model).__name__} has no module that is one of {', '.join(operators)}")
    whole = _Fused(code) if "attention" in operators else None
    handles = [] if whole is None else whole.around(model)
    try:
        yield [name for name, _ in swapped]
    finally:
        for _, module in swapped:
            object.__delattr__(module, "forward")
        for handle in handles:
            handle.remove()


def operator(module: nn.Module) -> str | None:
    """Which of `OPERATORS` a module is, if any."""
    name = kind(module)
    if isinstance(module, nn.LayerNorm) or name.endswith("RMSNorm"):
        return "norm"
    if isinstance(module, nn.Softmax):
        return "softmax" if module.dim in (-1, None) else None
    return "activation" if name in _SPANS else None


class _Compressed:
    """The forward of one operator, in place of its module's own."""

    def __init__(self, module: nn.Module, which: str, code: Code) -> None:
        self.module, self.which, self.code = module, which, code

    def __call__(self, x: Tensor) -> Tensor:
        own: Callable[[Tensor], Tensor] = type(self.module).forward.__get__(self.module)
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in (x, *self.module.parameters())):
            return own(x)
        result: Tensor
        if self.which == "activation":
            result = _Elementwise.apply(x, own, _SPANS[kind(self.module)], self.code)
        elif self.which == "softmax":
            result = _Softmax.apply(x, own, self.code)
        else:
            centred = isinstance(self.module, nn.LayerNorm)
            eps = getattr(self.module, "variance_epsilon", getattr(self.module, "eps", 1e-6))
            bias = getattr(self.module, "bias", None)
            result = _Norm.apply(x, self.module.weight, bias, own, centred, float(eps or 1e-6), self.code)
        return result


class _Elementwise(torch.autograd.Function):
    """f(x), keeping codes of f'(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Any, span: tuple[float, float], code: Code) -> Tensor:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_same, _same):  # not kept: not counted
            inner = x.detach().requires_grad_()
            y = function(inner)
            (slope,) = torch.autograd.grad(y.sum(), inner)
        ctx.save_for_backward(code.encode(slope.float(), *span))
        ctx.rest = span, code, x.shape
        return y.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (codes,), (span, code, shape) = ctx.saved_tensors, ctx.rest
        return gradients[0] * code.decode(codes, shape, *span).to(gradients[0].dtype), None, None, None


class _Softmax(torch.autograd.Function):
    """softmax(x) over the last axis, keeping codes of its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Any, code: Code) -> Tensor:
        y: Tensor = function(x)
        ctx.save_for_backward(*code.encode_groups(y))
        ctx.rest = code, y.shape
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        code, shape = ctx.rest
        p = code.decode_groups(*ctx.saved_tensors, shape).to(gradients[0].dtype)
        return p * (gradients[0] - (gradients[0] * p).sum(-1, keepdim=True)), None, None


class _Norm(torch.autograd.Function):
    """LayerNorm (`centred`) or RMSNorm over the last axis, keeping codes of the normalised input and 1/sigma a row."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        function: Any,
        centred: bool,
        eps: float,
        code: Code,
    ) -> Tensor:
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True) if centred else wide
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        kept = (weight,) if weight is not None else ()
        ctx.save_for_backward(*code.encode_groups(wide * inverse), inverse, *kept)
        ctx.rest = centred, code, x.shape, bias is not None
        y: Tensor = function(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        centred, code, shape, biased = ctx.rest
        codes, span, inverse, *kept = ctx.saved_tensors
        normal, upper = code.decode_groups(codes, span, shape), gradients[0].float()
        inner = upper * kept[0].float() if kept else upper
        slope = inner - normal * (inner * normal).mean(-1, keepdim=True)
        slope = (slope - inner.mean(-1, keepdim=True) if centred else slope) * inverse
        rows = tuple(range(upper.dim() - 1))
        weight = (upper * normal).sum(rows).to(kept[0].dtype) if kept and ctx.needs_input_grad[1] else None
        bias = upper.sum(rows).to(gradients[0].dtype) if biased and ctx.needs_input_grad[2] else None
        return slope.to(gradients[0].dtype), weight, bias, None, None, None, None


class _Fused(TorchFunctionMode):
    """Fused attention that keeps codes, while a model runs."""

    def __init__(self, code: Code) -> None:
        self.code = code

    def around(self, model: nn.Module) -> list[Any]:
        def enter(*_: Any) -> None:
            self.__enter__()

        def leave(*_: Any) -> None:
            self.__exit__(None, None, None)

        return [model.register_forward_pre_hook(enter), model.register_forward_hook(leave, always_call=True)]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention and self._reaches(*args, **kwargs):
            return _Attention.apply(*_ordered(*args, **kwargs), self.code)
        return function(*args, **kwargs)

    @staticmethod
    def _reaches(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *_: Any, **__: Any) -> bool:
        """A mask that learns needs a gradient of its own."""
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        return learns and not (attn_mask is not None and attn_mask.requires_grad)


def _ordered(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> tuple[Any, ...]:
    return query, key, value, attn_mask, {"dropout_p": dropout_p, "is_causal": is_causal, **options}


class _Attention(torch.autograd.Function):
    """Attention, keeping codes of queries, keys and values."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Any, code: Code
    ) -> Tensor:
        tensors = (query, key, value)
        kept = [part for x in tensors for part in code.encode_groups(x)]
        ctx.save_for_backward(*kept, *(() if mask is None else (mask,)))
        random = (torch.get_rng_state(), *get_device_states(query)) if options["dropout_p"] else None
        ctx.rest = options, code, [(x.shape, x.dtype) for x in tensors], random
        return scaled_dot_product_attention(query, key, value, mask, **options)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        options, code, forms, random = ctx.rest
        *kept, mask = ctx.saved_tensors if len(ctx.saved_tensors) % 2 else (*ctx.saved_tensors, None)
        pairs = zip(kept[::2], kept[1::2], forms, strict=True)
        near = [code.decode_groups(codes, span, shape).to(dtype) for codes, span, (shape, dtype) in pairs]
        asked = [i for i in range(3) if ctx.needs_input_grad[i]]
        hooks = torch.autograd.graph.saved_tensors_hooks(_same, _same)  # not kept from the forward: not counted
        with torch.enable_grad(), hooks, _drawn_again(random):
            near = [x.requires_grad_(i in asked) for i, x in enumerate(near)]
            output = scaled_dot_product_attention(near[0], near[1], near[2], mask, **options)
            slopes = dict(zip(asked, torch.autograd.grad(output, [near[i] for i in asked], gradients[0]), strict=True))
        return slopes.get(0), slopes.get(1), slopes.get(2), None, None, None


@contextmanager
def _drawn_again(random: tuple[Any, ...] | None) -> Iterator[None]:
    """Random numbers as they were when `random` was taken."""
    if random is None:
        yield
        return
    state, devices, states = random
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(state)
        set_device_states(devices, states)
        yield


def _same(tensor: Tensor) -> Tensor:
    return tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integer codes (any shape, any dtype) as bytes, `8 / bits` to one; of 16 bits two bytes each."""
    flat = codes.reshape(-1)
    if bits == 16:
        return (flat.int() - 32768).to(torch.int16)
    flat = flat.to(torch.uint8)
    per = 8 // bits
    if per == 1:
        return flat
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % per)).reshape(-1, per)
    packed = flat[:, 0].clone()
    for i in range(1, per):
        packed |= flat[:, i] << (i * bits)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes of what `pack` made, as float32."""
    if bits == 16:
        return packed[:count].float() + 32768
    per = 8 // bits
    if per == 1:
        return packed[:count].float()
    mask = 2**bits - 1
    columns = [packed >> (i * bits) & mask for i in range(per)]
    return torch.stack(columns, 1).reshape(-1)[:count].float()
