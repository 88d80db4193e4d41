"""What the checks train, compare and report with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core.ports import first_tensor
from monochord.core.tuner import Tuned

Batch = Mapping[str, Any]


class ConformanceError(AssertionError):
    """An invariant that does not hold; the message names it."""


class Deliberate(Exception):
    """Raised inside a block to see that it cleans up."""


class Trace:
    """Everything about a model that attach and detach must leave as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.values = values(model)
        self.order = list(model.state_dict())
        self.modules = [(n, type(m), m.training) for n, m in model.named_modules()]
        self.flags = [p.requires_grad for p in model.parameters()]
        self.hooks = hooks(model)

    def require_same(self, model: nn.Module) -> None:
        require(list(model.state_dict()) == self.order, "the state dict has other keys or another order")
        require(same(self.values, values(model)), "a parameter or buffer is not bit-identical")
        modules = [(n, type(m), m.training) for n, m in model.named_modules()]
        require(modules == self.modules, "modules, their classes or their modes differ")
        require([p.requires_grad for p in model.parameters()] == self.flags, "requires_grad flags differ")
        require(hooks(model) == self.hooks, "hooks were left behind")


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, k)) for m in model.modules() for k in kinds)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {n: v.detach().clone() for n, v in model.state_dict().items() if isinstance(v, Tensor)}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[n]) for n, v in a.items())


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def output_of(model: nn.Module, batch: Batch) -> Tensor:
    output = model(**batch)
    for key in ("logits", "logits_per_image", "last_hidden_state"):
        if isinstance(getattr(output, key, None), Tensor):
            return getattr(output, key)  # type: ignore[no-any-return]
    return first_tensor(output)


def run(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad(), evaluating(model):
        return output_of(model, batch).clone()


def train(tuned: Tuned, batch: Batch, *, steps: int = 2, decay: float = 0.1, averaged: Any = None) -> None:
    """A few steps of AdamW with decay on what the model says trains, towards a fixed random output."""
    model = tuned.model
    modes = [(m, m.training) for m in model.modules()]
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=decay)
    try:
        for _ in range(steps):
            optimizer.zero_grad()
            sum(distance(value) for value in tensors_in(model(**batch))).backward()  # type: ignore[union-attr]
            optimizer.step()
            if averaged is not None:
                averaged.update_parameters(model)
    finally:
        for module, training in modes:
            module.training = training


def tensors_in(output: Any) -> list[Tensor]:
    """Every floating-point tensor that a model returns."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() and output.requires_grad else []
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else []
    return [tensor for value in values for tensor in tensors_in(value)]


def distance(value: Tensor) -> Tensor:
    """The mean squared distance from a fixed goal."""
    goal = torch.linspace(-1, 1, value.numel(), device=value.device).reshape(value.shape)
    return (value.float() - goal).square().mean()


def check_all(what: str, checks: Mapping[str, Callable[[], None]]) -> None:
    failures = []
    for name, check in checks.items():
        try:
            check()
        except ConformanceError as error:
            failures.append(f"{name}: {error}")
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
    if failures:
        raise ConformanceError(f"{what} fails {len(failures)} of {len(checks)} checks; " + "; ".join(failures))


def require_close(found: Tensor, wanted: Tensor, atol: float, otherwise: str) -> None:
    difference = float((found.float() - wanted.float()).abs().max())
    require(difference <= atol * max(1.0, float(wanted.abs().max())), f"{otherwise} by {difference:.1e}")


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ConformanceError(otherwise)
