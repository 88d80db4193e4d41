"""Stay near a reference: the Kullback-Leibler divergence between the model's predictions and the
reference's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monochord.core.objective import (
    IGNORED,
    Batch,
    Loss,
    Objective,
    Step,
    evaluating,
    logits_of,
    run,
    shifts,
    token_labels,
    unwrap,
)
from monochord.core.schedules import Schedule, at


@dataclass(frozen=True, eq=False)
class KLAnchor(Objective):
    """`weight` times the mean divergence per position, in float32; position t speaks of token t + 1.

    `direction="forward"` is KL(reference || model), which keeps what the reference can do; `"reverse"` is
    KL(model || reference), which keeps the model from what it wouldn't do. `mask="labels"` counts positions
    that have a label, `"all"` all that are not padding. `reference` is what is tuned on the model (its
    `disabled()` is the untouched base, without a second copy), or another frozen model. `weight` may be a
    schedule.
    """

    reference: Any
    weight: Schedule = 1.0
    direction: str = "forward"
    mask: str = "labels"
    extra_forwards = 1

    def __post_init__(self) -> None:
        if self.direction not in ("forward", "reverse"):
            raise ValueError(f"direction must be 'forward' or 'reverse', got {self.direction!r}")
        if self.mask not in ("labels", "all"):
            raise ValueError(f"mask must be 'labels' or 'all', got {self.mask!r}")
        if not isinstance(self.reference, nn.Module) and not hasattr(self.reference, "disabled"):
            kind = type(self.reference).__name__
            raise ValueError(f"reference must be what is attached to the model, or a frozen model, got {kind}")

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        logits = step.logits(model, batch).float()
        kept = _positions(batch, self.mask, shifts(model))
        if logits.ndim > 2 and shifts(model):
            logits = logits[..., :-1, :]
        reference = self._reference(model, batch).float()[..., : logits.shape[-2], :]
        ours, theirs = F.log_softmax(logits[kept], -1), F.log_softmax(reference[kept], -1)
        if self.direction == "reverse":
            ours, theirs = theirs, ours
        total = F.kl_div(ours, theirs, reduction="sum", log_target=True)
        value = total / step.count(self, kept.sum().clamp_min(1))
        return Loss(at(self.weight, step.index) * value, {self.name: value.item()})

    def count(self, batch: Batch) -> float:
        return float(_positions(batch, self.mask, "decoder_input_ids" not in batch).sum())

    def _reference(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            if hasattr(self.reference, "disabled"):
                with evaluating(unwrap(model)) as inner, self.reference.disabled():
                    return logits_of(run(inner, batch))
            with evaluating(self.reference):
                return logits_of(run(self.reference, batch))


def _positions(batch: Batch, mask: str, shift: bool) -> Tensor:
    """Which positions count: (batch,) for a classifier, else (batch, seq), one shorter with `shift`."""
    labels = batch.get("labels")
    if labels is not None and labels.ndim == 1:
        return labels != IGNORED if mask == "labels" else torch.ones_like(labels, dtype=torch.bool)
    kept: Tensor
    if mask == "all":
        inputs = batch.get("decoder_input_ids", batch.get("input_ids", labels))
        if inputs is None:
            raise ValueError(f"KLAnchor finds no tokens in the batch, which has {', '.join(batch)}")
        kept = batch.get("attention_mask", torch.ones_like(inputs)) != 0
    else:
        kept = token_labels(batch) != IGNORED
    return kept[..., 1:] if shift else kept
