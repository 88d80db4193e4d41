"""Mask tuning: no weight changes its value, what trains is which of them are switched off.

From "Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models", July 27, 2023. Each
weight has a score, those under a threshold are off, and gradients go straight through the threshold. `GradientDrop` is
the paper's regularised form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor, nn

from monochord.core.entries import Entry, Sparse
from monochord.core.modification import WeightModification
from monochord.core.objective import Batch, Loss, Objective, Step
from monochord.core.schedules import Schedule, at
from monochord.core.sites import Site
from monochord.core.sparse import weights_at
from monochord.core.tuner import Tuned, Tuner
from monochord.core.update import Gradient


@dataclass(frozen=True)
class MaskTuning(Tuner):
    """Multiply every matching weight by `score > threshold`; scores start at `init`, all on.

    What is saved is one bit a weight. Raises `ValueError` unless `init` is above `threshold`.
    """

    default_lr: ClassVar[float] = 1e-3

    sites: str | tuple[str, ...] = "blocks.*.attn.*.weight"
    init: float = 1e-2
    threshold: float = 5e-3

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Mask]]:
        if self.init <= self.threshold:
            raise ValueError(f"init={self.init} must be above threshold={self.threshold}: all weights start on")
        for site in weights_at(model, self.sites).values():
            yield site, Mask(site.shape or (), self.init, self.threshold)


class Mask(WeightModification):
    """The weight times `scores > threshold`, scores of its shape in float32."""

    def __init__(self, shape: tuple[int, ...], init: float = 1e-2, threshold: float = 5e-3) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full(shape, init))
        self.init, self.threshold = init, threshold

    def forward(self, weight: Tensor) -> Tensor:
        on: Tensor = _StraightThrough.apply(self.scores, self.threshold)  # type: ignore[no-untyped-call]
        return weight * on.to(weight.dtype)

    def entry(self, weight: Tensor) -> Entry:
        off = (self.scores.detach() <= self.threshold).reshape(-1).nonzero().flatten()
        return Sparse(off, -weight.reshape(-1)[off], tuple(weight.shape))

    @property
    def sparsity(self) -> float:
        """The share of the weights that is off."""
        return float((self.scores <= self.threshold).float().mean())

    def saved(self) -> dict[str, Tensor]:
        on = (self.scores.detach() > self.threshold).cpu().numpy().reshape(-1)
        return {"bits": torch.from_numpy(np.packbits(on))}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Scores just as far from the threshold as they began, on either side: the bits don't say more."""
        bits = np.unpackbits(tensors["bits"].cpu().numpy(), count=math.prod(self.scores.shape))
        on = torch.from_numpy(bits).to(self.scores.device).reshape(self.scores.shape)
        self.scores.copy_(torch.where(on > 0, self.init, 2 * self.threshold - self.init))


class MaskNorm(Objective):
    """`weight` times the sum of the scores' L2 norms: it draws scores to the threshold and so sets how many are off."""

    def __init__(self, tuned: Tuned, weight: Schedule = 1e-4) -> None:
        self.masks = [change for _, change in tuned.placements if isinstance(change, Mask)]
        self.weight = weight
        if not self.masks:
            raise ValueError("MaskNorm needs an attached MaskTuning")

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        total = torch.stack([mask.scores.norm() for mask in self.masks]).sum()
        return Loss(at(self.weight, step.index) * total, {self.name: total.item()})


class GradientDrop(Gradient):
    """A gradient step that drops, entry by entry, gradients at odds with those of a `reference` objective.

    With g of the objective and r of the reference (such as `KLAnchor` to the base), an entry agrees by
    P = (1 + sign(g) (g + r) / (|g| + |r|)) / 2 and is kept where P exceeds a uniform number; where it isn't, the share
    `1 - strength` of it remains. The reference only decides, it is never added.
    """

    def __init__(self, reference: Objective, strength: float = 1.0, seed: int = 0, **options: Any) -> None:
        super().__init__(before_step=self._drop, **options)
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength} must be in [0, 1]")
        self.reference, self.strength, self.seed = reference, strength, seed
        self.dropped = 0.0
        self._gradients: dict[int, Tensor] = {}
        self._generator = Generator()

    def step(self, model: nn.Module, batch: Any, objective: Objective, step: Step | None = None) -> Loss:
        step = step if step is not None else Step()
        self._generator.manual_seed((self.seed * 1_000_003 + step.index) % (1 << 63))
        batches = [batch] if isinstance(batch, Mapping) else list(batch)
        trained = list(self._parameters.values())
        found = [torch.zeros_like(p) for p in trained]
        for i, part in enumerate(batches):
            total = self.reference(model, part, Step(step.index, seed=step.part(i).seed)).total
            for held, gradient in zip(found, torch.autograd.grad(total, trained, allow_unused=True), strict=True):
                if gradient is not None:
                    held += gradient
        self._gradients = {id(p): gradient for p, gradient in zip(trained, found, strict=True)}
        return super().step(model, batch, objective, step)

    def _drop(self, model: nn.Module) -> None:
        lost = total = 0
        for parameter in self._parameters.values():
            if parameter.grad is None:
                continue
            agrees = agreement(parameter.grad, self._gradients[id(parameter)])
            uniform = torch.rand(agrees.shape, generator=self._generator).to(agrees)
            kept = agrees > uniform
            parameter.grad.mul_(1 - self.strength * (~kept).to(parameter.grad))
            lost, total = lost + int((~kept).sum()), total + kept.numel()
        self._gradients = {}
        self.dropped = lost / max(total, 1)


def agreement(gradient: Tensor, reference: Tensor) -> Tensor:
    """How far two gradients agree, entry by entry: 1 where they have one sign, towards 0 the larger a reference of
    the other sign is."""
    ratio = (gradient + reference) / (gradient.abs() + reference.abs() + 1e-8)
    return 0.5 * (1 + gradient.sign() * ratio)


class _StraightThrough(torch.autograd.Function):
    """`scores > threshold` as 0 and 1, with the gradient of the mask for that of the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: float) -> Tensor:
        return (scores > threshold).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None
