"""Elastic weight consolidation: weights that mattered for old tasks are held by springs.

From "Overcoming catastrophic forgetting in neural networks", December 2, 2016. The springs of all old tasks are kept
as one: sums of their stiffness and of stiffness times place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monochord.continual.springs import Springs
from monochord.core.forward import evaluating, logits_of, run
from monochord.core.history import Callback
from monochord.core.objective import Objective
from monochord.core.update import Gradient


class EWC:
    """Adds `strength / 2 * sum of fisher * (weight - old weight)^2` over old tasks.

    The Fisher information is the mean squared gradient of the log-probability of a label drawn from the model's own
    prediction, over `samples` examples of each finished task.
    """

    def __init__(self, strength: float, samples: int = 200, seed: int = 0) -> None:
        self.strength, self.samples = strength, samples
        self.springs: Springs | None = None
        self._generator = torch.Generator().manual_seed(seed)

    def wrap(self, objective: Objective, model: nn.Module) -> Objective:
        return objective if self.springs is None else objective + self.strength * self.springs

    def update(self, model: nn.Module, update: Gradient) -> Sequence[Callback]:
        return ()

    def after(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]], objective: Objective) -> None:
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        fisher = {name: torch.zeros_like(p) for name, p in weights.items()}
        seen = 0
        with evaluating(model):
            for batch in batches:
                for row in range(len(batch["labels"])):
                    if seen == self.samples:
                        break
                    logits = logits_of(run(model, {n: v[row : row + 1] for n, v in batch.items()}))
                    drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=self._generator)[:, 0]
                    slopes = torch.autograd.grad(F.cross_entropy(logits, drawn), list(weights.values()))
                    for name, slope in zip(weights, slopes, strict=True):
                        fisher[name] += slope.square()
                    seen += 1
        fisher = {name: value / max(seen, 1) for name, value in fisher.items()}
        self.springs = (self.springs or Springs()).more(fisher, {n: p.detach().clone() for n, p in weights.items()})
