"""Zeroth-order tuning: a step from two forward passes along a random direction that is never stored.

From "Fine-Tuning Language Models with Just Forward Passes", May 26, 2023. The noise is drawn three times a
step instead of four: the restoring pass is also the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core.finite import NotFinite
from monochord.core.noise import Noise
from monochord.core.objective import Batch, Loss, Objective, Step, evaluating, unwrap
from monochord.core.schedules import Schedule, at
from monochord.core.update import Gradient, Update, sum_losses, trained


class ZerothOrder(Update):
    """theta -= lr * (g * z + weight_decay * theta) with g = (L(theta + eps z) - L(theta - eps z)) / (2 eps).

    `noise="gaussian"` draws z from N(0, 1), `"sign"` from {-1, 1}, which is cheaper; `samples` directions
    are averaged, a number or a schedule of the step such as `Ramp(1, 8, steps)`. Both losses are of the same
    batch with dropout off and without autograd, so any scalar objective will do. Decay leaves out vectors
    (biases and norms). The weights come back from theta - eps z by arithmetic, within rounding;
    `exact_restore=True` keeps a copy of the trained parameters and restores them bit for bit.

    `scaled=True` moves each tensor in proportion to its own root mean square at the start, relative to that of
    all (a tensor of zeros by 1): it probes along d z and steps along z / d, which leaves the mean of the step
    the gradient.

    With an `optimizer`, as `Gradient` takes it, the mean of g z is its gradient: `momentum=0.9` alone is that of
    SGD, `optimizer="adam"` Adam. It costs what no plain step needs: that gradient and what the optimizer holds,
    twice the trained weights for momentum and three times for Adam; still no activation is kept.

    `log` is the whole training: (seed, g) of every direction, from which `replay` rebuilds the tuned weights,
    and an optimizer's state with them.
    """

    backward = False

    def __init__(
        self,
        lr: float,
        eps: float = 1e-3,
        samples: Schedule = 1,
        weight_decay: float = 0.0,
        noise: str = "gaussian",
        exact_restore: bool = False,
        seed: int = 0,
        scaled: bool = False,
        optimizer: str | Callable[..., torch.optim.Optimizer] | None = None,
        **options: Any,
    ) -> None:
        if eps <= 0 or (not callable(samples) and samples < 1):
            raise ValueError(f"eps must be positive and samples at least 1, got eps={eps}, samples={samples}")
        self.lr, self.eps, self.samples, self.weight_decay = lr, eps, samples, weight_decay
        self.noise, self.exact_restore, self.seed, self.scaled = noise, exact_restore, seed, scaled
        if options and optimizer is None:
            optimizer = "sgd"
        self.inner = None if optimizer is None else Gradient(optimizer, lr, weight_decay, None, None, **options)
        self.log: list[tuple[int, float]] = []
        self.rates: list[float] = []
        self.counts: list[int] = []
        self.scales: list[float] = []
        self.factor = 1.0
        self._trained: list[nn.Parameter] = []
        self._loaded: dict[str, Any] | None = None  # an optimizer's state that waits for the parameters

    def setup(self, model: nn.Module, accelerator: Any = None) -> None:
        self._accelerator = accelerator
        if not self.log:
            self.scales = []
        self._take(model)
        if self.inner is not None and self._loaded is not None:
            self.inner.load_state_dict(self._loaded)
            self._loaded = None

    def step(
        self, model: nn.Module, batch: Batch | Sequence[Batch], objective: Objective, step: Step | None = None
    ) -> Loss:
        batches = [batch] if isinstance(batch, Mapping) else list(batch)
        model = unwrap(model)
        step = step if step is not None else Step(len(self.rates))
        pairs: list[tuple[int, float]] = []
        losses: list[Loss] = []
        rate, count = self.lr * self.factor, self._count(step.index)
        self._keep()
        for sample in range(count):
            seed = self._seed(step.index, sample)
            up, down = self._two(seed, model, batches, objective, step)
            pairs.append((seed, (up.total.item() - down.total.item()) / (2 * self.eps)))
            losses.append(Loss((up.total + down.total) / 2, up.terms))
            if self.exact_restore:
                self._back()
            elif count > 1:
                self._move(seed, self.eps)
        pairs = self._shared(pairs)
        if bad := [g for _, g in pairs if not math.isfinite(g)]:
            if not self.exact_restore and count == 1:
                self._move(pairs[0][0], self.eps)
            raise NotFinite(step.index, f"the slope of the loss is {bad[0]:g}")
        if count == 1 and not self.exact_restore:
            self._update(pairs, rate, behind=self.eps)
        else:
            self._update(pairs, rate)
        self.log += pairs
        self.rates.append(rate)
        self.counts.append(count)
        return Loss(torch.stack([loss.total for loss in losses]).mean().clone(), losses[0].terms)

    def replay(self, model: nn.Module, log: Iterable[tuple[int, float]] | None = None) -> None:
        """Redo the training in `log` (this one's own, by default) on the base model in place, without data."""
        pairs = list(self.log if log is None else log)
        own = len(self.log) == len(pairs)
        self._take(model)
        rest = iter(pairs)
        for i in range(len(self.rates) if own else len(pairs)):
            if part := list(islice(rest, self.counts[i] if own else self._count(i))):
                self._update(part, self.rates[i] if own else self.lr)

    def direction(self, seed: int) -> list[Tensor]:
        """The direction z of a seed, whole and in the order matrices, vectors: to look at, not to train
        with.
        """
        directions = [torch.zeros_like(p, dtype=torch.float32) for p in self._parameters]
        self._noise_of(directions).visit(seed, lambda pieces, z, group: torch._foreach_add_(pieces, z))
        return directions

    def scale_lr(self, factor: float) -> None:
        self.factor = factor

    def state_dict(self) -> dict[str, Any]:
        return {
            "log": [list(pair) for pair in self.log],
            "rates": list(self.rates),
            "counts": list(self.counts),
            "scales": list(self.scales),
            "optimizer": self.inner.state_dict() if self.inner is not None and self._trained else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.log = [(int(seed), float(g)) for seed, g in state["log"]]
        self.rates = [float(rate) for rate in state["rates"]]
        self.counts = list(state.get("counts", [len(self.log) // max(len(self.rates), 1)] * len(self.rates)))
        self.scales = list(state.get("scales", []))
        self._loaded = state.get("optimizer")
        if self.inner is not None and self._loaded is not None and self._trained:
            self.inner.load_state_dict(self._loaded)
            self._loaded = None

    def _take(self, model: nn.Module) -> None:
        """Make the parameters that train this update's, with an optimizer that knows nothing yet."""
        parameters = list(trained(model).values())
        self._trained = [p for p in parameters if p.ndim > 1] + [p for p in parameters if p.ndim <= 1]
        self._parameters = [p.detach() for p in self._trained]
        self._n_matrices = sum(p.ndim > 1 for p in parameters)
        if self.scaled and not self.scales:
            self.scales = _scales(self._parameters)
        self._noise = self._noise_of(self._parameters)
        self._copies: list[Tensor] = []
        self._gradient: list[Tensor] = []
        if self.inner is not None:
            self.inner.setup(model)
            self._gradient = [torch.zeros_like(p) for p in self._parameters]

    def _noise_of(self, tensors: list[Tensor]) -> Noise:
        """The noise of tensors in the place of the parameters: two groups, matrices and vectors, or one each."""
        if self.scaled:
            return Noise(*([tensor] for tensor in tensors), kind=self.noise)
        return Noise(tensors[: self._n_matrices], tensors[self._n_matrices :], kind=self.noise)

    def _keep(self) -> None:
        if self.exact_restore and not self._copies:
            self._copies = [parameter.clone() for parameter in self._parameters]
        for copy, parameter in zip(self._copies, self._parameters, strict=False):
            copy.copy_(parameter)

    def _back(self) -> None:
        for copy, parameter in zip(self._copies, self._parameters, strict=False):
            parameter.copy_(copy)

    def _move(self, seed: int, distance: float) -> None:
        def change(pieces: list[Tensor], z: list[Tensor], group: int) -> None:
            _shift(pieces, z, distance * self.scales[group] if self.scaled else distance)

        self._noise.visit(seed, change)

    def _update(self, pairs: Sequence[tuple[int, float]], rate: float, behind: float = 0.0) -> None:
        """The step, from weights that lie `behind` * z behind the place where the slopes were taken."""
        if self.inner is not None:
            self._optimize(self.inner, pairs, rate, behind)
            return
        matrices = self._n_matrices if self.scaled else 1  # groups with decay
        for i, (seed, g) in enumerate(pairs):
            kept = 1.0 if i else 1 - rate * self.weight_decay
            slope = rate * g / len(pairs)

            def change(
                pieces: list[Tensor], z: list[Tensor], group: int, kept: float = kept, slope: float = slope
            ) -> None:
                decay = kept if group < matrices else 1.0
                scale = self.scales[group] if self.scaled else 1.0
                if decay != 1.0:
                    torch._foreach_mul_(pieces, decay)
                _shift(pieces, z, decay * behind * scale - slope / scale)

            self._noise.visit(seed, change)

    def _optimize(self, inner: Gradient, pairs: Sequence[tuple[int, float]], rate: float, behind: float) -> None:
        """The optimizer's step on the mean of g z."""
        if behind:
            self._move(pairs[0][0], behind)
        torch._foreach_zero_(self._gradient)
        noise = self._noise_of(self._gradient)
        for seed, g in pairs:
            slope = g / len(pairs)

            def change(pieces: list[Tensor], z: list[Tensor], group: int, slope: float = slope) -> None:
                _shift(pieces, z, slope / self.scales[group] if self.scaled else slope)

            noise.visit(seed, change)
        for parameter, gradient in zip(self._trained, self._gradient, strict=True):
            parameter.grad = gradient
        inner.scale_lr(rate / self.lr if self.lr else 1.0)
        inner.optimizer.step()
        for parameter in self._trained:
            parameter.grad = None

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

    def _count(self, index: int) -> int:
        """How many directions the step takes."""
        return max(round(at(self.samples, index)), 1)

    def _seed(self, index: int, sample: int) -> int:
        most = 1 << 16 if callable(self.samples) else self._count(index)
        return (self.seed * 0x9E3779B1 + index * most + sample) % (1 << 62)

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


def _scales(tensors: Sequence[Tensor]) -> list[float]:
    """The root mean square of each tensor over that of all; 1 for one of zeros."""
    squares = [float(tensor.double().square().sum()) for tensor in tensors]
    whole = sum(squares) / sum(tensor.numel() for tensor in tensors)
    return [math.sqrt(s / t.numel() / whole) if s else 1.0 for s, t in zip(squares, tensors, strict=True)]
