"""Side modules: a light residual branch beside each block that works at a lower resolution.

The side module of "S2A: A Unified Framework for Parameter and Memory Efficient Transfer Learning", March 11, 2025: the
block's input is pooled, goes through a narrow network and comes back in the block's output; what it keeps for the
backward pass is smaller than the block's activations by the pooling times the narrowing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from monochord.core.modification import Modification, uniform
from monochord.core.prompt import causal
from monochord.core.sites import Site, resolve, width
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class SideNetwork(Tuner):
    """Add `upsample(up(gelu(down(pool(x)))))` of each block's input to its output; `up` starts at zero.

    `pool` tokens (or pixels along both axes of a map) become one; `narrow` is how many times narrower than the block
    the branch is, and `groups` cuts its first projection in groups. Causal models are not pooled: a token may not see
    those after it.
    """

    default_lr: ClassVar[float] = 3e-3

    sites: str | tuple[str, ...] = "blocks.*:out"
    pool: int = 2
    narrow: int = 8
    groups: int = 2

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, SideBranch]]:
        if self.pool < 1 or self.narrow < 1:
            raise ValueError(f"pool={self.pool} and narrow={self.narrow} must be at least 1")
        pool = 1 if causal(model) else self.pool
        for site in resolve(model, self.sites):
            size = width(model, site)
            if size % self.groups:
                raise ValueError(f"groups={self.groups} must divide the width {size} of {site}")
            inner = max(size // self.narrow // self.groups, 1) * self.groups
            yield site, SideBranch(size, inner, pool, self.groups, generator)


class SideBranch(Modification):
    """The branch of one block, from its input (batch, seq, width) or (batch, width, h, w)."""

    reads = "input"

    def __init__(
        self, width: int, inner: int, pool: int = 2, groups: int = 1, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(uniform((inner, width // groups), width // groups, generator))
        self.down_bias = nn.Parameter(torch.zeros(inner))
        self.up = nn.Parameter(torch.zeros(width, inner))
        self.up_bias = nn.Parameter(torch.zeros(width))
        self.pool, self.groups = pool, groups

    def forward(self, value: Tensor, source: Tensor | None = None) -> Tensor:
        source = value if source is None else source
        if value.dim() == 4:
            small = pooled(pooled(source, self.pool, 2), self.pool, 3)
            return value + F.interpolate(self._branch(small, F.conv2d), size=value.shape[-2:], mode="nearest")
        small = pooled(source, self.pool, 1).transpose(1, 2)
        out = self._branch(small, F.conv1d).repeat_interleave(self.pool, -1)[..., : value.shape[1]]
        return value + out.transpose(1, 2)

    def _branch(self, small: Tensor, convolve: Callable[..., Tensor]) -> Tensor:
        """Two projections of the channels, (batch, width, ...) to the same."""
        ones, kind = (1,) * (small.dim() - 2), small.dtype
        down, up = (p.to(kind).reshape(*p.shape, *ones) for p in (self.down, self.up))
        inner = F.gelu(convolve(small, down, self.down_bias.to(kind), groups=self.groups))
        return convolve(inner, up, self.up_bias.to(kind))


def pooled(value: Tensor, pool: int, axis: int) -> Tensor:
    """The means of every `pool` along an axis, the last of what is left; torch's own pooling keeps its whole input."""
    whole = value.shape[axis] // pool * pool
    shape = (*value.shape[:axis], whole // pool, pool, *value.shape[axis + 1 :])
    means = value.narrow(axis, 0, whole).reshape(shape).mean(axis + 1)
    if whole == value.shape[axis]:
        return means
    rest = value.narrow(axis, whole, value.shape[axis] - whole).mean(axis, keepdim=True)
    return torch.cat([means, rest], axis)
