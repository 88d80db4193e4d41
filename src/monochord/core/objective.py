"""What training minimises: objectives that add, scale and follow schedules, and the one path from logits to
a loss.

A mean is over the *global* batch: over all micro-batches of an accumulated step and all processes, each
token counted once however the batch is cut.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from monochord.core.forward import Batch as Batch
from monochord.core.forward import evaluating as evaluating
from monochord.core.forward import logits_of as logits_of
from monochord.core.forward import run as run
from monochord.core.forward import shifts as shifts
from monochord.core.forward import unwrap as unwrap
from monochord.core.schedules import Schedule, at

IGNORED = -100  # the label of a position without a target


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise and its named terms, as logged."""

    total: Tensor
    terms: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Loss) -> Loss:
        terms = dict(self.terms)
        for name, value in other.terms.items():
            while name in terms:
                name += "'"
            terms[name] = value
        return Loss(self.total + other.total, terms)

    def scaled(self, factor: float) -> Loss:
        """The total scaled; terms stay as they are."""
        return Loss(self.total * factor, self.terms)


@dataclass
class Step:
    """One step of training as an objective sees it: its index, what its means divide by, and forwards to
    share.
    """

    index: int = 0
    counts: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    _outputs: dict[tuple[int, int], tuple[Any, Any]] = field(default_factory=dict)

    def part(self, i: int) -> Step:
        """The same step for micro-batch `i`: transforms draw anew, forwards are its own."""
        return Step(self.index, self.counts, self.seed * 8191 + i)

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output, computed once however many objectives ask for it."""
        key = (id(model), id(batch))
        if key not in self._outputs:
            self._outputs[key] = (batch, run(model, batch))
        return self._outputs[key][1]

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return logits_of(self.forward(model, batch))

    def count(self, objective: Objective, local: float | Tensor) -> float | Tensor:
        """What the mean of `objective` divides by: its global count where training knows it, else the local
        one.
        """
        return self.counts.get(id(objective), local)


class Objective(ABC):
    """`objective(model, batch) -> Loss`. Objectives add, and scale by numbers or schedules of the step.

    A subclass writes `loss`, and `count` when it does not average over examples. `streams` names further
    data that it finds in the batch, `extra_forwards` how many forwards it adds to the shared one;
    `differentiable=False` leaves it to updates that need no gradient.
    """

    differentiable: bool = True
    streams: tuple[str, ...] = ()
    extra_forwards: int = 0

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss: ...

    def count(self, batch: Batch) -> float:
        """How many examples or tokens its mean is over."""
        first = next((value for value in batch.values() if isinstance(value, Tensor) and value.ndim), None)
        return float(len(first)) if first is not None else 1.0

    def counts(self, batch: Batch, step: Step) -> dict[int, float]:
        """`count` of every objective inside, by identity."""
        return {id(self): self.count(batch)}

    def __call__(self, model: nn.Module, batch: Batch, step: Step | None = None) -> Loss:
        return self.loss(model, batch, step if step is not None else Step())

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        parts = [part for one in (self, other) for part in (one.parts if isinstance(one, Total) else (one,))]
        return Total(tuple(parts))

    def __radd__(self, other: Any) -> Objective:
        return self if other == 0 else NotImplemented  # so that sum() works

    def __mul__(self, weight: Schedule) -> Objective:
        if not (isinstance(weight, (int, float)) or callable(weight)) or isinstance(weight, Objective):
            return NotImplemented
        return Weighted(self, weight)

    __rmul__ = __mul__

    @property
    def name(self) -> str:
        return re.sub("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__).lower()


class Total(Objective):
    """The sum of objectives; those that want the same forward share it."""

    def __init__(self, parts: tuple[Objective, ...]) -> None:
        self.parts = parts
        self.differentiable = all(part.differentiable for part in parts)
        self.streams = tuple(dict.fromkeys(stream for part in parts for stream in part.streams))
        self.extra_forwards = sum(part.extra_forwards for part in parts)

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        total = self.parts[0](model, batch, step)
        for part in self.parts[1:]:
            total = total + part(model, batch, step)
        return total

    def counts(self, batch: Batch, step: Step) -> dict[int, float]:
        return {key: count for part in self.parts for key, count in part.counts(batch, step).items()}


class Wrapped(Objective):
    """An objective that changes what another one is given or gives."""

    def __init__(self, inner: Objective) -> None:
        self.inner = inner
        self.differentiable, self.streams = inner.differentiable, inner.streams
        self.extra_forwards = inner.extra_forwards

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        return self.inner(model, batch, step)

    def counts(self, batch: Batch, step: Step) -> dict[int, float]:
        return self.inner.counts(batch, step)


class Weighted(Wrapped):
    """An objective times a number, or a schedule of the step. At weight 0 it is not computed."""

    def __init__(self, inner: Objective, weight: Schedule) -> None:
        super().__init__(inner)
        self.weight = weight

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        weight = at(self.weight, step.index)
        if weight == 0 and step.index:
            device = next(value.device for value in batch.values() if isinstance(value, Tensor))
            return Loss(torch.zeros((), device=device))
        return self.inner(model, batch, step).scaled(weight)


class OwnLoss(Objective):
    """The loss the model computes itself when it is given labels."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        local = self.count(batch)
        output = model(**{name: value for name, value in batch.items() if isinstance(value, Tensor)})
        value = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if value is None:
            raise ValueError(f"{type(unwrap(model)).__name__} returns no loss: pass an objective, and data with labels")
        value = value * (local / step.count(self, local))
        return Loss(value, {"loss_of_model": value.item()})

    def count(self, batch: Batch) -> float:
        if "labels" not in batch:
            raise ValueError(
                f"the batch has no labels, only {', '.join(batch)}: pass data with labels, or an objective"
            )
        labels = batch["labels"]
        if labels.is_floating_point():
            return float(len(labels))
        return float((labels != IGNORED).sum())


class BatchTransform(ABC):
    """Changes batches before an objective sees them: `transform(objective)` is the objective on changed
    batches.

    Randomness comes from the generator alone, which is the same for a step whenever it is run.
    """

    @abstractmethod
    def transform(self, batch: Batch, generator: Generator) -> Batch: ...

    def __call__(self, objective: Objective) -> Objective:
        return Transformed(objective, self)


class Transformed(Wrapped):
    """An objective on transformed batches."""

    def __init__(self, inner: Objective, transform: BatchTransform) -> None:
        super().__init__(inner)
        self.transform = transform

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        return self.inner(model, self._changed(batch, step), step)

    def counts(self, batch: Batch, step: Step) -> dict[int, float]:
        return self.inner.counts(self._changed(batch, step), step)

    def _changed(self, batch: Batch, step: Step) -> Batch:
        return self.transform.transform(
            batch, Generator().manual_seed((step.seed * 1_000_003 + step.index) % (1 << 63))
        )


def token_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    shift: bool = True,
    count: float | Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy over the labels that are not -100, in float32.

    `logits` are (..., classes) and `labels` (...); with `shift` position t predicts label t + 1. `count` is
    what the sum is divided by when the batch is a part of a larger one.
    """
    logits, labels = aligned(logits, labels, shift=shift)
    total = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if count is None:
        count = (labels != IGNORED).sum().clamp_min(1)
    return total / count


def aligned(logits: Tensor, labels: Tensor, *, shift: bool = True) -> tuple[Tensor, Tensor]:
    """Logits beside the labels they predict; the next-token shift of the whole library is here."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}")
    return (logits[..., :-1, :], labels[..., 1:]) if shift else (logits, labels)


def token_labels(batch: Batch) -> Tensor:
    """The batch's labels, or its input ids where there is no padding."""
    labels = batch.get("labels")
    if labels is None:
        if "input_ids" not in batch:
            raise ValueError(f"the batch has neither labels nor input_ids, only {', '.join(batch)}")
        labels = batch["input_ids"]
        if (mask := batch.get("attention_mask")) is not None:
            labels = labels.masked_fill(mask == 0, IGNORED)
    return labels
