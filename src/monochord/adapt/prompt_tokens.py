"""Prompt tuning: trained vectors in the sequence, beside the embedded tokens.

From "The Power of Scale for Parameter-Efficient Prompt Tuning", April 18, 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from monochord.core.prompt import Prompt, stack_of
from monochord.core.sites import Site, SiteError, resolve, width
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class PromptTokens(Tuner):
    """Insert `length` trained vectors at the embedding.

    They start as embeddings of random vocabulary entries (`init="vocabulary"`; for images, and where there is
    none, as noise of the same size) or as noise (`init="random"`). `front` puts them before the tokens, False
    after; by default before those of a causal model and after those of an encoder.
    """

    default_lr: ClassVar[float] = 3e-2

    length: int = 10
    init: str = "vocabulary"
    front: bool | None = None
    sites: str = "embed:out"

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Prompt]]:
        if self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1")
        if self.init not in ("vocabulary", "random"):
            raise ValueError(f"init={self.init!r} is unknown: use 'vocabulary' or 'random'")
        found = [s for s in resolve(model, self.sites) if not s.name.startswith("decoder.")]
        if not found:
            raise SiteError(f"{self.sites!r} names only the decoder's embedding: prompts go to the encoder's")
        for site in found:
            stack_of(model, site)  # raises where no sequence of tokens begins
            yield site, Prompt(self._tokens(model, site, generator), self.front)

    def _tokens(self, model: nn.Module, site: Site, generator: Generator) -> Tensor:
        module = model.get_submodule(site.module)
        table = next((m.weight for m in module.modules() if isinstance(m, nn.Embedding)), None)
        if self.init == "vocabulary" and table is not None:
            rows = torch.randint(table.shape[0], (self.length,), generator=generator)
            return table.detach()[rows.to(table.device)].float()
        size = 0.02 if table is None else float(table.detach().float().std())
        return size * torch.randn(self.length, width(model, site), generator=generator)
