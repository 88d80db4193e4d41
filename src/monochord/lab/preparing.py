"""Which task data is for, and the part of it that trials need."""

from __future__ import annotations

from collections.abc import Sequence

from monochord.data import DataError, Dataset, Split
from monochord.lab.task import Settings
from monochord.lab.tasks import TASKS, AudioClassification, CausalLM, ImageClassification, TextClassification


def kind_of(data: Dataset) -> str:
    """The kind of task that data is for. Raises `DataError` when it fits none."""
    if data.task in TASKS:
        return data.task
    if data.task == "batches":
        batch = data["train"]["batch"][0]
        if "labels" not in batch:
            raise DataError(f"batches need labels, got {', '.join(batch)}")
        if batch["labels"].ndim > 1:
            return CausalLM.kind
        if "input_values" in batch or "input_features" in batch:
            return AudioClassification.kind
        return ImageClassification.kind if "pixel_values" in batch else TextClassification.kind
    if "audio" in data["train"] and "label" in data["train"]:
        return AudioClassification.kind
    raise DataError(f"{data.name} is for {data.task}: compare needs {', '.join(TASKS)}")


def prepare(data: Dataset, settings: Settings, n_train: int) -> Dataset:
    """What trials need of a data set: short enough texts, capped splits, and ready batches cut into splits."""
    if data.task == "batches" and len(data.splits) == 1:
        batches = data["train"]["batch"]
        n_test, n_validation = max(len(batches) // 5, 1), max(len(batches) // 10, 1)
        cuts = (len(batches) - n_test - n_validation, len(batches) - n_test)
        if cuts[0] < 1:
            raise DataError(f"{len(batches)} batches are too few to train, choose and test: pass at least 3")
        parts = {"train": batches[: cuts[0]], "validation": batches[slice(*cuts)], "test": batches[cuts[1] :]}
        data = Dataset(data.name, data.task, {name: Split({"batch": part}) for name, part in parts.items()})
    missing = [name for name in ("train", "validation", "test") if name not in data.splits]
    if missing:
        has = ", ".join(f"{len(split)} in {name}" for name, split in data.splits.items())
        raise DataError(f"{data.name} has no {missing[0]} split ({has}): give one, or at least 20 rows")
    if settings.max_words is not None and "text" in data["train"]:
        splits = {name: _short(split, settings.max_words) for name, split in data.splits.items()}
        data = Dataset(data.name, data.task, splits, data.label_names)
    if data.task == "batches":
        return data
    return data.limit(train=n_train, validation=settings.n_validation, test=settings.n_test)


def _short(split: Split, max_words: int) -> Split:
    texts: Sequence[str] = split["text"]
    return split.take([i for i, text in enumerate(texts) if len(text.split()) <= max_words])
