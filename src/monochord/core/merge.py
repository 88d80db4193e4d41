"""Write attached modifications into a model's own weights, and restore them bit for bit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from monochord.core.blocks import owned
from monochord.core.changes import Unfrozen
from monochord.core.forward import evaluating
from monochord.core.layers import rows_of
from monochord.core.modification import Modification, WeightModification
from monochord.core.sites import Site

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original$")
Saved = dict[str, "Tensor | nn.Parameter"]


def unmergeable(placements: Sequence[tuple[Site, Modification]], model: nn.Module) -> str | None:
    """Why these modifications can't be merged, in one line; None if they can."""
    for site, change in placements:
        if isinstance(change, WeightModification):
            if not owned(model.get_submodule(site.module), site.parameter).is_floating_point():
                return f"{site} is stored quantised: dequantise the model before merging"
        elif change.fold(site, model) is None:
            kind = type(change).__name__
            return f"{kind} at {site} has no equivalent in the model's weights: keep it attached, or leave it out"
    return None


@torch.no_grad()
def fold(
    placements: Sequence[tuple[Site, Modification]],
    model: nn.Module,
    strength: float | Tensor | None,
    tied: str | None,
) -> Saved:
    """Change the weights in place; returns what they were. Raises `ValueError` for a tied weight."""
    if isinstance(strength, Tensor):
        raise ValueError("merge needs one strength for all examples: weigh(1.0) first")
    weight = 0.0 if strength is None else strength
    saved: Saved = {}
    shared = _shared(model)
    for site, change in placements:
        if isinstance(change, WeightModification) and not isinstance(change, Unfrozen):
            parameter = _writable(model, site.path, saved, shared, tied)
            view = parameter.data.t() if site.transposed else parameter.data
            part = view if site.rows is None else view[rows_of(view, site.rows)]
            with evaluating(change):
                new = change(part)
            new = torch.lerp(part, new, weight) if weight != 1.0 else new
            view[slice(None) if site.rows is None else rows_of(view, site.rows)] = new
        elif not isinstance(change, WeightModification):
            for path, value in (change.fold(site, model) or {}).items():
                parameter = _writable(model, path, saved, shared, tied)
                parameter.copy_(value if weight == 1.0 else torch.lerp(parameter, value, weight))
    return saved


@torch.no_grad()
def restore(model: nn.Module, saved: Saved) -> None:
    """Put back what `fold` changed."""
    for path, value in saved.items():
        module, name = _owner(model, path)
        if isinstance(value, nn.Parameter):
            module._parameters[name] = value
        else:
            owned(module, name).copy_(value)


def _writable(
    model: nn.Module, path: str, saved: Saved, shared: dict[int, list[str]], tied: str | None
) -> nn.Parameter:
    module, name = _owner(model, path)
    parameter = owned(module, name)
    if path in saved:
        return parameter
    others = [p for p in shared.get(id(parameter), []) if p != path]
    if others and tied not in ("both", "untie"):
        raise ValueError(f"{path} is tied to {others[0]}: pass tied='both' to change both or tied='untie' to part them")
    if others and tied == "untie":
        saved[path] = parameter
        module._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        return module._parameters[name]  # type: ignore[return-value]
    saved[path] = parameter.detach().clone()
    return parameter


def _owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    owner, _, name = path.rpartition(".")
    return model.get_submodule(owner), name


def _shared(model: nn.Module) -> dict[int, list[str]]:
    """Names of each parameter by identity; a parametrized weight goes by its own name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(_PARAMETRIZED.sub(r"\1", name))
    return names
