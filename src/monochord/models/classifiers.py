"""Shipped classifiers whose one body serves several sets of classes, or a new one.

`net.json` of such a net names the classes of each set in `labels`; its weights have one classifier with a row for
each of them, in that order. A loaded net has the rows of one set, as if there were no other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.models.shipped import load_shipped

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_classifier(
    folder: Path, dtype: torch.dtype | None, *, labels: str | Sequence[str], checkpoint: int | str = "final"
) -> nn.Module:
    """A shipped classifier for one set of its `labels`, or with a new head, at random, for a list of names.

    `checkpoint` is that of `load_shipped`. Raises `LoadError` for a set that the net does not know.
    """
    from monochord.models.loading import LoadError

    known: Mapping[str, list[str]] = json.loads((folder / "net.json").read_text(encoding="utf8"))["labels"]
    if isinstance(labels, str) and labels not in known:
        raise LoadError(f"{folder.name} has no labels {labels!r}: use {', '.join(known)}, or a list of names")
    model = load_shipped(folder, dtype, checkpoint=checkpoint)
    if isinstance(labels, str):
        before = list(known)[: list(known).index(labels)]
        first = sum(len(known[name]) for name in before)
        return narrowed(model, known[labels], range(first, first + len(known[labels])))
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise LoadError(f"{folder.name}: labels={list(labels)!r} must be at least two different names")
    return narrowed(model, labels, None)


def narrowed(model: nn.Module, names: Sequence[str], rows: range | None) -> nn.Module:
    """`model` with those rows of its classifier, or with new ones where they are None, and their names."""
    import torch

    head = last_linear(model)
    weight, bias = head.weight.data, head.bias.data
    if rows is None:
        generator = torch.Generator().manual_seed(0)
        new = torch.empty(len(names), weight.shape[1]).normal_(0, 0.02, generator=generator)
        weight, bias = new.to(weight.dtype), torch.zeros(len(names), dtype=bias.dtype)
    else:
        weight, bias = weight[rows.start : rows.stop].clone(), bias[rows.start : rows.stop].clone()
    head.out_features = len(names)
    head.weight, head.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
    told: Any = model
    told.num_labels = told.config.num_labels = len(names)
    told.config.id2label = dict(enumerate(names))
    told.config.label2id = {name: place for place, name in enumerate(names)}
    return model


def last_linear(model: nn.Module) -> nn.Linear:
    """The linear layer that gives the logits: the last one inside `model.classifier`."""
    from torch import nn

    return [module for module in model.get_submodule("classifier").modules() if isinstance(module, nn.Linear)][-1]
