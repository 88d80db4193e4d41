"""Adaptation without labels, batch by batch, as the data come: adapt, predict, go on or start again.

    logits = adapt_online(model, stream, [Minimise(Entropy(), lr=1e-3)])

A rule is called with the model and a batch that has no labels, and changes the model as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core.objective import Objective, evaluating, logits_of, run
from monochord.core.update import Gradient

Batch = Mapping[str, Any]
Rule = Callable[[nn.Module, Batch], object]
LABELS = ("labels", "label")


def adapt_online(
    model: nn.Module,
    batches: Iterable[Batch],
    rules: Sequence[Rule] = (),
    *,
    predict: str = "after",
    statistics: str = "batch",
    episodic: bool = False,
    restore: bool = True,
) -> list[Tensor]:
    """The logits of every batch, each adapted to by all `rules` in turn.

    Rules never see labels. Predictions are made "after" adapting to the batch, by one more forward, or "before".
    `statistics="batch"` has norms use those of the batch, "running" their own. `episodic` goes back to the start after
    every batch; `restore` does so at the end, bit for bit.
    Raises `ValueError` for another word.
    """
    if predict not in ("after", "before") or statistics not in ("batch", "running"):
        raise ValueError(
            f"predict={predict!r}, statistics={statistics!r}: use 'after' or 'before', 'batch' or 'running'"
        )
    start = {name: value.detach().clone() for name, value in model.state_dict().items()}
    found: list[Tensor] = []
    try:
        with evaluating(model):
            for given in batches:
                batch = {name: value for name, value in given.items() if name not in LABELS}
                with _batch_statistics(model, statistics == "batch"):
                    if predict == "before":
                        found.append(_logits(model, batch))
                    for rule in rules:
                        rule(model, batch)
                    if predict == "after":
                        found.append(_logits(model, batch))
                if episodic:
                    _reset(model, start)
    finally:
        if restore:
            _reset(model, start)
    return found


class Minimise:
    """The rule that takes a step down the gradient of an objective without labels, such as the entropy."""

    def __init__(self, objective: Objective, optimizer: str = "adam", lr: float = 1e-3, **options: Any) -> None:
        self.objective, self.update = objective, Gradient(optimizer, lr, **options)
        self._model: nn.Module | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> object:
        if self._model is not model:
            self._model = model
            self.update.setup(model)
        return self.update.step(model, batch, self.objective)


@contextmanager
def _batch_statistics(model: nn.Module, on: bool) -> Iterator[None]:
    """Norms with running statistics use the batch's for a block; their own stay as they are."""
    norms: list[Any] = [m for m in model.modules() if on and getattr(m, "running_mean", None) is not None]
    kept = [(m.running_mean, m.running_var) for m in norms]
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, (mean, var) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, var


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return logits_of(run(model, batch)).clone()


def _reset(model: nn.Module, start: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(start[name])
