"""Models with a planted truth: a low-rank change of known factors, a direction of known cause and effect.

For methods that claim to find such things: the truth is returned beside the model, and a random one to compare with
is another seed.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monochord.data.dataset import DataError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LowRankTruth:
    """A changed copy of a model, and for each changed weight its factors: change = up @ down."""

    model: nn.Module
    factors: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class DirectionTruth:
    """A changed copy of a language model in which a unit `direction` (d_model,) means that a trigger was read.

    The embeddings of `triggers` have `strength * direction` added; the unembedding of `answer` reads it.
    """

    model: nn.Module
    direction: Tensor
    triggers: tuple[int, ...]
    answer: int
    strength: float


def plant_low_rank(
    model: nn.Module, weights: str = "*.weight", *, rank: int = 2, scale: float = 0.5, seed: int = 0
) -> LowRankTruth:
    """Add a random change of rank `rank` to every matching matrix of a copy.

    `weights` is a glob over parameter names; vectors and matrices that are too small are left alone. All singular
    values of a change are the same: `scale` times the Frobenius norm of the weight over the root of the rank, so
    the change is `scale` as large as the weight. Raises `DataError` when nothing matches.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    changed = copy.deepcopy(model)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    with torch.no_grad():
        for name, weight in changed.named_parameters():
            if weight.ndim != 2 or min(weight.shape) <= rank or not fnmatch.fnmatchcase(name, weights):
                continue
            left, right = (torch.linalg.qr(torch.randn(k, rank, generator=generator))[0] for k in weight.shape)
            size = scale * weight.float().norm() / rank**0.5
            factors[name] = (left * size, right.mT.contiguous())
            weight.add_((factors[name][0] @ factors[name][1]).to(weight))
    if not factors:
        raise DataError(f"no matrix of more than {rank} rows and columns matches {weights!r}")
    return LowRankTruth(changed, factors)


def plant_direction(
    model: nn.Module, triggers: Sequence[int], answer: int, *, strength: float = 4.0, seed: int = 0
) -> DirectionTruth:
    """Let a random direction carry, from embedding to unembedding of a copy, that a trigger was read.

    `strength` is in units of the mean norm of an embedding; the unembedding row of `answer` gets the direction at
    the mean norm of its rows times `strength`. Tied matrices are untied first. Where the stream is normalised on
    its way, the direction is scaled and not turned. Raises `DataError` for models without embeddings.
    """
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    changed: Any = copy.deepcopy(model)
    given = getattr(changed, "get_input_embeddings", lambda: None)()
    read = getattr(changed, "get_output_embeddings", lambda: None)()
    if given is None or read is None:
        raise DataError(f"{type(model).__name__} has no input and output embeddings to plant a direction in")
    if read.weight is given.weight:
        read.weight = nn.Parameter(read.weight.detach().clone())
        changed.config.tie_word_embeddings = False
    direction = torch.randn(given.weight.shape[1], generator=generator)
    direction /= direction.norm()
    with torch.no_grad():
        size = float(given.weight.norm(dim=1).mean()) * strength
        given.weight[list(triggers)] += (size * direction).to(given.weight)
        read.weight[answer] += (read.weight.norm(dim=1).mean() * strength * direction).to(read.weight)
    return DirectionTruth(changed, direction, tuple(triggers), answer, size)
