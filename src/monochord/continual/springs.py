"""A quadratic pull of each weight to places it had before: the penalty of consolidation methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from monochord.core.objective import Batch, Loss, Objective, Step


@dataclass(frozen=True, eq=False)
class Springs(Objective):
    """Half the sum of `stiffness * (weight - place)^2` over all springs added, by parameter name."""

    stiffness: dict[str, Tensor] = field(default_factory=dict)
    pulled: dict[str, Tensor] = field(default_factory=dict)  # the sum of stiffness * place
    constant: float = 0.0  # the sum of stiffness * place^2, halved

    def more(self, stiffness: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> Springs:
        """These springs and one more a weight."""
        zero = torch.zeros(())
        return Springs(
            {name: self.stiffness.get(name, zero) + value for name, value in stiffness.items()},
            {name: self.pulled.get(name, zero) + value * places[name] for name, value in stiffness.items()},
            self.constant + sum(float((v * places[n].square()).sum()) for n, v in stiffness.items()) / 2,
        )

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        weights = dict(model.named_parameters())
        value = self.constant + sum(
            (s * weights[name].square() / 2 - self.pulled[name] * weights[name]).sum()
            for name, s in self.stiffness.items()
        )
        total = value if isinstance(value, Tensor) else torch.tensor(value)
        return Loss(total, {self.name: total.item()})
