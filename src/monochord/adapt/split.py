"""Mixture of sparse adapters: a tuner whose weights are split in parts that train in turns and are merged after.

From "Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training", December 5, 2023. In training
every forward uses one part of each adapter, drawn at random; in evaluation all are merged into an adapter of the same
size. Train it with `Consistency`, which holds two draws together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from monochord.core import registry
from monochord.core.attach import Placement
from monochord.core.forward import evaluating
from monochord.core.modification import WeightModification
from monochord.core.tuner import Tuned, Tuner

_SPLITS, _MERGES = ("all", "row", "column"), ("mean", "owner", "owner-mean")


@dataclass(frozen=True)
class Split(Tuner):
    """Split the adapters of `inner`, a tuner or its name, in `parts`.

    Every entry of an adapter's weights belongs to one part, drawn at random over the whole weight (`split="all"`), in
    each "row" or in each "column"; biases have a copy for each part. A part is the adapter as it was initialised plus
    the change of its own entries. `share="down"` (the paper's best) leaves the down-projection whole for all parts to
    share, `"up"` the up-projection, `"none"` splits both. Merging takes the `"mean"` of the parts, i.e. the initial
    values plus 1 / parts of every change; `"owner"` the whole changes; `"owner-mean"` each entry as its owner has it,
    divided by the number of parts, as the released code has it.
    """

    default_lr: ClassVar[float] = 3e-3

    inner: str | Tuner = "bottleneck-adapter(parallel=True, scale=0.1, activation='gelu')"
    parts: int = 4
    share: str = "down"
    split: str = "all"
    merge: str = "mean"

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        if self.share not in ("down", "up", "none") or self.split not in _SPLITS or self.merge not in _MERGES:
            raise ValueError(f"share is down, up or none, split {', '.join(_SPLITS)}, merge {', '.join(_MERGES)}")
        if not 1 <= self.parts <= 255:
            raise ValueError(f"parts={self.parts} must be from 1 to 255")
        parting = Generator().manual_seed(generator.initial_seed() + 1)  # the inner tuner starts as it would alone
        for site, change in registry.build(self.inner).plan(model, generator):
            for side in ("down", "up"):
                if side != self.share and hasattr(change, side):
                    self._divide(change, side, parting)
            yield site, change

    def _divide(self, change: nn.Module, side: str, generator: Generator) -> None:
        draw = _Draw(self.parts, of_weight=isinstance(change, WeightModification))
        weight = getattr(change, side)
        part = _Entries(weight.detach(), owners(weight.shape, self.parts, self.split, generator), draw, self.merge)
        parametrize.register_parametrization(change, side, part, unsafe=True)
        if isinstance(getattr(change, f"{side}_bias", None), nn.Parameter):
            parametrize.register_parametrization(change, f"{side}_bias", _Copies(draw), unsafe=True)
        change.register_forward_pre_hook(draw)


def unsplit(tuned: Tuned) -> Tuned:
    """Merge the parts for good, in place: what is left is the inner tuner, with its size and its file."""
    if not isinstance(tuned.tuner, Split):
        raise ValueError(f"unsplit takes an attached Split, got {type(tuned.tuner).__name__}")
    for _, change in tuned.placements:
        with evaluating(change):
            for name in list(getattr(change, "parametrizations", ())):
                parametrize.remove_parametrizations(change, name, leave_parametrized=True)
        for handle in [h for h in change._forward_pre_hooks if isinstance(change._forward_pre_hooks[h], _Draw)]:
            del change._forward_pre_hooks[handle]
    tuned.tuner = registry.build(tuned.tuner.inner)
    tuned.trained = list(tuned._trained())
    return tuned


def owners(shape: tuple[int, ...], parts: int, split: str, generator: Generator) -> Tensor:
    """The part of every entry, uint8: parts are equal to one entry, over the whole, each row or each column."""
    scores = torch.rand(shape, generator=generator)
    rows = scores.reshape(1, -1) if split == "all" else scores.flatten(1) if split == "row" else scores.flatten(1).t()
    ranks = rows.argsort(1).argsort(1)
    owner = ranks * parts // rows.shape[1]
    return (owner.t() if split == "column" else owner).reshape(shape).to(torch.uint8)


class _Draw:
    """Which part is active: in training another at each forward of its adapter, of a weight's change at each use."""

    def __init__(self, parts: int, of_weight: bool) -> None:
        self.parts, self.of_weight, self.active = parts, of_weight, 0

    def __call__(self, module: nn.Module, args: object = None) -> None:
        if module.training and self.parts > 1:
            self.active = int(torch.randint(self.parts, ()))


class _Entries(nn.Module):
    """A weight's active part: initial values but for the entries that it owns."""

    def __init__(self, initial: Tensor, owner: Tensor, draw: _Draw, merge: str) -> None:
        super().__init__()
        self.initial: Tensor
        self.owner: Tensor
        self.register_buffer("owner", owner)
        self.register_buffer("initial", initial.clone() if initial.any() else initial.new_zeros(()))
        self.draw, self.merge = draw, merge

    def forward(self, values: Tensor) -> Tensor:
        if self.draw.of_weight:
            self.draw(self)
        if self.training:
            return torch.where(self.owner == self.draw.active, values, self.initial)
        if self.draw.parts == 1 or self.merge == "owner":
            return values
        mean = self.initial + (values - self.initial) / self.draw.parts
        return mean if self.merge == "mean" else values / self.draw.parts


class _Copies(nn.Module):
    """A bias of which each part has its own copy, (parts, width)."""

    def __init__(self, draw: _Draw) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, copies: Tensor) -> Tensor:
        return copies[self.draw.active] if self.training else copies.mean(0)

    def right_inverse(self, bias: Tensor) -> Tensor:
        return bias.detach().repeat(self.draw.parts, *(1,) * bias.dim())
