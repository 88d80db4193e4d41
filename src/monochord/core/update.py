"""How one step changes the trained parameters: by gradient here, without one in `zeroth_order`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core.finite import NotFinite, locate
from monochord.core.objective import Batch, Loss, Objective, Step


class Update(ABC):
    """`setup` once, then `step` again and again; a batch may be a list of micro-batches that make up one
    step.
    """

    backward: bool = True  # whether gradients have to be gathered from the other processes

    @abstractmethod
    def setup(self, model: nn.Module, accelerator: Any = None) -> None:
        """Take the parameters of `model` that have `requires_grad`."""

    @abstractmethod
    def step(
        self, model: nn.Module, batch: Batch | Sequence[Batch], objective: Objective, step: Step | None = None
    ) -> Loss:
        """Change the parameters; returns the loss before the change."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def scale_lr(self, factor: float) -> None:
        """Set the learning rate to `factor` times the one given. Nothing to do for an update without one."""
        return


class Gradient(Update):
    """A step of a torch optimizer on the gradient.

    `optimizer` is a class, or the name of one in `torch.optim` in any case; `options` go to it. Weight decay
    leaves out vectors (biases and norms). `before_step(model)` is called between the backward pass and the
    step.
    """

    def __init__(
        self,
        optimizer: str | Callable[..., torch.optim.Optimizer] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        before_step: Callable[[nn.Module], None] | None = None,
        **options: Any,
    ) -> None:
        self.make: Callable[..., torch.optim.Optimizer] = (
            _optimizer(optimizer) if isinstance(optimizer, str) else optimizer
        )
        self.lr, self.weight_decay, self.max_grad_norm = lr, weight_decay, max_grad_norm
        self.before_step, self.options = before_step, options
        self.grad_norm = 0.0

    def setup(self, model: nn.Module, accelerator: Any = None) -> None:
        self._accelerator = accelerator
        self._parameters = trained(model)
        matrices = [p for p in self._parameters.values() if p.ndim > 1]
        vectors = [p for p in self._parameters.values() if p.ndim <= 1]
        groups = [
            {"params": group, "weight_decay": decay}
            for group, decay in ((matrices, self.weight_decay), (vectors, 0.0))
            if group
        ]
        if not self.weight_decay:
            groups = [{"params": list(self._parameters.values())}]
        defaults: dict[str, Any] = {"weight_decay": 0.0} if self.weight_decay or self.make is torch.optim.AdamW else {}
        self.optimizer = self.make(groups, lr=self.lr, **defaults, **self.options)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]

    def step(
        self, model: nn.Module, batch: Batch | Sequence[Batch], objective: Objective, step: Step | None = None
    ) -> Loss:
        if not objective.differentiable:
            raise ValueError(f"{objective.name} has no gradient: use ZerothOrder")
        batches = [batch] if isinstance(batch, Mapping) else list(batch)
        step = step if step is not None else Step()
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for i, part in enumerate(batches):
            last = i == len(batches) - 1
            waits = nullcontext() if last or self._accelerator is None else self._accelerator.no_sync(model)
            with waits:
                loss = objective(model, part, step.part(i))
                if not loss.total.requires_grad:
                    raise ValueError(f"the loss of {objective.name} does not depend on a trained parameter")
                loss.total.backward()
            losses.append(Loss(loss.total.detach(), loss.terms))
        total = sum_losses(losses)
        self.grad_norm = self._clip()
        if not torch.isfinite(total.total) or self.grad_norm != self.grad_norm or self.grad_norm == float("inf"):
            raise NotFinite(step.index, locate(model, batches, objective, step, total.total, self._parameters))
        if self.before_step is not None:
            self.before_step(model)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)

    def scale_lr(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def _clip(self) -> float:
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm: Tensor = torch.nn.utils.get_total_norm(gradients)
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), self.max_grad_norm, norm)
        return float(norm)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with `requires_grad`, by name. Raises `ValueError` when there is none."""
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise ValueError("nothing to train: no parameter has requires_grad; attach a tuner first")
    return found


def sum_losses(losses: Sequence[Loss]) -> Loss:
    """The loss of a whole step from those of its micro-batches, each divided by the count of all."""
    total = torch.stack(
        [loss.total if loss.total.dtype == torch.float64 else loss.total.float() for loss in losses]
    ).sum()
    names = dict.fromkeys(name for loss in losses for name in loss.terms)
    return Loss(total, {name: sum(loss.terms.get(name, 0.0) for loss in losses) for name in names})


def _optimizer(name: str) -> Callable[..., torch.optim.Optimizer]:
    found = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name.lower() not in found:
        raise ValueError(f"no optimizer {name!r} in torch.optim; there are {', '.join(sorted(found))}")
    return found[name.lower()]
