"""Equal budgets: the same tuner with its size set so that it trains as many numbers as asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import nn

from monochord.core import registry
from monochord.core.tuner import Tuner

KNOBS = ("rank", "bottleneck", "length", "n", "d", "narrow", "reduction")  # the last two shrink a tuner as they grow
LARGEST = 1 << 20


def match_budget(
    tuners: Mapping[str, str | Tuner], model: nn.Module, n: int, *, tolerance: float = 0.05
) -> dict[str, Tuner]:
    """Each tuner (or spec) with its first field of `KNOBS` set so that it trains about `n` numbers on `model`.

    The closest whole number is taken. Raises `ValueError` for a tuner without such a field, and for one that comes no
    nearer than the share `tolerance`, with the nearest count.
    """
    return {name: _matched(name, registry.build(spec), model, n, tolerance) for name, spec in tuners.items()}


def count(tuner: Tuner, model: nn.Module) -> int:
    """How many numbers a tuner trains on `model`, which is left as it was."""
    with tuner.attach(model) as tuned:
        return tuned.n_trainable


def _matched(name: str, tuner: Any, model: nn.Module, n: int, tolerance: float) -> Tuner:
    knob = next((field.name for field in fields(tuner) if field.name in KNOBS), None)
    if knob is None:
        raise ValueError(f"{name} has no size to set: none of {', '.join(KNOBS)} is a field of it")
    sizes: dict[int, int] = {}

    def trained(value: int) -> int | None:
        """The count at a size, or None where the model is too small for it."""
        if value not in sizes:
            try:
                sizes[value] = count(replace(tuner, **{knob: value}), model)
            except ValueError:
                return None
        return sizes[value]

    grows = knob not in ("narrow", "reduction")
    low, high = 1, 2
    while high < LARGEST and (found := trained(high)) is not None and (found < n) == grows:
        low, high = high, 2 * high
    trained(low)
    while high - low > 1:
        middle = (low + high) // 2
        found = trained(middle)
        above = found is None or (found >= n) == grows
        low, high = (low, middle) if above else (middle, high)
    if not sizes:
        raise ValueError(f"{name} fits {type(model).__name__} with no {knob}")
    best = min(sizes, key=lambda value: abs(sizes[value] - n))
    if abs(sizes[best] - n) > tolerance * n:
        raise ValueError(f"{name} trains {sizes[best]} numbers at {knob}={best}, no size is nearer to {n}")
    made: Tuner = replace(tuner, **{knob: best})
    return made
