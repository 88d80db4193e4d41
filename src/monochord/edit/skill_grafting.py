"""Find the few weights that carry what fine-tuning learned, and graft only those onto the base.

From "Task-Specific Skill Localization in Fine-tuned Language Models", February 13, 2023. Both models stay as they are:
what is optimised is which coordinates take the tuned value. A sigmoid relaxes the choice, starting from the
coordinates that tuning moved most; every epoch the rounded choice is scored, and the best one is kept.

    delta = Delta.between(base, tuned)
    found = localize(base, delta, batches, objective, budget=2000)
    graft(base, tuned, found.mask).save("skill.safetensors")      # indices and values of 2,000 weights
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monochord.core.delta import Delta, DeltaError, Entry, Sparse
from monochord.core.forward import evaluating
from monochord.core.objective import Objective
from monochord.core.selection import Selection
from monochord.core.sources import targets_of, weights_of
from monochord.core.storage import fingerprint

PACE = 0.6  # how far the weakest coordinate of a budget moves in the first epoch
BIAS = 10.0  # sigmoid(-10) = 4.5e-5: the soft choice starts as good as hard


def movement_mask(delta: Mapping[str, Entry], *, k: int | None = None, fraction: float | None = None) -> Selection:
    """The `k` coordinates (or `fraction`) that tuning moved most, all tensors ranked together."""
    return Selection.by_score({name: entry.dense().abs() for name, entry in delta.items()}, k=k, fraction=fraction)


def graft(base: nn.Module | Mapping[str, Tensor], tuned: nn.Module | Mapping[str, Tensor], mask: Selection) -> Delta:
    """The sparse change that gives `base` exactly the values of `tuned` where `mask` is set, and no other.

    Values are kept in float64, so that base plus change is the tuned value bit for bit. Raises `DeltaError` for a
    mask of weights that the models have not.
    """
    before, after = weights_of(base), weights_of(tuned)
    entries: dict[str, Entry | Tensor] = {}
    for name, count in mask.counts().items():
        for weights, owner in ((before, "the base"), (after, "the tuned model")):
            if name not in weights or tuple(weights[name].shape) != mask.shapes[name]:
                raise DeltaError(f"the mask is of {name!r}, {mask.shapes[name]}, and {owner} has no such weight")
        if count:
            places = mask.indices(name)
            old, new = (weights[name].detach().flatten()[places].double() for weights in (before, after))
            entries[name] = Sparse(places, new - old, mask.shapes[name])
    return Delta(entries, fingerprint(before))


def overlap(first: Selection, second: Selection) -> float:
    """The share of the first mask's coordinates that the second has too; not symmetric."""
    return (first & second).count / max(first.count, 1)


@dataclass(frozen=True)
class Localized:
    """The best `mask`, its `score`, and of every epoch `(score, weights in the mask, weights that left the start)`."""

    mask: Selection
    score: float
    history: tuple[tuple[float, int, int], ...]


def localize(
    model: nn.Module,
    delta: Mapping[str, Entry],
    batches: Sequence[Mapping[str, Tensor]],
    objective: Objective,
    *,
    budget: int,
    start: Selection | None = None,
    epochs: int = 10,
    lr: float | None = None,
    score: Callable[[nn.Module], float] | None = None,
    seed: int = 0,
) -> Localized:
    """Learn which at most `budget` coordinates of `delta` to graft onto `model`, the base.

    Every coordinate has a logit S; the weight used is `base + frac * change`, where `frac` is `sigmoid(S - 10)`, and
    one minus that for coordinates of `start` (by default the `budget` that moved most), which can thus leave too.
    An epoch is one step of plain gradient descent on the mean loss of all `batches`. The slope of the sigmoid is tiny
    at the start, so `lr` has to be huge: without one it is chosen so that the `budget`-th strongest pull moves its
    logit by 0.6 in the first epoch; pulls grow as they act, and a step that made it worse is halved. Masks are
    rounded, cut to the budget by `frac`, and scored by `score(model)` with the graft in place (higher is better; by
    default minus the mean loss of `batches`). The model is given back as it was. Raises `ValueError` for a budget that
    the change has not.
    """
    change = {name: entry.dense() for name, entry in delta.items()}
    total = sum(value.numel() for value in change.values())
    if not 1 <= budget <= total:
        raise ValueError(f"budget={budget} of {total} changed weights: use 1 to {total}")
    start = start if start is not None else movement_mask(delta, k=budget)
    inside = {
        name: start[name] if name in start else torch.zeros_like(c, dtype=torch.bool) for name, c in change.items()
    }
    generator = torch.Generator().manual_seed(seed)
    logits = {name: torch.rand(c.shape, generator=generator) for name, c in change.items()}
    best: tuple[float, Selection, dict[str, Tensor], dict[str, Tensor]] | None = None
    history = []
    with evaluating(model), _lent(model, change) as (weights, base):
        for epoch in range(epochs + 1):
            frac = _share(logits, inside)
            mask = _rounded(frac, budget)
            _put(weights, base, change, mask)
            value = score(model) if score is not None else -_mean_loss(model, batches, objective)
            history.append((value, mask.count, (start - mask).count))
            better = best is None or value >= best[0]
            if epoch == epochs:
                best = (value, mask, {}, {}) if better else best
                break
            if better:
                within = {n: torch.where(mask[n], f, torch.minimum(f, 1 - f)) for n, f in frac.items()}
                _put(weights, base, change, within)
                slopes = _gradient(model, batches, objective, weights)
                for name, slope in slopes.items():  # the derivative of frac is that of the sigmoid, turned inside
                    turn = torch.where(inside[name], -1.0, 1.0)
                    slopes[name] = turn * change[name] * slope * frac[name] * (1 - frac[name])
                best = value, mask, logits, slopes
            elif lr is not None:
                lr /= 2  # too far: from the best place again, with a shorter step
            assert best is not None
            _, _, place, slopes = best
            if lr is None:
                pulls = torch.cat([slope.abs().flatten() for slope in slopes.values()])
                strong = float(pulls.kthvalue(total - budget + 1).values)
                lr = PACE / strong if strong else 1.0
            logits = {n: (s - lr * slopes[n]).clamp(0, 2 * BIAS) for n, s in place.items()}  # or it could not go back
    assert best is not None
    return Localized(best[1], best[0], tuple(history))


def _share(logits: Mapping[str, Tensor], inside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How much of the tuned value each coordinate takes, 0 to 1."""
    soft = {name: torch.sigmoid(value - BIAS) for name, value in logits.items()}
    return {name: torch.where(inside[name], 1 - value, value) for name, value in soft.items()}


def _rounded(frac: Mapping[str, Tensor], budget: int) -> Selection:
    """The coordinates nearer to the tuned value than to the base, at most `budget` of them."""
    nearer = sum(int((value > 0.5).sum()) for value in frac.values())
    return Selection.by_score(frac, k=min(nearer, budget))


def _put(
    weights: Mapping[str, Tensor], base: Mapping[str, Tensor], change: Mapping[str, Tensor], share: Mapping[str, Tensor]
) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(base[name] + share[name] * change[name])


def _mean_loss(model: nn.Module, batches: Sequence[Mapping[str, Tensor]], objective: Objective) -> float:
    with torch.no_grad():
        return sum(float(objective(model, batch).total) for batch in batches) / len(batches)


def _gradient(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], objective: Objective, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The gradient of the mean loss over all batches."""
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in batches:
        found = torch.autograd.grad(objective(model, batch).total, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                total[name] += gradient / len(batches)
    return total


@contextmanager
def _lent(model: nn.Module, change: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The model's own parameters that change, with gradients, and copies of their values; put back at the end."""
    weights = targets_of(model, change)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    base = {name: weight.detach().clone() for name, weight in weights.items()}
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        yield weights, base
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(base[name])
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
