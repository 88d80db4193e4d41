"""The weights of a model, a state dict or a checkpoint as one mapping, and the check that two of them fit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Union

from torch import Tensor, nn

from monochord.core.checkpoint import Checkpoint
from monochord.core.storage import base_name, base_parameters

Weights = Union[nn.Module, Mapping[str, Any], str, "os.PathLike[str]"]


class DeltaError(ValueError):
    """A delta that does not fit: the message names the weight and the nearest valid choice."""


def weights_of(source: Weights) -> Mapping[str, Any]:
    """Native names to tensors, or to unread ones for a path."""
    if isinstance(source, (str, os.PathLike)):
        return Checkpoint(source)
    return source if isinstance(source, Checkpoint) else base_parameters(source)


def targets_of(model: nn.Module, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's own parameters for the names of `wanted`, under any parametrization."""
    named = ((base_name(name), value) for name, value in model.named_parameters(remove_duplicate=False))
    parameters = {name: value for name, value in named if name is not None}
    check_fit(parameters, wanted, "the model")
    owners: dict[int, str] = {}
    for name in wanted:
        owner = owners.setdefault(id(parameters[name]), name)
        if owner != name:
            raise DeltaError(f"{name} and {owner} are one tied weight: drop one of the two changes")
    return {name: parameters[name] for name in wanted}


def check_fit(weights: Mapping[str, Any], wanted: Mapping[str, Any], owner: str, *, strict: bool = True) -> None:
    """Raise `DeltaError` unless `weights` has every name of `wanted` (if `strict`) and the shapes agree."""
    for name, value in wanted.items():
        if name not in weights:
            if strict:
                raise DeltaError(f"{owner} has no weight {name!r}{nearest(name, weights)}")
        elif tuple(weights[name].shape) != tuple(value.shape):
            mine, other = tuple(weights[name].shape), tuple(value.shape)
            raise DeltaError(f"{name!r} is {mine} in {owner} and {other} in the other")


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message: the nearest valid name."""
    close = get_close_matches(name, list(names), 1, 0.0)
    return f"; the nearest is {close[0]!r}" if close else ""
