"""Prompt fusion: a short prompt and low-rank changes of the embeddings by position, instead of a long prompt.

From "Efficient Prompt Tuning by Multi-Space Projection and Prompt Fusion", May 19, 2024, whose split of a prompt is
that of "DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning", September 11, 2023. The short prompt
attends to the changes (fusion) and is the sum of itself and of its projections to several spaces, weighed by a gate.
All of it is constant once trained: `settled` gives a plain prompt and the changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from monochord.adapt.prompt_tokens import PromptTokens
from monochord.core.attach import Placement
from monochord.core.modification import uniform
from monochord.core.position_delta import PositionDelta
from monochord.core.prompt import Prompt
from monochord.core.sites import Site, width
from monochord.core.tuner import Tuned, Tuner


@dataclass(frozen=True)
class PromptFusion(Tuner):
    """Insert `length` trained vectors, and add a change of `rank` to the embedding of each of `positions` places.

    The prompt's attention and its `spaces` projections have width `bottleneck`; `fusion=False` and `spaces=0` leave
    them out (both: DePT). With `length=0` only the embeddings change. The change's scale is `alpha / rank`. Trained are
    `length d + rank (positions + d)`, with fusion `4 d bottleneck` and for each space `2 d bottleneck + d` more.
    Raises `ValueError` when there is nothing to train.
    """

    default_lr: ClassVar[float] = 1e-2

    length: int = 8
    rank: int = 4
    positions: int = 128
    bottleneck: int = 8
    spaces: int = 4
    fusion: bool = True
    alpha: float = 4.0
    init: str = "vocabulary"
    front: bool | None = None
    sites: str = "embed:out"

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        if self.length < 0 or self.rank < 1 or self.positions < 1 or self.bottleneck < 1 or self.spaces < 0:
            raise ValueError(f"{self}: rank, positions and bottleneck must be at least 1, length and spaces at least 0")
        prompts = PromptTokens(max(self.length, 1), self.init, self.front, self.sites).plan(model, generator)
        for site, prompt in prompts:
            d = width(model, site)
            delta = PositionDelta(self.positions, self.rank, d, self.alpha / self.rank, generator)
            yield site, delta
            if self.length:
                yield site, self.prompt(prompt.tokens, delta, generator)

    def prompt(self, tokens: Tensor, delta: PositionDelta, generator: Generator) -> FusedPrompt:
        """The prompt of these first vectors, (length, d_model)."""
        return FusedPrompt(tokens, delta, self.bottleneck, self.spaces, self.fusion, self.front, generator)


class FusedPrompt(Prompt):
    """`tokens` (length, d) that attend to the rows of a `PositionDelta` and are projected to several spaces.

    The fused prompt is P = tokens + softmax(tokens Wq (T Wk)' / sqrt(b)) T Wv Wo, with T the delta's table, and what is
    inserted P + sum over k of gate_k up_k(gelu(down_k P)), where gate = softmax(Wg mean(P)). Wo and all `up` begin at
    zero: until trained it is the plain prompt.
    """

    def __init__(
        self, tokens: Tensor, delta: PositionDelta, bottleneck: int, spaces: int, fusion: bool,
        front: bool | None, generator: Generator,
    ) -> None:  # fmt: skip
        super().__init__(tokens, front)
        d = tokens.shape[1]
        self._delta = (delta,)  # in a tuple: it has a place of its own and is saved there
        self.query: nn.Parameter | None = None
        self.gate: nn.Parameter | None = None
        if fusion:
            self.query, self.key, self.value = (
                nn.Parameter(uniform((bottleneck, d), d, generator)) for _ in ("query", "key", "value")
            )
            self.out = nn.Parameter(torch.zeros(d, bottleneck))
        if spaces:
            self.down = nn.Parameter(uniform((spaces, bottleneck, d), d, generator))
            self.up = nn.Parameter(torch.zeros(spaces, d, bottleneck))
            self.gate = nn.Parameter(uniform((spaces, d), d, generator))

    def knowledge(self) -> Tensor:
        """What the prompt attends to: the changes of the embeddings, (positions, d)."""
        return self._delta[0].table()

    def fused(self) -> Tensor:
        """The prompt after attention, (length, d)."""
        if self.query is None:
            return self.tokens
        table = self.knowledge()
        query, key, value = (F.linear(x, w) for x, w in
                             ((self.tokens, self.query), (table, self.key), (table, self.value)))  # fmt: skip
        shares = (query @ key.T / math.sqrt(key.shape[1])).softmax(-1)
        return self.tokens + F.linear(shares @ value, self.out)

    def weights(self) -> Tensor:
        """The gate's share of each space, (spaces,)."""
        return self._shares(self.fused())

    def table(self) -> Tensor:
        """What is inserted, (length, d)."""
        fused = self.fused()
        if self.gate is None:
            return fused
        inner = F.gelu(torch.einsum("kbd,ld->klb", self.down, fused))
        return fused + torch.einsum("k,kdb,klb->ld", self._shares(fused), self.up, inner)

    def _shares(self, fused: Tensor) -> Tensor:
        assert self.gate is not None
        return F.linear(fused.mean(0), self.gate).softmax(-1)

    def forward(self, value: Tensor) -> Tensor:
        tokens = self.table().to(value.dtype).expand(value.shape[0], -1, -1)
        return torch.cat([tokens, value] if self.front else [value, tokens], 1)


def settled(tuned: Tuned) -> list[Placement]:
    """What a trained `PromptFusion` comes to, without its networks: attach it to the bare model."""
    made: list[tuple[Site, Any]] = []
    with torch.no_grad():
        for site, change in tuned.placements:
            if isinstance(change, FusedPrompt):
                made.append((site, Prompt(change.table(), change.front)))
            elif isinstance(change, PositionDelta):
                made.append((site, change.copied()))
    if not made:
        raise ValueError("nothing to settle: attach a PromptFusion first")
    return made
