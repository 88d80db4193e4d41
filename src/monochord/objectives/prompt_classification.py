"""Classification by a prompt: a language model's own logits of one word for each class, where the answer stands.

The way in which "Fine-Tuning Language Models with Just Forward Passes", May 26, 2023, casts every task: the text, a
template, and a label word. Accuracy and F1 have no gradient, which updates by forward passes do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monochord.core.objective import Batch, Loss, Objective, Step


@dataclass(frozen=True, eq=False)
class PromptClassification(Objective):
    """Compares the logits of `words`, the token ids of each class in turn, at the place of the answer.

    A class with several tokens, `((708, 925), (1131,))`, takes their mean logit. The answer of a causal model is what
    follows the last token that the `attention_mask` keeps; with `mask_token`, the id at which a masked model answers,
    it stands there. `batch["labels"]` (batch,) are numbers of classes. `measure` is "cross_entropy", "accuracy" or
    "f1" (the mean over the classes that occur), of which the last two are minimised as their negatives and have no
    gradient. Raises `ValueError` for fewer than two classes and for rows without the mask token.
    """

    words: Sequence[int | Sequence[int]]
    mask_token: int | None = None
    measure: str = "cross_entropy"

    def __post_init__(self) -> None:
        if len(self.words) < 2:
            raise ValueError(f"words={self.words} names {len(self.words)} class: give the token ids of two or more")
        if self.measure not in ("cross_entropy", "accuracy", "f1"):
            raise ValueError(f"measure={self.measure!r} is unknown: use 'cross_entropy', 'accuracy' or 'f1'")
        object.__setattr__(self, "differentiable", self.measure == "cross_entropy")

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        scores, labels = self.scores(step.logits(model, batch), batch), batch["labels"]
        if self.measure == "cross_entropy":
            total = F.cross_entropy(scores, labels, reduction="sum") / step.count(self, len(labels))
        elif self.measure == "accuracy":
            total = -(scores.argmax(-1) == labels).float().sum() / step.count(self, len(labels))
        else:  # of the part at hand: F1 is no mean over examples
            total = -macro_f1(scores.argmax(-1), labels) * len(labels) / step.count(self, len(labels))
        return Loss(total, {self.name: total.item()})

    def scores(self, logits: Tensor, batch: Batch) -> Tensor:
        """The classes' logits (batch, classes) in float32, of logits (batch, seq, vocabulary)."""
        rows = torch.arange(len(logits), device=logits.device)
        answer = logits[rows, self._places(logits, batch)].float()
        words = [[word] if isinstance(word, int) else list(word) for word in self.words]
        return torch.stack([answer[:, ids].mean(-1) for ids in words], -1)

    def _places(self, logits: Tensor, batch: Batch) -> Tensor:
        if self.mask_token is not None:
            found = batch["input_ids"] == self.mask_token
            if not found.any(-1).all():
                raise ValueError(f"row {int((~found.any(-1)).nonzero()[0])} has no mask token {self.mask_token}")
            places: Tensor = found.int().argmax(-1)
            return places
        mask = batch.get("attention_mask")
        if mask is None:
            return torch.full((len(logits),), logits.shape[1] - 1, device=logits.device)
        place = torch.arange(mask.shape[-1], device=mask.device)
        return torch.where(mask != 0, place, 0).amax(-1)


def macro_f1(predicted: Tensor, labels: Tensor) -> Tensor:
    """The mean over the classes in `labels` of the harmonic mean of precision and recall; both (batch,)."""
    classes: Tensor = torch.unique(labels)[:, None]
    hit = ((predicted == classes) & (labels == classes)).sum(-1)
    shares: Tensor = 2 * hit / ((predicted == classes).sum(-1) + (labels == classes).sum(-1))
    return shares.mean()
