"""Hold two random forwards of the same batch together: the symmetric divergence of their predictions.

The term of "R-Drop: Regularized Dropout for Neural Networks", June 28, 2021, and of "Split & Merge: Unlocking the
Potential of Visual Adapters via Sparse Training", December 5, 2023.
"""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

from monochord.core.objective import Batch, Loss, Objective, Step
from monochord.core.schedules import Schedule, at


class Consistency(Objective):
    """`weight` times KL(p1 || p2) + KL(p2 || p1) in nats, mean over examples (and tokens that aren't padding).

    The first forward is the one that other objectives of the step share; the second draws anew.
    """

    extra_forwards = 1

    def __init__(self, weight: Schedule = 1.0) -> None:
        self.weight = weight

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        first = F.log_softmax(step.logits(model, batch).float(), -1)
        second = F.log_softmax(Step().logits(model, batch).float(), -1)
        divergence = ((first.exp() - second.exp()) * (first - second)).sum(-1)
        mask = batch.get("attention_mask")
        if mask is not None and mask.shape == divergence.shape:
            mean = (divergence * mask).sum() / mask.sum()
        else:
            mean = divergence.mean()
        return Loss(at(self.weight, step.index) * mean, {self.name: mean.item()})
