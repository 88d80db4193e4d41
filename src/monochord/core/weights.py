"""Put a change on a weight: beside the layer where its effect can be added to the output, else in its place.

The bypass adds `bypass(x)` to the output of the layer as it runs and never builds the changed weight. Where the
weight is not used by a layer of its own (fused experts, torch's multi-head attention, routers) or the change has
no bypass, it becomes a torch parametrization. Both leave the model's own tensors alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from monochord.core.blocks import owned
from monochord.core.changes import LowRank, Unfrozen
from monochord.core.fused import add_low_rank
from monochord.core.layers import Layer, bias_of, layer_of, rows_of
from monochord.core.modification import WeightModification
from monochord.core.ports import Handle
from monochord.core.sites import Site, SiteError
from monochord.core.switch import Switch

_HELD = "_monochord_in_place"  # two tuners can't both say what a weight's value is


def install_weights(
    model: nn.Module, placements: Sequence[tuple[int, Site, WeightModification]], switch: Switch
) -> Iterator[Handle]:
    """Put every weight modification, given with its number, on its weight, one at each step."""
    for number, site, change in placements:
        module = model.get_submodule(site.module)
        layer = layer_of(module, site.parameter, model.get_submodule(site.module.rpartition(".")[0]))
        if isinstance(change, Unfrozen):
            switch.reached.add(number)
            yield _InPlace(module, site, change)
        elif layer is None or not change.bypasses or (change.gain() is not None and not layer.rows_are_outputs):
            yield _Parametrized(module, site, change, switch, number)
        else:
            hook = _Beside(site, change, layer, switch, number)
            yield module.register_forward_hook(hook, prepend=True)  # before whoever looks at :out


class _Beside:
    """The hook that adds a change's effect to the output of the layer whose weight it changes."""

    def __init__(self, site: Site, change: WeightModification, layer: Layer, switch: Switch, number: int) -> None:
        self.site, self.change, self.layer, self.switch, self.number = site, change, layer, switch, number
        self.axis = layer.axis
        self.rows: slice | Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        switch, change = self.switch, self.change
        if switch.strength is None:
            return None
        switch.reached.add(self.number)
        x, gain = args[0], change.gain()
        whole = self.site.rows is None and isinstance(switch.strength, float) and switch.strength == 1.0
        if whole and type(change) is LowRank and type(module) is nn.Linear:
            return add_low_rank(output, change.dropped(x), change.down, change.up, change.scale)
        added = change.bypass(x, self.layer)
        if whole and gain is None and added is not None and added.dtype == output.dtype:
            return output.add_(added)
        return self._combine(module, output, added, gain)

    def _combine(self, module: nn.Module, output: Tensor, added: Tensor | None, gain: Tensor | None) -> Tensor:
        """The output with addition, row gain (not on the bias), strength and slice of rows all minded."""
        if self.site.rows is not None and self.rows is None:
            self.rows = rows_of(output, self.site.rows)
        part = output if self.rows is None else output[..., self.rows]
        new = part if added is None else part + added.to(part.dtype)
        if gain is not None:
            gain = gain.to(part.dtype).reshape(-1, *(1,) * (-1 - self.axis))
            bias = bias_of(module, output, self.axis)
            if bias is not None and self.rows is not None:
                bias = bias[self.rows]
            new = new * gain if bias is None else torch.addcmul(bias, new - bias, gain)
        new = self.switch.blend(part, new)
        if self.rows is None:
            return new
        whole = output.clone()
        whole[..., self.rows] = new
        return whole


class _Parametrized(nn.Module):
    """A modification as a torch parametrization of one parameter, removable in any order."""

    def __init__(self, module: nn.Module, site: Site, change: WeightModification, switch: Switch, number: int) -> None:
        super().__init__()
        self._plain = (module, site, change, switch, number)  # in a tuple: no submodules of this one
        order = list(module._parameters)
        parametrize.register_parametrization(module, site.parameter, self, unsafe=True)
        plists: Any = module.parametrizations
        plists.order = getattr(plists, "order", order)

    def forward(self, original: Tensor) -> Tensor:
        _, site, change, switch, number = self._plain
        if switch.strength is None:
            return original
        switch.reached.add(number)
        if isinstance(switch.strength, Tensor):
            raise ValueError(f"{site} has no bypass, so it can't be weighed example by example: give one number")
        view = original.t() if site.transposed else original
        part = view if site.rows is None else view[rows_of(view, site.rows)]
        new = switch.blend(part, change(part))
        if site.rows is not None:
            new = view.index_copy(0, torch.tensor(site.rows, device=view.device), new)
        return new.t() if site.transposed else new

    def remove(self) -> None:
        """Take this parametrization off; the last one also restores the order of the module's parameters."""
        module, site = self._plain[0], self._plain[1]
        plists: Any = module.parametrizations
        plist, order = plists[site.parameter], plists.order
        if len(plist) > 1:
            del plist[next(i for i, p in enumerate(plist) if p is self)]
            return
        original = plist.original
        trains = original.requires_grad
        parametrize.remove_parametrizations(module, site.parameter, leave_parametrized=False)
        original.requires_grad_(trains)
        parameters = {**module._parameters, site.parameter: original}  # the same object: optimizers hold it
        module._parameters.clear()
        module._parameters.update({n: parameters[n] for n in sorted(parameters, key=order.index)})


class _InPlace:
    """The handle of a weight that trains in place: removing it puts the base value and the flag back."""

    def __init__(self, module: nn.Module, site: Site, modification: Unfrozen) -> None:
        if site.rows is not None:
            raise SiteError(f"{site} is a slice of {site.path}: a slice can't train in place, name the whole weight")
        parameter = owned(module, site.parameter)
        if hasattr(parameter, _HELD):
            raise SiteError(f"{site} is tuned in place already: detach that tuner first, or merge and detach it")
        setattr(parameter, _HELD, True)
        self.modification, self.trains = modification, parameter.requires_grad
        modification.hold(parameter)

    def remove(self) -> None:
        parameter = self.modification.parameter
        parameter.data = self.modification.base
        parameter.requires_grad_(self.trains)
        delattr(parameter, _HELD)
