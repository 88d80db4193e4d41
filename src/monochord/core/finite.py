"""Where numbers stopped being numbers: the first module, or gradient, that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from monochord.core.objective import Batch, Objective, Step, unwrap


class NotFinite(ArithmeticError):
    """Training stopped before a step that would have spoiled the model."""

    def __init__(self, step: int, cause: str) -> None:
        super().__init__(f"step {step}: {cause}; the model is as it was before this step")
        self.step = step


def locate(
    model: nn.Module,
    batches: Sequence[Batch],
    objective: Objective,
    step: Step,
    loss: Tensor,
    parameters: Mapping[str, nn.Parameter],
) -> str:
    """One clause that names what is not finite: found by running the forward of each micro-batch again."""
    first = f"the loss is {float(loss):g}" if not torch.isfinite(loss) else "the gradient is not finite"
    inner = unwrap(model)
    for i, batch in enumerate(batches):
        found = _first(inner, partial(objective, inner, batch, step.part(i)))
        if found is not None:
            return f"{first}, first in the output of {found or 'the model'!r} (micro-batch {i})"
    for name, parameter in parameters.items():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"{first}, first that of {name!r}"
    return f"{first}, though every module's output is finite"


def _first(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """The first module of `model` whose output is not finite while `run` runs."""
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        if not found and not _finite(output):
            found.append(name)

    def watch(module: nn.Module, name: str) -> RemovableHandle:
        return module.register_forward_hook(lambda module, inputs, output: look(name, output))

    hooks = [watch(module, name) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool((torch.isfinite(value) | (value == -torch.inf)).all())
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, (list, tuple)) else True
