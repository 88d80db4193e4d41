"""The entropy of a classifier's own predictions, which needs no labels.

The objective of "Tent: Fully Test-time Adaptation by Entropy Minimization", June 18, 2020.
"""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

from monochord.core.objective import Batch, Loss, Objective, Step


class Entropy(Objective):
    """The mean entropy, in nats, of the predictions for a batch: logits (batch, classes)."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        log_p = F.log_softmax(step.logits(model, batch).float(), -1)
        value = -(log_p.exp() * log_p).sum(-1).mean()
        return Loss(value, {self.name: value.item()})
