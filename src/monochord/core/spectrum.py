"""What the singular values and spaces of a change say: its effective rank, and what it shares with another
matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monochord.core.entries import Entry


def effective_rank(values: Tensor, kind: str = "entropy") -> float:
    """The effective rank of singular values (..., k): `"entropy"` or `"stable"`. Leading dimensions are
    averaged.
    """
    values = values.double()
    if kind == "entropy":
        share = values / values.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        ranks = torch.special.entr(share).sum(-1).exp() * (values.sum(-1) > 0)
    elif kind == "stable":
        ranks = values.square().sum(-1) / values.amax(-1).square().clamp_min(torch.finfo(torch.float64).tiny)
    else:
        raise ValueError(f"kind must be 'entropy' or 'stable', got {kind!r}")
    return ranks.mean().item()


def space_overlap(one: Entry, other: Entry, k: int) -> float:
    """The mean squared cosine between the top-`k` left singular spaces of two entries: 0 to 1."""
    mine, yours = _top(one, k), _top(other, k)
    size = min(mine.shape[-1], yours.shape[-1])
    return ((mine.mT @ yours).double().square().sum((-2, -1)) / size).mean().item()


def energy_share(change: Entry, base: Entry, k: int) -> float:
    """The share of the squared norm of `change` in the span of the base's top-`k` left singular vectors: 0
    to 1.
    """
    top = _top(base, k)
    left, values, _ = change.svd()
    if top.ndim != left.ndim:
        left, values = _flat(change)
    inside = ((top.mT @ left) * values.unsqueeze(-2)).double().square().sum()
    whole = values.double().square().sum()
    return (inside / whole).item() if whole else 0.0


def _top(entry: Entry, k: int) -> Tensor:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return entry.svd()[0][..., :k]


def _flat(entry: Entry) -> tuple[Tensor, Tensor]:
    from monochord.core.entries import Dense

    left, values, _ = Dense(entry.dense()).svd()
    return left, values
