"""How much the loss depends on each single weight, from gradients: accumulated tensor by tensor as they appear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core.batches import as_batch
from monochord.core.objective import Objective, OwnLoss, Step, evaluating
from monochord.core.sparse import weights_at

_SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": lambda gradient, weight: gradient.square(),
    "absolute": lambda gradient, weight: gradient.abs(),
    "taylor": lambda gradient, weight: (gradient * weight).abs(),
    "fisher": lambda gradient, weight: gradient.square(),
}


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    objective: Objective | None = None,
    sites: str | tuple[str, ...] = "**.weight",
    score: str = "squared",
) -> dict[str, Tensor]:
    """A score of every entry of the parameters that `sites` names, in float32, by native name.

    Summed over batches: `"squared"` is g² of the batch's mean gradient, to first order the drop of the loss by a
    gradient step on that weight alone; `"absolute"` |g|; `"taylor"` |w g|, the change of the loss by removing the
    weight; `"fisher"` g² of every example by itself. A gradient is used and freed as soon as it is there, so above
    the scores no more than one is held. Flags, gradients and mode are the same after as before.
    """
    if score not in _SCORES:
        raise ValueError(f"score={score!r} is unknown: use one of {', '.join(_SCORES)}")
    objective = objective or OwnLoss()
    state = dict(model.named_parameters(remove_duplicate=False))
    parameters = {site.path: state[site.path] for site in weights_at(model, sites).values()}
    scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    wanted = {id(p) for p in parameters.values()}
    handles = []
    try:
        for p, _, _ in flags:
            p.requires_grad_(id(p) in wanted)
            p.grad = None
        for name, p in parameters.items():
            handles.append(p.register_post_accumulate_grad_hook(_Collect(scores[name], _SCORES[score])))
        with evaluating(model):
            for index, batch in enumerate(batches):
                for part in _examples(as_batch(batch)) if score == "fisher" else (as_batch(batch),):
                    objective(model, part, Step(index)).total.backward()
    finally:
        for handle in handles:
            handle.remove()
        for p, flag, gradient in flags:
            p.requires_grad_(flag)
            p.grad = gradient
    return scores


class _Collect:
    """Adds a gradient's score to `total` and lets the gradient go."""

    def __init__(self, total: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.total, self.score = total, score

    def __call__(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is not None:
            self.total += self.score(gradient.float(), parameter.detach())
            parameter.grad = None


def _examples(batch: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    size = next(len(v) for v in batch.values() if isinstance(v, Tensor) and v.ndim)
    for i in range(size):
        yield {k: v[i : i + 1] if isinstance(v, Tensor) and v.ndim and len(v) == size else v for k, v in batch.items()}
