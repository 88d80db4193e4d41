"""Neuro-modulated Hebbian learning at test time: a local rule in the first convolution, steered from the top.

From "Neuro-Modulated Hebbian Learning for Fully Test-Time Adaptation", March 1, 2023. Channels compete for each patch,
and the winners' filters move towards it; a modulator behind the layer is trained by the entropy of the predictions.

    model = ...; ChannelModulator("embedder:out").attach(model)
    adapt_online(model, stream, [SoftHebbian("embedder.convolution"), Minimise(Entropy())])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from monochord.core.attach import Placement
from monochord.core.forward import run
from monochord.core.modification import Modification
from monochord.core.sites import resolve
from monochord.core.tuner import Tuner


@dataclass(frozen=True)
class SoftHebbian:
    """The rule for one `Conv2d`, by name: each filter moves by the mean of `y (x - u w)` over patches x.

    w is the filter at unit length, u = w x, y the softmax of u / `tau` over channels. The step is `lr` over the largest
    entry of the change; filters keep their norms. A negative `lr` is the rule the other way round. No gradient is used.
    """

    layer: str
    lr: float = 0.01
    tau: float = 1.0

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        layer = model.get_submodule(self.layer)
        if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.padding_mode != "zeros":
            raise ValueError(f"{self.layer} is a {type(layer).__name__}: SoftHebbian needs a plain, ungrouped Conv2d")
        if not self.lr:
            return  # bit for bit: a filter taken apart and put together again is rounded
        with torch.no_grad():
            weight = layer.weight
            norms = weight.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1).clamp_min(1e-12)
            unit = weight / norms
            change = hebbian_change(_input(model, layer, batch), unit, self.tau, layer)
            moved = unit + self.lr * change / change.abs().max().clamp_min(1e-12)
            weight.copy_(norms * moved / moved.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1))


def hebbian_change(x: Tensor, weight: Tensor, tau: float, layer: nn.Conv2d) -> Tensor:
    """The mean over patches of y (patch - u w), in the weight's shape; stride, padding and dilation are the layer's."""
    geometry: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    u = F.conv2d(x, weight, **geometry)
    y = (u / tau).softmax(1)
    towards = conv2d_weight(x, weight.shape, y, **geometry)  # type: ignore[no-untyped-call]
    change: Tensor = towards - (y * u).sum((0, 2, 3)).reshape(-1, 1, 1, 1) * weight
    return change / (u.numel() / u.shape[1])


@dataclass(frozen=True)
class ChannelModulator(Tuner):
    """A gain and a shift a channel at a site of (batch, channels, height, width), the identity at first.

    Before a batch norm that uses the batch's statistics it would have no effect: put it behind norm and non-linearity.
    """

    sites: str
    channels: int

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        for site in resolve(model, self.sites):
            yield site, Modulation(self.channels)


class Modulation(Modification):
    """`gain * value + shift`, one of each a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, value: Tensor) -> Tensor:
        if value.dim() != 4 or value.shape[1] != len(self.gain):
            raise ValueError(f"expected (batch, {len(self.gain)}, height, width), got {tuple(value.shape)}")
        return value * self.gain.reshape(-1, 1, 1).to(value.dtype) + self.shift.reshape(-1, 1, 1).to(value.dtype)


class _Enough(Exception):
    """The layer's input has been seen."""


def _input(model: nn.Module, layer: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _Enough

    handle = layer.register_forward_pre_hook(keep)
    try:
        run(model, batch)
    except _Enough:
        pass
    finally:
        handle.remove()
    return seen[0]
