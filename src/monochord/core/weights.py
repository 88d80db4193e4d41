"""Put a change on a weight: beside the layer where its effect can be added to the output, else in its place.

The bypass adds `bypass(x)` to the output of the layer as it runs and never builds the changed weight; low-rank
changes that read the same input share their first product. Where the weight is not used by a layer of its own
(fused experts, torch's multi-head attention, routers) or the change has no bypass, it becomes a torch
parametrization. Both leave the model's own tensors alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from monochord.core.layers import Layer, bias_of, layer_of, rows_of
from monochord.core.merge import owned
from monochord.core.modification import LowRank, Unfrozen, WeightModification
from monochord.core.ports import Handle
from monochord.core.sites import Site, SiteError

Strength = Callable[[], "float | Tensor | None"]  # None: off; 1.0: as it is; (batch,): one an example


Fired = Callable[[], None]  # told of each use


def install_weights(
    model: nn.Module, placements: Sequence[tuple[Site, WeightModification, Fired]], strength: Strength
) -> list[Handle]:
    """Put every weight modification on its weight; one `strength` scales them all."""
    handles: list[Handle] = []
    shared: dict[str, _SharedInput] = {}
    for site, modification, fired in placements:
        module = model.get_submodule(site.module)
        layer = layer_of(module, site.parameter)
        if isinstance(modification, Unfrozen):
            handles.append(_InPlace(module, site, modification))
            fired()
        elif layer is None or not modification.bypasses:
            handles.append(_Parametrized(module, site, modification, strength, fired))
        else:
            group = None
            if type(modification) is LowRank and not modification.dropout and type(module) is nn.Linear:
                key = _input_of(site)
                group = shared.setdefault(key, _SharedInput()) if key else None
                if group is not None:
                    group.members.append(modification)
            hook = _beside(site, modification, layer, strength, fired, group)
            handles.append(module.register_forward_hook(hook, prepend=True))  # before whoever looks at :out
    return handles


def _input_of(site: Site) -> str | None:
    """A name for the tensor that a projection reads, where others read it too."""
    owner, _, role = site.name.removesuffix(".weight").rpartition(".")
    if role in ("k", "v") or (role == "q" and not owner.endswith(".cross")):
        return f"{owner}.qkv"
    return f"{owner}.gate_up" if role in ("gate", "up") else None


class _SharedInput:
    """The first products of low-rank changes whose layers read one tensor, done as one product."""

    def __init__(self) -> None:
        self.members: list[LowRank] = []
        self._input: Tensor | None = None
        self._waiting: list[Tensor | None] = []

    def hidden(self, member: LowRank, x: Tensor) -> Tensor:
        """`x @ down.T` of one member, (..., rank)."""
        place = next(i for i, m in enumerate(self.members) if m is member)
        if self._input is not x or self._waiting[place] is None:
            joint = F.linear(x, torch.cat([m.down for m in self.members]).to(x.dtype))
            self._input, self._waiting = x, list(joint.split([m.down.shape[0] for m in self.members], -1))
        hidden, self._waiting[place] = self._waiting[place], None
        if all(h is None for h in self._waiting):
            self._input = None
        assert hidden is not None
        return hidden


def _beside(
    site: Site,
    modification: WeightModification,
    layer: Layer,
    strength: Strength,
    fired: Fired,
    group: _SharedInput | None,
) -> Callable[..., Tensor | None]:
    rows: Any = None
    axis = layer.axis

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        nonlocal rows
        weight = strength()
        if weight is None:
            return None
        fired()
        x = args[0]
        if group is not None and len(group.members) > 1:
            up = modification.up.to(x.dtype)
            added = F.linear(group.hidden(modification, x) * modification.scale, up)  # type: ignore[arg-type, operator]
        else:
            added = modification.bypass(x, layer)  # type: ignore[assignment]
        if site.rows is not None and rows is None:
            rows = rows_of(output, site.rows)
        gain = modification.gain()
        if gain is None and added is not None and rows is None and weight == 1.0 and output.dtype == added.dtype:
            return output.add_(added)
        return _combine(output, added, gain, weight, rows, axis, bias_of(module, output, axis))

    return hook


def _combine(
    output: Tensor,
    added: Tensor | None,
    gain: Tensor | None,
    weight: Any,
    rows: Any,
    axis: int,
    bias: Tensor | None,
) -> Tensor:
    """The output with the addition, the row gain, the strength and the slice of rows all minded."""
    part = output if rows is None else output[..., rows]
    new = part if added is None else part + added.to(part.dtype)
    if gain is not None:
        gain = gain.to(part.dtype).reshape(-1, *(1,) * (-1 - axis))
        if bias is not None:
            bias = bias if rows is None else bias[rows]
            new = torch.addcmul(bias, new - bias, gain)
        else:
            new = new * gain
    if not (isinstance(weight, float) and weight == 1.0):
        if isinstance(weight, Tensor):
            weight = weight.to(part).reshape(-1, *(1,) * (part.dim() - 1))
        new = part + weight * (new - part)
    if rows is None:
        return new
    whole = output.clone()
    whole[..., rows] = new
    return whole


class _Parametrized(nn.Module):
    """A modification as a torch parametrization of one parameter, removable in any order."""

    def __init__(
        self,
        module: nn.Module,
        site: Site,
        modification: WeightModification,
        strength: Strength,
        fired: Fired,
    ) -> None:
        super().__init__()
        self._plain = (module, site, modification, strength, fired)  # in a tuple: no submodules of this one
        self._order = list(module._parameters)
        parametrize.register_parametrization(module, site.parameter, self, unsafe=True)

    def forward(self, original: Tensor) -> Tensor:
        _, site, modification, strength, fired = self._plain
        weight = strength()
        if weight is None:
            return original
        fired()
        if isinstance(weight, Tensor):
            raise ValueError(f"{site} has no bypass, so it can't be weighed example by example: give one number")
        view = original.t() if site.transposed else original
        part = view if site.rows is None else view[rows_of(view, site.rows)]
        new = modification(part)
        new = new if weight == 1.0 else part + weight * (new - part)
        if site.rows is not None:
            new = view.index_copy(0, torch.tensor(site.rows, device=view.device), new)
        return new.t() if site.transposed else new

    def remove(self) -> None:
        """Take this parametrization off; the last one also restores the parameter's place in the module's order."""
        module, site = self._plain[0], self._plain[1]
        plist: Any = module.parametrizations[site.parameter]  # type: ignore[index]
        others = [p for p in plist if p is not self]
        if others:
            del plist[next(i for i, p in enumerate(plist) if p is self)]
            return
        original = plist.original
        trains = original.requires_grad
        parametrize.remove_parametrizations(module, site.parameter, leave_parametrized=False)
        module._parameters[site.parameter] = original  # the same object, so optimizers keep what they hold
        original.requires_grad_(trains)
        parameters = dict(module._parameters)
        order = [n for n in self._order if n in parameters] + [n for n in parameters if n not in self._order]
        module._parameters.clear()
        module._parameters.update({n: parameters[n] for n in order})


class _InPlace:
    """The handle of a weight that trains in place: removing it puts the base value and the flag back."""

    def __init__(self, module: nn.Module, site: Site, modification: Unfrozen) -> None:
        if site.rows is not None:
            raise SiteError(f"{site} is a slice of {site.path}: a slice can't train in place, name the whole weight")
        parameter = owned(module, site.parameter)
        self.modification, self.trains = modification, parameter.requires_grad
        modification.hold(parameter)

    def remove(self) -> None:
        parameter = self.modification.parameter
        parameter.data = self.modification.base
        parameter.requires_grad_(self.trains)
