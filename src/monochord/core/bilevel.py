"""Two groups of parameters that learn in turn, each from data of its own: first-order bilevel training.

    coefficients = [p for act in activations(tuned) for p in act.parameters()]
    update = Bilevel(Gradient(lr=1e-3), Gradient(lr=1e-3), above_parameters=coefficients, held=one_half)
    fit(model, other_half, update=update, steps=100)

As "DARTS: Differentiable Architecture Search", June 24, 2018, alternates weights and architecture, in its first order:
those above take their gradient at the weights as they are, without looking a step ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from monochord.core.batches import Stream
from monochord.core.objective import Batch, Loss, Objective, Step
from monochord.core.update import Update, trained


class Bilevel(Update):
    """Before every step of `below` on the batch, `above` steps on the next batch of `held`.

    `above_parameters` are a list of parameters, or say of a parameter's name whether it is one of those above; all
    others that train are below. `every` steps, from step `begin` on, those above move; `below` moves at each. Either
    may be any update. Raises `ValueError` where one of the two groups has nothing to train.
    """

    def __init__(
        self,
        below: Update,
        above: Update,
        *,
        above_parameters: Iterable[nn.Parameter] | Callable[[str], bool],
        held: Any,
        every: int = 1,
        begin: int = 0,
        seed: int = 0,
    ) -> None:
        if every < 1 or begin < 0:
            raise ValueError(f"every={every} must be at least 1 and begin={begin} at least 0")
        self.below, self.above, self.held = below, above, held
        self.chosen = above_parameters if callable(above_parameters) else {id(p) for p in above_parameters}
        self.every, self.begin, self.seed = every, begin, seed
        self.backward = below.backward or above.backward
        self.losses: list[float] = []  # of those above, on the held data
        self._taken = 0

    def setup(self, model: nn.Module, accelerator: Any = None) -> None:
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in trained(model).items():
            is_above = self.chosen(name) if callable(self.chosen) else id(parameter) in self.chosen
            groups[is_above].append(parameter)
        for group, called in zip(groups, ("below", "above"), strict=True):
            if not group:
                raise ValueError(f"nothing to train {called}: of the trained parameters none is {called}")
        self._below, self._above = groups
        with _alone(self._below, self._above):
            self.below.setup(model, accelerator)
        with _alone(self._above, self._below):
            self.above.setup(model, accelerator)
        self._stream = Stream(self.held, self.seed, accelerator or _Local(groups[0][0].device), "held")
        self._stream.skip(self._taken)

    def step(
        self, model: nn.Module, batch: Batch | Sequence[Batch], objective: Objective, step: Step | None = None
    ) -> Loss:
        step = step if step is not None else Step()
        if step.index >= self.begin and (step.index - self.begin) % self.every == 0:
            held = self._stream.take()
            with _alone(self._above, self._below):
                loss = self.above.step(model, held, objective, Step(step.index, seed=step.seed + 1))
            self._taken += 1
            self.losses.append(loss.total.item())
        with _alone(self._below, self._above):
            return self.below.step(model, batch, objective, step)

    def state_dict(self) -> dict[str, Any]:
        return {
            "below": self.below.state_dict(),
            "above": self.above.state_dict(),
            "taken": self._taken,
            "losses": list(self.losses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.below.load_state_dict(state["below"])
        self.above.load_state_dict(state["above"])
        self._stream.skip(int(state["taken"]) - self._taken)
        self._taken, self.losses = int(state["taken"]), list(state["losses"])

    def scale_lr(self, factor: float) -> None:
        self.below.scale_lr(factor)
        self.above.scale_lr(factor)


class _Local:
    """What a stream asks of an accelerator, where there is one process."""

    num_processes, process_index = 1, 0

    def __init__(self, device: torch.device) -> None:
        self.device = device


@contextmanager
def _alone(group: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> Iterator[None]:
    """For a block only `group` trains, so that no gradient is taken for the others."""
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
