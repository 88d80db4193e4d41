"""Instruction-aware prompts: at every block a small generator reads the instruction and writes a few soft tokens.

From "IAPT: Instruction-Aware Prompt Tuning for Large Language Models", May 28, 2024. The tokens are written while the
instruction is read and then live in the key-value cache: decoding does nothing more. The activation inside each
generator is a rational function that is trained along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from monochord.adapt.prompt_tokens import PromptTokens
from monochord.core.attach import Attachment, Placement
from monochord.core.modification import Modification, uniform
from monochord.core.ports import cache_length
from monochord.core.prompt import Prompt, stack_of
from monochord.core.sites import Site, resolve, width
from monochord.core.switch import Switch
from monochord.core.tuner import Tuner

_FIXED: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}


@dataclass(frozen=True)
class InstructionPrompts(Tuner):
    """`length` tokens that a generator of width `bottleneck` writes anew at the input of each block.

    The instruction is what the batch's `instruction_mask` (batch, seq) marks, or without one all tokens that are not
    padding when there is no cache yet: train with the mask, so that no generator sees the response. `share_every`
    blocks have their two projections in common. `activation` is "rational", "gelu", "relu" or "tanh"; `pooling` is
    "attention", or "mean" of the instruction for every token.
    Trained are for each group `2 d bottleneck`, and for each block `length (bottleneck + d)` and 12 for a rational,
    all together or the rationals above the rest by `Bilevel`: see `activations`.
    """

    default_lr: ClassVar[float] = 3e-3

    length: int = 4
    bottleneck: int = 8
    share_every: int = 1
    activation: str = "rational"
    pooling: str = "attention"
    sites: str = "blocks.*:in"

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        if self.activation != "rational" and self.activation not in _FIXED:
            raise ValueError(f"activation={self.activation!r} is unknown: use 'rational', {', '.join(_FIXED)}")
        if self.pooling not in ("attention", "mean"):
            raise ValueError(f"pooling={self.pooling!r} is unknown: use 'attention' or 'mean'")
        if self.bottleneck < 1 or self.share_every < 1:
            raise ValueError(f"bottleneck={self.bottleneck} and share_every={self.share_every} must be at least 1")
        (start, drawn), *others = PromptTokens(self.length).plan(model, generator)
        if others:
            raise ValueError(f"{self} needs one stack of blocks, and the model has {1 + len(others)}")
        prompt, d = Prompt(drawn.tokens), width(model, start)
        prompt.tokens.requires_grad_(False)  # a place to write to
        yield start, prompt
        span, size = Span(start, prompt), float(drawn.tokens.detach().std())
        shared: tuple[nn.Parameter, nn.Parameter] | None = None
        for number, site in enumerate(resolve(model, self.sites)):
            owner = number % self.share_every == 0
            if shared is None or owner:
                shared = (
                    nn.Parameter(uniform((self.bottleneck, d), d, generator)),
                    nn.Parameter(torch.zeros(d, self.bottleneck)),
                )
            change = PromptGenerator(shared, self.length, self.activation, size, generator)
            change.score = change.score if self.pooling == "attention" else None
            change.span, change.owner, change.first = span, owner, number == 0
            yield site, change


def activations(attachment: Attachment) -> list[Rational]:
    """The trained activations of a model's generators, in turn.

    The first stage of two: `Bilevel` with their parameters above. The second: copy them by `load_state_dict` into a
    fresh attachment and freeze them with `requires_grad_(False)`.
    """
    changes = (change for _, change in attachment.placements)
    return [c.activation for c in changes if isinstance(c, PromptGenerator) and isinstance(c.activation, Rational)]


class PromptGenerator(Modification):
    """H (batch, n, d) and a mask (batch, n) to prompts (batch, length, d).

    `up f(S' Z) + bias` with Z = H down' (n, bottleneck) and S the softmax over n of tanh(Z) score', which is even
    without a `score`.
    """

    neutral = False
    span: Span
    owner = True  # of the projections that others share: it saves them
    first = True  # it looks for the instruction

    def __init__(
        self, shared: tuple[nn.Parameter, nn.Parameter], length: int, activation: str, size: float, g: Generator
    ) -> None:
        super().__init__()
        self.down, self.up = shared
        d, bottleneck = self.up.shape
        self.score: nn.Parameter | None = nn.Parameter(uniform((length, bottleneck), bottleneck, g))
        self.bias = nn.Parameter(size * torch.randn(length, d, generator=g))
        self.activation: Callable[[Tensor], Tensor] = Rational() if activation == "rational" else _FIXED[activation]

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        narrow = F.linear(hidden, self.down.to(hidden.dtype))
        if self.score is None:
            scores = torch.zeros(*narrow.shape[:2], len(self.bias), device=narrow.device)
        else:
            scores = F.linear(torch.tanh(narrow), self.score.to(hidden.dtype)).float()
        if mask is not None:  # an empty instruction is read evenly instead of as no number
            scores = scores.masked_fill((mask == 0)[..., None], torch.finfo(scores.dtype).min)
        pooled = scores.softmax(1).to(hidden.dtype).mT @ narrow
        return F.linear(self.activation(pooled), self.up.to(hidden.dtype)) + self.bias.to(hidden.dtype)

    def saved(self) -> dict[str, Tensor]:
        shared = () if self.owner else ("down", "up")
        return {name: value for name, value in super().saved().items() if name not in shared}

    def install(self, site: Site, model: nn.Module, switch: Switch, number: int) -> list[Any]:
        writing = _Writing(self, switch, number)
        handles: list[Any] = [
            model.get_submodule(site.module).register_forward_pre_hook(writing.write, with_kwargs=True)
        ]
        if self.first:
            stack, _ = stack_of(model, self.span.start)
            handles += [
                model.register_forward_pre_hook(self.span.take, with_kwargs=True, prepend=True),
                stack.register_forward_pre_hook(self.span.enter, with_kwargs=True, prepend=True),
                stack.register_forward_hook(self.span.leave, always_call=True),
            ]
        return handles


class Span:
    """Which tokens of the running forward are the instruction; `reading` while it is read."""

    def __init__(self, start: Site, prompt: Prompt) -> None:
        self.start, self.prompt = start, (prompt,)
        self.reading = False
        self.given: Tensor | None = None
        self.mask: Tensor | None = None

    def take(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.given = kwargs.pop("instruction_mask", None)
        return args, kwargs

    def enter(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.reading = cache_length(kwargs.get("past_key_values", kwargs.get("cache_params"))) == 0
        mask = kwargs.get("attention_mask") if self.given is None else self.given
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def leave(self, stack: nn.Module, args: Any, output: Any) -> None:
        self.reading, self.given, self.mask = False, None, None


class _Writing:
    """A generator before one block."""

    def __init__(self, generator: PromptGenerator, switch: Switch, number: int) -> None:
        self.generator, self.switch, self.number = generator, switch, number

    def write(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        span = self.generator.span
        if self.switch.strength is None or not span.reading:
            return None
        self.switch.reached.add(self.number)
        value = args[0] if args else kwargs["hidden_states"]
        (prompt,) = span.prompt
        length = len(prompt.tokens)
        states = value[:, length:] if prompt.front else value[:, :-length]
        mask = span.mask
        if mask is not None:  # prompts of others are none of the instruction
            extra = states.shape[1] - mask.shape[1]
            mask = F.pad(mask, (extra, 0) if prompt.front else (0, extra))
        written = self.generator(states, mask).to(value.dtype)
        value = torch.cat([written, states] if prompt.front else [states, written], 1)
        return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})


class Rational(nn.Module):
    """(a_0 + ... + a_6 x^6) / (1 + |b_1 x + ... + b_5 x^5|), at first GELU on [-3, 3]; the denominator is never below
    one."""

    def __init__(self) -> None:
        super().__init__()
        above, below = _gelu()
        self.above = nn.Parameter(torch.tensor(above, dtype=torch.float32))
        self.below = nn.Parameter(torch.tensor(below, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        above, below = self.above.to(x.dtype), self.below.to(x.dtype)
        numerator = above[-1]
        for a in above[:-1].flip(0):
            numerator = numerator * x + a
        denominator = below[-1]
        for b in below[:-1].flip(0):
            denominator = denominator * x + b
        return numerator / (1 + (denominator * x).abs())


@cache
def _gelu() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The coefficients of GELU, by linear least squares; b_2 and b_4 alone, which come out positive."""
    x = np.linspace(-3, 3, 601)
    y = F.gelu(torch.from_numpy(x)).numpy()
    columns = np.stack([*(x**j for j in range(7)), -y * x**2, -y * x**4], 1)
    *above, two, four = np.linalg.lstsq(columns, y, rcond=None)[0].tolist()
    return tuple(above), (0.0, two, 0.0, four, 0.0)
