"""Half fine-tuning: train a random half of the weight matrices, keep the other half as it was.

From "HFT: Half Fine-Tuning for Large Language Models", April 29, 2024. Whole tensors are chosen, so the frozen
half has no gradient and no optimiser state; attach anew with another seed at each stage of a sequence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, nn

from monochord.core.blocks import owned
from monochord.core.changes import Unfrozen
from monochord.core.sites import Site, resolve
from monochord.core.tuner import Tuner

_CATEGORIES = (("attention", r"\.(attn|cross|attn3)\b"), ("mlp", r"\.(mlp|experts|ssm)\b"), ("norm", r"norm"))


@dataclass(frozen=True)
class HalfTuning(Tuner):
    """Train in place the share `ratio` of the tensors that `sites` names, chosen at random.

    With `level="category"` (the paper's default) the share is drawn within attention, MLP and norms of each
    block, an odd tensor going to the trained side by turns; with "layer" whole blocks are drawn; with "model"
    tensors anywhere.
    """

    default_lr: ClassVar[float] = 1e-4

    ratio: float = 0.5
    level: str = "category"
    sites: str | tuple[str, ...] = "**"

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Unfrozen]]:
        if self.level not in ("category", "layer", "model"):
            raise ValueError(f"level={self.level!r} is unknown: use 'category', 'layer' or 'model'")
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio} must be above 0 and at most 1")
        groups = self._groups(model)
        if self.level == "layer":  # each group is chosen or left whole
            keys = list(groups)
            order = torch.randperm(len(keys), generator=generator).tolist()
            chosen = {id(s) for i in order[: max(round(self.ratio * len(keys)), 1)] for s in groups[keys[i]]}
        else:
            chosen = self._draw(groups, generator)
        for members in groups.values():
            for site in members:
                if id(site) in chosen:
                    yield site, Unfrozen()

    def _draw(self, groups: dict[str, list[Site]], generator: Generator) -> set[int]:
        """The share of each group; what a fraction leaves over is carried to the next group of its kind."""
        carried: dict[str, float] = {}
        chosen: set[int] = set()
        for key, members in groups.items():
            kind = key.rpartition("/")[2]
            wanted = self.ratio * len(members) + carried.get(kind, 0.0)
            count = min(math.floor(wanted + 0.5), len(members))
            carried[kind] = wanted - count
            order = torch.randperm(len(members), generator=generator).tolist()
            chosen |= {id(members[i]) for i in order[:count]}
        return chosen

    def _groups(self, model: nn.Module) -> dict[str, list[Site]]:
        groups: dict[str, list[Site]] = {}
        seen: set[int] = set()
        for site in resolve(model, self.sites, kind="weight"):
            parameter = owned(model.get_submodule(site.module), site.parameter)
            if site.rows is None and isinstance(parameter, nn.Parameter) and id(parameter) not in seen:
                seen.add(id(parameter))
                groups.setdefault(self._key(site), []).append(site)
        return groups

    def _key(self, site: Site) -> str:
        block = re.match(r"((?:\w+\.)?blocks\.\d+)\.", site.name)
        if self.level == "model":
            return "model/any"
        if self.level == "layer":
            return f"{block[1] if block else 'outside'}/any"
        kind = next((name for name, test in _CATEGORIES if re.search(test, site.name)), "rest")
        matrix = "matrix" if len(site.shape or ()) > 1 else "vector"
        return f"{block[1] if block else 'outside'}/{kind}-{matrix}"
