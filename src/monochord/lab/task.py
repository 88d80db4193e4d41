"""A task of a comparison: a model, a data set, how to learn from it and how to score; the kinds are in `tasks.py`.

A task is built in every trial from JSON settings and from objects (the data, and a user's own model). It
gives the model, with a fresh head where one is needed, the batches, which are the same for every method
of one seed, and the score. What the base could do before is in `retention.py`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from monochord.data import Batches, Dataset, Split
from monochord.lab.results import Metric

if TYPE_CHECKING:
    from torch import nn

Batch = dict[str, Any]
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
    sized: ClassVar[bool] = False  # images of a side that can be chosen

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
        sized = self.sized and self.settings.model in entries()
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
