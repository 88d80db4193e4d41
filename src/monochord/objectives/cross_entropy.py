"""Cross-entropy of a classifier, over examples or over tagged tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from monochord.core.objective import IGNORED, Batch, Loss, Objective, Step, token_cross_entropy


@dataclass(frozen=True, eq=False)
class CrossEntropy(Objective):
    """Mean cross-entropy of logits (batch, classes), or (batch, seq, classes), with `batch["labels"]`.

    Labels of -100 do not count. `label_smoothing` is in [0, 1).
    """

    label_smoothing: float = 0.0

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        labels = _labels(batch)
        logits = step.logits(model, batch)
        count = step.count(self, (labels != IGNORED).sum().clamp_min(1))
        value = token_cross_entropy(logits, labels, shift=False, count=count, label_smoothing=self.label_smoothing)
        return Loss(value, {self.name: value.item()})

    def count(self, batch: Batch) -> float:
        return float((_labels(batch) != IGNORED).sum())


def _labels(batch: Batch) -> Tensor:
    for name in ("labels", "label"):
        if name in batch:
            labels: Tensor = batch[name]
            return labels
    raise ValueError(f"CrossEntropy needs 'labels' in the batch, which has {', '.join(batch)}")
