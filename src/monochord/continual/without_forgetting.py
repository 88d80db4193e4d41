"""Learning without forgetting: on the new task's data, stay near what the model said before it.

From "Learning without Forgetting", June 29, 2016.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from monochord.core.history import Callback
from monochord.core.objective import Objective
from monochord.core.update import Gradient
from monochord.objectives import KLAnchor


class LearningWithoutForgetting:
    """Adds `strength` times the divergence from the model as it was before the new task."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.before: nn.Module | None = None

    def wrap(self, objective: Objective, model: nn.Module) -> Objective:
        return objective if self.before is None else objective + KLAnchor(self.before, self.strength)

    def update(self, model: nn.Module, update: Gradient) -> Sequence[Callback]:
        return ()

    def after(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]], objective: Objective) -> None:
        self.before = copy.deepcopy(model).eval().requires_grad_(False)
