"""Keep what a sparse tuner learns low-rank: the nuclear norm of a weight's tuned entries.

From "SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation", September 10, 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monochord.core.changes import SparseChange
from monochord.core.objective import Batch, Loss, Objective, Step
from monochord.core.schedules import Schedule, at
from monochord.core.sites import Site, base_weight
from monochord.core.tuner import Tuned


class NuclearNorm(Objective):
    """`weight` times the nuclear norm of the matrix that has the tuned entries' values and zeros elsewhere.

    Each step looks at `per_step` matrices, drawn by the step's number, of those with more than `least` rows and
    columns; a convolution's kernel counts as (outputs, rest). Raises `ValueError` when none is that large.
    """

    def __init__(self, tuned: Tuned, weight: Schedule = 5e-4, per_step: int = 1, least: int = 64) -> None:
        self.tuned, self.weight, self.per_step = tuned, weight, per_step
        self.matrices = [(site, change) for site, change in tuned.placements if _large(change, least)]
        if not self.matrices:
            raise ValueError(f"no sparsely tuned matrix has more than {least} rows and columns: lower least")

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        generator = torch.Generator().manual_seed(step.index)
        order = torch.randperm(len(self.matrices), generator=generator)[: self.per_step].tolist()
        norms = [torch.linalg.matrix_norm(self.matrix(*self.matrices[i]), ord="nuc") for i in order]
        total = torch.stack(norms).sum()
        return Loss(at(self.weight, step.index) * total, {self.name: total.item()})

    def matrix(self, site: Site, change: SparseChange) -> Tensor:
        """The tuned entries' values (base plus change) in a matrix of zeros, (outputs, rest)."""
        base = base_weight(self.tuned.model, site).reshape(-1)
        values = base[change.indices].float() + change.values
        return values.new_zeros(base.numel()).index_add(0, change.indices, values).reshape(change.shape[0], -1)


def _large(change: nn.Module, least: int) -> bool:
    if not isinstance(change, SparseChange) or len(change.shape) < 2:
        return False
    rows = change.shape[0]
    return min(rows, torch.Size(change.shape).numel() // rows) > least
