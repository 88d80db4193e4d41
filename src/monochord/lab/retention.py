"""What the base model could do before it was tuned, measured the same way before and after.

A text encoder finds the answer to an instruction among others, an image encoder names handwritten digits and an
audio encoder the language of spoken letters by their nearest neighbour, a language model predicts film reviews, a
diffusion model denoises clothes. None of it is trained for during a comparison, so a worse score afterwards is
forgetting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from monochord.data import Batches, Dataset
from monochord.lab.results import Metric
from monochord.lab.task import Task
from monochord.lab.tasks import (
    AudioClassification,
    CausalLM,
    Denoising,
    ImageClassification,
    TextClassification,
    denoising_loss,
    token_loss,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

N_PAIRS, PAIR_TOKENS = 200, 24
N_KNOWN, N_ASKED = 300, 200  # digits, letters
N_CLOTHES = 96
N_REVIEWS, REVIEW_TOKENS = 24, 96

METRICS: dict[str, tuple[str, Metric]] = {
    TextClassification.kind: (
        f"find the answer to an instruction among {N_PAIRS}",
        Metric(name="top-1 retrieval", higher_is_better=True, percent=True),
    ),
    ImageClassification.kind: (
        f"name handwritten digits by the nearest of {N_KNOWN}",
        Metric(name="1-NN accuracy", higher_is_better=True, percent=True),
    ),
    AudioClassification.kind: (
        f"name the language of spoken letters by the nearest of {N_KNOWN}",
        Metric(name="1-NN accuracy", higher_is_better=True, percent=True),
    ),
    Denoising.kind: (
        "denoise clothes",
        Metric(name="loss on clothes", higher_is_better=False, percent=False),
    ),
    CausalLM.kind: (
        "predict the words of film reviews",
        Metric(name="loss on reviews", higher_is_better=False, percent=False),
    ),
}


def material(kind: str) -> Dataset:
    """The data that the measurement needs, fetched when it is not here yet."""
    from monochord.data import data

    if kind == TextClassification.kind:
        return data("alpaca").limit(train=N_PAIRS)
    if kind == ImageClassification.kind:
        return data("digits").limit(train=N_KNOWN, test=N_ASKED)
    if kind == AudioClassification.kind:
        return data("spoken-letters").limit(train=N_KNOWN, test=N_ASKED)
    if kind == Denoising.kind:
        return data("fashion-mnist").limit(test=N_CLOTHES)
    return data("movie-text", source="rotten-tomatoes").limit(train=N_REVIEWS)


def measure(task: Task, model: nn.Module) -> float | None:
    """The score of `model` on its base's own task, None where the task has no `objects["retention"]` or
    the model gives no features.
    """
    import torch

    found: Dataset | None = task.objects.get("retention")
    if found is None or task.processor is None:
        return None
    with torch.inference_mode():
        if isinstance(task, CausalLM):
            batches = Batches(found["train"], task.processor, 8, max_length=REVIEW_TOKENS, shuffle=False)
            return token_loss(model, batches)
        if isinstance(task, Denoising):
            return denoising_loss(model, Batches(found["test"], task.processor, 48, shuffle=False))
        if not hasattr(model, "embed"):
            return None
        return _pairs(task, model, found) if task.kind == TextClassification.kind else _nearest(task, model, found)


def _pairs(task: Task, model: Any, found: Dataset) -> float:
    """How often the nearest response, by the cosine of their vectors, is a prompt's own."""
    import torch

    asked = _embed_texts(task, model, found["train"]["prompt"])
    answers = _embed_texts(task, model, found["train"]["response"])
    return float(((asked @ answers.T).argmax(1) == torch.arange(len(asked))).float().mean())


def _embed_texts(task: Task, model: Any, texts: Sequence[str]) -> Tensor:
    """Unit vectors (texts, d_model), in the order given."""
    import torch
    from torch.nn.functional import normalize

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors: dict[int, Tensor] = {}
    for start in range(0, len(order), 50):
        part = order[start : start + 50]
        tokens = task.processor(
            [texts[i] for i in part], truncation=True, max_length=PAIR_TOKENS, padding=True, return_tensors="pt"
        )
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        vectors.update(zip(part, normalize(model.embed(**inputs).float(), dim=-1), strict=True))
    return torch.stack([vectors[i] for i in range(len(texts))])


def _nearest(task: Task, model: Any, found: Dataset) -> float:
    """How often the nearest known picture or sound is of the right class."""
    known, classes = _embed(task, model, found, "train")
    asked, wanted = _embed(task, model, found, "test")
    return float((classes[(asked @ known.T).argmax(1)] == wanted).float().mean())


def _embed(task: Task, model: Any, found: Dataset, split: str) -> tuple[Tensor, Tensor]:
    import torch
    from torch.nn.functional import normalize

    vectors, labels = [], []
    for batch in Batches(found[split], task.processor, 50, shuffle=False):
        labels.append(batch.pop("labels"))
        vectors.append(normalize(model.embed(**batch).float(), dim=-1))
    return torch.cat(vectors), torch.cat(labels)
