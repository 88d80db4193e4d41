"""How curved a loss is at a model's weights: the Hessian's trace, its largest eigenvalue, and their ratio.

The ratio is the effective rank in "Fine-Tuning Language Models with Just Forward Passes", May 26, 2023: the number of
steps that zeroth-order tuning takes grows with it, not with the number of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from monochord.core.objective import Batch, Objective, evaluating
from monochord.core.update import trained


@dataclass(frozen=True)
class Curvature:
    """`trace` with its standard `error` over probes, the `largest` eigenvalue in size, and the `count` of weights."""

    trace: float
    error: float
    largest: float
    count: int

    @property
    def effective_rank(self) -> float:
        """|trace| / |largest|: at most the number of weights."""
        return abs(self.trace) / max(abs(self.largest), 1e-30)

    def slowdown(self, samples: int = 1) -> float:
        """The factor by which the curvature term of a zeroth-order step exceeds a gradient step's, with d weights and
        effective rank r: (d r + d - 2) / (samples (d + 2)) + 1."""
        d, r = self.count, self.effective_rank
        return (d * r + d - 2) / (samples * (d + 2)) + 1


def curvature(
    model: nn.Module, objective: Objective, batch: Batch, *, probes: int = 16, iterations: int = 20, seed: int = 0
) -> Curvature:
    """Of the loss of `batch` over the parameters that train: Hutchinson's trace with signs, and power iteration.

    The model is evaluated without dropout and left as it is. Each probe and iteration takes a backward pass of a
    gradient. Raises `ValueError` when the objective has no gradient.
    """
    if not objective.differentiable:
        raise ValueError(f"{objective.name} has no gradient and so no curvature")
    parameters = list(trained(model).values())
    generator = Generator().manual_seed(seed)
    with evaluating(model), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        total = objective(model, batch).total
        gradients = torch.autograd.grad(total, parameters, create_graph=True, allow_unused=True)
        product = _product(gradients, parameters)
        found = []
        for _ in range(probes):
            z = [torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1 for p in parameters]
            found.append(float(_dot(z, product(z))))
        v = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
        largest = 0.0
        for _ in range(iterations):
            length = _dot(v, v).sqrt().clamp_min(1e-30)
            v = [part / length for part in v]
            image = product(v)
            largest, v = float(_dot(v, image)), image
    traces = torch.tensor(found, dtype=torch.float64)
    error = float(traces.std() / math.sqrt(probes)) if probes > 1 else math.inf
    return Curvature(float(traces.mean()), error, largest, sum(p.numel() for p in parameters))


def _product(
    gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Hessian times a vector, by the graph of the gradient."""

    def product(z: Sequence[Tensor]) -> list[Tensor]:
        pairs = [(g, part) for g, part in zip(gradients, z, strict=True) if g is not None and g.requires_grad]
        if not pairs:  # a linear loss
            return [torch.zeros_like(p) for p in parameters]
        outputs, along = (list(side) for side in zip(*pairs, strict=True))
        return list(torch.autograd.grad(outputs, parameters, along, retain_graph=True, materialize_grads=True))

    return product


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)]).sum()
