"""Structure to activation: trained parts whose gradients need few activations, beside operators that keep few bits.

From "S2A: A Unified Framework for Parameter and Memory Efficient Transfer Learning", March 11, 2025. The tuner is the
structure: biases, a prompt and side modules. `compressed` (re-exported) is the activation half, for this and any tuner.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, nn

from monochord.adapt.bitfit import BitFit
from monochord.adapt.prompt_tokens import PromptTokens
from monochord.adapt.side_network import SideNetwork
from monochord.core.attach import Placement
from monochord.core.compressed import compressed as compressed
from monochord.core.sites import SiteError
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class S2A(Tuner):
    """Train the biases, `prompt` tokens at the embedding and a side module beside each block.

    Where a model has no biases or takes no prompt that part is left out. `prompt=0` and `side=False` leave theirs out
    by choice. `pool` and `narrow` are those of `SideNetwork`.
    """

    default_lr: ClassVar[float] = 3e-3

    bias: bool = True
    prompt: int = 4
    side: bool = True
    pool: int = 2
    narrow: int = 8

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        parts: list[Tuner] = [BitFit()] if self.bias else []
        parts += [PromptTokens(self.prompt)] if self.prompt else []
        parts += [SideNetwork(pool=self.pool, narrow=self.narrow)] if self.side else []
        planned = 0
        for part in parts:
            try:
                places = list(part.plan(model, generator))
            except SiteError:
                continue
            planned += len(places)
            yield from places
        if not planned:
            raise SiteError(f"{type(model).__name__} has no place for any part of S2A: choose other parts")
