"""Synaptic intelligence: a weight matters as much as its way through training lowered the loss.

From "Continual Learning Through Synaptic Intelligence", March 13, 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from monochord.continual.springs import Springs
from monochord.core.history import Callback, Run
from monochord.core.objective import Objective
from monochord.core.update import Gradient


class SynapticIntelligence:
    """Adds `strength * sum of importance * (weight - last place)^2`.

    The importance of a weight is the path integral of minus its gradient of the task's own loss, over the square of
    how far it went plus `damping`, summed over tasks.
    """

    def __init__(self, strength: float, damping: float = 0.1) -> None:
        self.strength, self.damping = strength, damping
        self.importance: dict[str, Tensor] = {}
        self.springs: Springs | None = None
        self._path: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}

    def wrap(self, objective: Objective, model: nn.Module) -> Objective:
        return objective if self.springs is None else objective + (2 * self.strength) * self.springs

    def update(self, model: nn.Module, update: Gradient) -> Sequence[Callback]:
        self._start = _values(model)
        self._path = {name: torch.zeros_like(value) for name, value in self._start.items()}
        watch = _Path(self)
        update.before_step = watch.before
        return (watch,)

    def after(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]], objective: Objective) -> None:
        now = _values(model)
        for name, value in now.items():
            far = (value - self._start[name]).square() + self.damping
            mattered = (self._path[name] / far).clamp(min=0)
            self.importance[name] = self.importance.get(name, torch.zeros_like(value)) + mattered
        self.springs = Springs().more(self.importance, now)

    def own_slope(self, name: str, weight: Tensor, slope: Tensor) -> Tensor:
        """The gradient of the task's loss alone: the whole one without that of the springs."""
        if self.springs is None:
            return slope
        pull = self.springs.stiffness[name] * weight - self.springs.pulled[name]
        return slope - 2 * self.strength * pull


class _Path(Callback):
    """Sums minus gradient times movement over the steps of a phase."""

    def __init__(self, owner: SynapticIntelligence) -> None:
        self.owner = owner
        self._slopes: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def before(self, model: nn.Module) -> None:
        self._before = _values(model)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        self._slopes = {
            name: self.owner.own_slope(name, self._before[name], gradient.detach())
            for name, gradient in gradients.items()
        }

    def on_step(self, run: Run) -> None:
        now = _values(run.model)
        for name, slope in self._slopes.items():
            self.owner._path[name] -= slope * (now[name] - self._before[name])


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
