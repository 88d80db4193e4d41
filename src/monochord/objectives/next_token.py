"""Next-token prediction: the loss of language models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from monochord.core.objective import (
    IGNORED,
    Batch,
    Loss,
    Objective,
    Step,
    shifts,
    token_cross_entropy,
    token_labels,
)


@dataclass(frozen=True, eq=False)
class NextToken(Objective):
    """Mean cross-entropy over the target tokens of the global batch, for causal and encoder-decoder models.

    Targets are `batch["labels"]` (-100 does not count), or the input ids without padding.
    """

    label_smoothing: float = 0.0

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        labels, shift = token_labels(batch), shifts(model)
        targets = labels[..., 1:] if shift else labels
        count = step.count(self, (targets != IGNORED).sum().clamp_min(1))
        value = token_cross_entropy(
            step.logits(model, batch), labels, shift=shift, count=count, label_smoothing=self.label_smoothing
        )
        return Loss(value, {self.name: value.item()})

    def count(self, batch: Batch) -> float:
        return float(count_targets(batch))


def count_targets(batch: Batch) -> int:
    """Target tokens of a batch after the shift (the first label of a causal model is never predicted)."""
    labels = token_labels(batch)
    targets = labels if "decoder_input_ids" in batch else labels[..., 1:]
    return int((targets != IGNORED).sum())
