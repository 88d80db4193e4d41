"""Changes of a weight: low-rank, dense, sparse, or the weight itself trained in place."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from monochord.core import lowrank
from monochord.core.entries import Dense, Entry, Sparse
from monochord.core.layers import Layer
from monochord.core.modification import WeightModification, uniform


class LowRank(WeightModification):
    """The change `scale * up @ down`: `up` (outputs, rank), `down` (rank, inputs, ...), zero until trained.

    For fused experts (experts, outputs, inputs) both factors carry the expert axis. `dropout` acts on the
    input of the bypass.
    """

    bypasses = True

    def __init__(
        self,
        shape: tuple[int, ...],
        rank: int,
        scale: float = 1.0,
        dropout: float = 0.0,
        generator: Generator | None = None,
        experts: bool = False,
    ) -> None:
        super().__init__()
        lead, shape = (shape[:1], shape[1:]) if experts else ((), tuple(shape))
        self.down = nn.Parameter(uniform((*lead, rank, *shape[1:]), math.prod(shape[1:]), generator))
        self.up = nn.Parameter(torch.zeros(*lead, shape[0], rank))  # only one factor at zero, or neither learns
        self.scale, self.dropout, self.experts = scale, dropout, experts

    def delta(self) -> Tensor:
        if self.experts:
            return self.scale * self.up @ self.down
        return (self.scale * self.up @ self.down.flatten(1)).reshape(-1, *self.down.shape[1:])

    def entry(self, weight: Tensor) -> Entry:
        return lowrank.LowRank(self.up.detach(), self.down.detach(), self.scale)

    def bypass(self, x: Tensor, layer: Layer) -> Tensor | None:
        return layer.low_rank(self.dropped(x), self.down, self.up, self.scale)

    def dropped(self, x: Tensor) -> Tensor:
        """The bypass's input, with dropout while training."""
        return F.dropout(x, self.dropout) if self.dropout and self.training and x.is_floating_point() else x


class DenseChange(WeightModification):
    """A trained change of the whole weight, zero at first."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(shape))

    def delta(self) -> Tensor:
        return self.change


class SparseChange(WeightModification):
    """A change of chosen entries: flat `indices` (n,) into a weight of `shape`, trained `values` zero at first.

    The weight is copied with the values added; nothing else of its size is made, in the backward pass the gradient
    is gathered at the indices. With `freezable`, entries marked in `frozen` keep their values.
    """

    def __init__(self, shape: tuple[int, ...], indices: Tensor, freezable: bool = False) -> None:
        super().__init__()
        self.indices: Tensor
        self.frozen: Tensor | None
        kind = torch.int32 if math.prod(shape) < 2**31 else torch.int64
        self.register_buffer("indices", indices.flatten().to(kind))
        self.values = nn.Parameter(torch.zeros(indices.numel()))
        self.register_buffer("frozen", torch.zeros(indices.numel(), dtype=torch.bool) if freezable else None)
        self.shape = tuple(shape)

    def forward(self, weight: Tensor) -> Tensor:
        values = self.values if self.frozen is None else torch.where(self.frozen, self.values.detach(), self.values)
        return weight.reshape(-1).index_add(0, self.indices, values.to(weight.dtype)).view(self.shape)

    def entry(self, weight: Tensor) -> Entry:
        return Sparse(self.indices, self.values.detach(), self.shape)

    def delta(self) -> Tensor:
        return self.values.new_zeros(math.prod(self.shape)).index_add(0, self.indices, self.values).view(self.shape)


class Unfrozen(WeightModification):
    """The model's own weight, trained in place; a copy of its first value is the base to return to."""

    def __init__(self) -> None:
        super().__init__()
        self._held: tuple[nn.Parameter, Tensor] | None = None
        self._away: Tensor | None = None

    def hold(self, parameter: nn.Parameter) -> None:
        """Take over `parameter`: remember its value and let it train."""
        self._held = (parameter, parameter.detach().clone())
        parameter.requires_grad_(True)

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that trains."""
        return self._taken()[0]

    @property
    def base(self) -> Tensor:
        """Its value before tuning."""
        return self._taken()[1]

    @property
    def tuned(self) -> Tensor:
        """Its value after tuning, whichever of the two the model runs with now."""
        return self.parameter.detach() if self._away is None else self._away

    def switch(self, on: bool) -> None:
        """Let the model run with the tuned value, or with the base."""
        parameter = self.parameter
        if on and self._away is not None:
            parameter.data, self._away = self._away, None
        elif not on and self._away is None:
            self._away, parameter.data = parameter.data, self.base

    def entry(self, weight: Tensor) -> Entry:
        return Dense(self.delta())

    def delta(self) -> Tensor:
        return self.tuned - self.base

    def saved(self) -> dict[str, Tensor]:
        return {"value": self.tuned}

    def _taken(self) -> tuple[nn.Parameter, Tensor]:
        if self._held is None:
            raise RuntimeError("Unfrozen has no weight yet: attach it first")
        return self._held
