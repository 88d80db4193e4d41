"""Zeroth-order tuning: a step from two forward passes along a random direction that is never stored.

From "Fine-Tuning Language Models with Just Forward Passes", May 26, 2023. The noise is drawn three times a
step instead of four: the restoring pass is also the update.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core.finite import NotFinite
from monochord.core.noise import Noise
from monochord.core.objective import Batch, Loss, Objective, Step, evaluating, unwrap
from monochord.core.update import Update, sum_losses, trained


class ZerothOrder(Update):
    """theta -= lr * (g * z + weight_decay * theta) with g = (L(theta + eps z) - L(theta - eps z)) / (2 eps).

    `noise="gaussian"` draws z from N(0, 1), `"sign"` from {-1, 1}, which is cheaper; `samples` directions
    are averaged. Both losses are of the same batch with dropout off and without autograd, so any scalar
    objective will do. Decay leaves out vectors (biases and norms). The weights come back from theta - eps z
    by arithmetic, within rounding; `exact_restore=True` keeps a copy of the trained parameters and restores
    them bit for bit.

    `log` is the whole training: (seed, g) of every step, from which `replay` rebuilds the tuned weights.
    """

    backward = False

    def __init__(
        self,
        lr: float,
        eps: float = 1e-3,
        samples: int = 1,
        weight_decay: float = 0.0,
        noise: str = "gaussian",
        exact_restore: bool = False,
        seed: int = 0,
    ) -> None:
        if eps <= 0 or samples < 1:
            raise ValueError(f"eps must be positive and samples at least 1, got eps={eps}, samples={samples}")
        self.lr, self.eps, self.samples, self.weight_decay = lr, eps, samples, weight_decay
        self.noise, self.exact_restore, self.seed = noise, exact_restore, seed
        self.log: list[tuple[int, float]] = []
        self.rates: list[float] = []
        self.factor = 1.0

    def setup(self, model: nn.Module, accelerator: Any = None) -> None:
        self._accelerator = accelerator
        self._set_parameters(trained(model))

    def step(
        self, model: nn.Module, batch: Batch | Sequence[Batch], objective: Objective, step: Step | None = None
    ) -> Loss:
        batches = [batch] if isinstance(batch, Mapping) else list(batch)
        model = unwrap(model)
        step = step if step is not None else Step(len(self.log) // self.samples)
        pairs: list[tuple[int, float]] = []
        losses: list[Loss] = []
        rate = self.lr * self.factor
        self._keep()
        for sample in range(self.samples):
            seed = self._seed(step.index, sample)
            up, down = self._two(seed, model, batches, objective, step)
            pairs.append((seed, (up.total.item() - down.total.item()) / (2 * self.eps)))
            losses.append(Loss((up.total + down.total) / 2, up.terms))
            if self.exact_restore:
                self._back()
            elif self.samples > 1:
                self._move(seed, self.eps)
        pairs = self._shared(pairs)
        if bad := [g for _, g in pairs if not math.isfinite(g)]:
            if not self.exact_restore and self.samples == 1:
                self._move(pairs[0][0], self.eps)
            raise NotFinite(step.index, f"the slope of the loss is {bad[0]:g}")
        if self.samples == 1 and not self.exact_restore:
            self._update(pairs, rate, behind=self.eps)
        else:
            self._update(pairs, rate)
        self.log += pairs
        self.rates.append(rate)
        return Loss(torch.stack([loss.total for loss in losses]).mean().clone(), losses[0].terms)

    def replay(self, model: nn.Module, log: Iterable[tuple[int, float]] | None = None) -> None:
        """Redo the training in `log` (this one's own, by default) on the base model in place, without data."""
        pairs = list(self.log if log is None else log)
        rates = self.rates if log is None or len(self.rates) * self.samples == len(pairs) else None
        self._set_parameters(trained(model))
        for i in range(0, len(pairs), self.samples):
            rate = rates[i // self.samples] if rates else self.lr
            self._update(pairs[i : i + self.samples], rate)

    def direction(self, seed: int) -> list[Tensor]:
        """The direction z of a seed, whole and in the order matrices, vectors: to look at, not to train
        with.
        """
        directions = [torch.zeros_like(p, dtype=torch.float32) for p in self._parameters]
        noise = Noise(directions[: len(self._matrices)], directions[len(self._matrices) :], kind=self.noise)
        noise.visit(seed, lambda pieces, z, group: torch._foreach_add_(pieces, z))
        return directions

    def scale_lr(self, factor: float) -> None:
        self.factor = factor

    def state_dict(self) -> dict[str, Any]:
        return {"log": [list(pair) for pair in self.log], "rates": list(self.rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.log = [(int(seed), float(g)) for seed, g in state["log"]]
        self.rates = [float(rate) for rate in state["rates"]]

    def _set_parameters(self, parameters: dict[str, nn.Parameter]) -> None:
        self._matrices = [p.detach() for p in parameters.values() if p.ndim > 1]
        self._vectors = [p.detach() for p in parameters.values() if p.ndim <= 1]
        self._parameters = self._matrices + self._vectors
        self._noise = Noise(self._matrices, self._vectors, kind=self.noise)
        self._copies: list[Tensor] = []

    def _keep(self) -> None:
        if self.exact_restore and not self._copies:
            self._copies = [parameter.clone() for parameter in self._parameters]
        for copy, parameter in zip(self._copies, self._parameters, strict=False):
            copy.copy_(parameter)

    def _back(self) -> None:
        for copy, parameter in zip(self._copies, self._parameters, strict=False):
            parameter.copy_(copy)

    def _move(self, seed: int, distance: float) -> None:
        self._noise.visit(seed, lambda pieces, z, group: _shift(pieces, z, distance))

    def _update(self, pairs: Sequence[tuple[int, float]], rate: float, behind: float = 0.0) -> None:
        """The step, from weights that lie `behind` * z behind the place where the slopes were taken."""
        for i, (seed, g) in enumerate(pairs):
            kept = 1.0 if i else 1 - rate * self.weight_decay
            slope = rate * g / len(pairs)

            def change(
                pieces: list[Tensor], z: list[Tensor], group: int, kept: float = kept, slope: float = slope
            ) -> None:
                decay = 1.0 if group else kept
                if decay != 1.0:
                    torch._foreach_mul_(pieces, decay)
                _shift(pieces, z, decay * behind - slope)

            self._noise.visit(seed, change)

    def _two(
        self, seed: int, model: nn.Module, batches: Sequence[Batch], objective: Objective, step: Step
    ) -> tuple[Loss, Loss]:
        """The losses at +eps and at -eps, where the weights are left; after an exception they are restored."""
        behind = 0.0
        try:
            with evaluating(model), torch.inference_mode():
                self._move(seed, self.eps)
                behind = -self.eps
                up = self._loss(model, batches, objective, step)
                if self.exact_restore:
                    self._back()
                self._move(seed, -self.eps if self.exact_restore else -2 * self.eps)
                behind = self.eps
                return up, self._loss(model, batches, objective, step)
        except BaseException:
            if self.exact_restore:
                self._back()
            else:
                self._move(seed, behind)
            raise

    def _loss(self, model: nn.Module, batches: Sequence[Batch], objective: Objective, step: Step) -> Loss:
        return sum_losses([objective(model, batch, step.part(i)) for i, batch in enumerate(batches)])

    def _seed(self, index: int, sample: int) -> int:
        return (self.seed * 0x9E3779B1 + index * self.samples + sample) % (1 << 62)

    def _shared(self, pairs: list[tuple[int, float]]) -> list[tuple[int, float]]:
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return pairs
        slopes = torch.tensor([g for _, g in pairs], dtype=torch.float64, device=self._accelerator.device)
        slopes = self._accelerator.reduce(slopes, "mean")
        return [(seed, g) for (seed, _), g in zip(pairs, slopes.tolist(), strict=True)]


def _shift(pieces: list[Tensor], z: list[Tensor], distance: float) -> None:
    if len(pieces) == 1:
        pieces[0].add_(z[0], alpha=distance)
    else:
        torch._foreach_add_(pieces, z, alpha=distance)


def _update(pieces: list[Tensor], z: list[Tensor], group: int, *, kept: float, behind: float, slope: float) -> None:
    """Restore, decay (the matrices, group 0) and step at once."""
    kept = 1.0 if group else kept
    if kept != 1.0:
        torch._foreach_mul_(pieces, kept)
    _shift(pieces, z, kept * behind - slope)
