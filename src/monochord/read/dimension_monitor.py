"""Follow the mean local dimension of a model's token states while it trains, and tell when it has levelled off.

From "Less is More: Local Intrinsic Dimensions of Contextual Language Models", June 1, 2025. The same tokens are looked
at every time: with other ones the noise of sampling would hide the change.

    watch = Monitor("dimension", LocalDimension(held_out), every=50)
    mc.fit(model, data, callbacks=[watch], ...)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from monochord.core.capture import capture
from monochord.core.forward import evaluating, run
from monochord.read.dimension import Local


@dataclass(frozen=True)
class LocalDimension:
    """`measure(model)` is the mean over `tokens` fixed tokens of `batches` of the dimension around their states.

    States are those at `site`; padding and the token ids in `special` are left out. The sample is drawn by `seed`.
    """

    batches: Sequence[Mapping[str, Any]]
    site: str = "blocks.-1:out"
    tokens: int = 1000
    local: Local = field(default_factory=Local)
    special: Collection[int] = ()
    seed: int = 0

    def __call__(self, model: nn.Module) -> float:
        """Raises `ValueError` when there are too few distinct states."""
        return float(self.each(model).mean())

    def each(self, model: nn.Module) -> Tensor:
        """The dimension around every sampled token."""
        return self.local(self.states(model))

    def states(self, model: nn.Module) -> Tensor:
        """The sampled tokens' states, (tokens, d_model)."""
        found = []
        with evaluating(model), torch.inference_mode(), capture(model, self.site) as acts:
            for batch in self.batches:
                run(model, batch)
                (name,) = acts
                ids = batch["input_ids"]
                kept = batch.get("attention_mask", torch.ones_like(ids)).bool()
                for token in self.special:
                    kept = kept & (ids != token)
                found.append(acts[name][kept])
        rows = torch.cat(found)
        chosen = torch.randperm(len(rows), generator=Generator().manual_seed(self.seed))[: self.tokens].sort().values
        return rows[chosen]


def plateau(values: Sequence[float], patience: int = 3, tolerance: float = 0.01) -> int | None:
    """Where a series stops falling: the place of the last value that was lower than all before by `tolerance`.

    `tolerance` is relative. None while fewer than `patience` values have come since.
    """
    best, place = float("inf"), 0
    for i, value in enumerate(values):
        if value < best * (1 - tolerance):
            best, place = value, i
        elif i - place >= patience:
            return place
    return None
