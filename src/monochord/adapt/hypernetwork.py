"""Hypernetworks that do not scale with their input: weights as a function of a knob, learned all at once.

From "Magnitude Invariant Parametrizations Improve Hypernetwork Learning", April 15, 2023. A network maps the knob
gamma in [0, 1]^k to changes of the model's weights. Encoding gamma with constant norm and adding the output to weights
of its own keep the predicted weights' size from growing with gamma.

    tuned = Hypernetwork(sites="blocks.*.mlp.*.weight").attach(model)
    with condition(tuned, 0.3):
        model(**batch)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from monochord.core.modification import WeightModification
from monochord.core.sites import Site, base_weight
from monochord.core.sparse import weights_at
from monochord.core.tuner import Tuned, Tuner

_ACTIVATIONS = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_ENCODINGS = ("cos|sin", "z|1-z", "none")


@dataclass(frozen=True)
class Hypernetwork(Tuner):
    """Predict every matching weight from `inputs` numbers in [0, 1].

    With `residual` the prediction is added to the model's own weight, without it takes its place. `train_base` trains
    those weights too, as the paper does from scratch; otherwise they stay the pretrained ones. With `zero` the last
    layer starts at zero, so that the model is unchanged until trained; else it starts as Kaiming's initialisation of
    the predicted weight would have it. The encoding "cos|sin" has norm sqrt(inputs) for every gamma; "z|1-z" only a
    constant sum.
    """

    default_lr: ClassVar[float] = 1e-3

    sites: str | tuple[str, ...] = "blocks.**.weight"
    inputs: int = 1
    hidden: tuple[int, ...] = (16, 64, 128)
    encoding: str = "cos|sin"
    residual: bool = True
    activation: str = "leaky_relu"
    train_base: bool = False
    zero: bool = True

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Predicted]]:
        if self.encoding not in _ENCODINGS:
            raise ValueError(f"encoding={self.encoding!r} is unknown: use one of {', '.join(_ENCODINGS)}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is unknown: use one of {', '.join(_ACTIVATIONS)}")
        trunk = Trunk(self, generator)
        for number, site in enumerate(weights_at(model, self.sites).values()):
            yield site, Predicted(trunk, number == 0, site.shape or (), self, generator)


@contextmanager
def condition(tuned: Tuned, gamma: float | Sequence[float]) -> Iterator[None]:
    """The model at one setting of its knobs for a block, e.g. one step of training; `tuned.delta()` is of that setting.

    Raises `ValueError` for numbers outside [0, 1], which the encodings are not made for, or too many of them.
    """
    trunk = _trunk(tuned)
    before, now = trunk.gamma.clone(), torch.as_tensor(gamma).reshape(-1).to(trunk.gamma)
    if now.shape != before.shape or now.min() < 0 or now.max() > 1:
        raise ValueError(f"gamma must be {len(before)} numbers in [0, 1], got {now.tolist()}")
    trunk.gamma.copy_(now)
    try:
        yield
    finally:
        trunk.gamma.copy_(before)


def predicted(tuned: Tuned, gammas: Tensor) -> dict[str, Tensor]:
    """The tuned weights at several settings (n, k), by native name (n, ...): for `torch.func` with `vmap`."""
    found: dict[str, Tensor] = {}
    for site, change in tuned.placements:
        if isinstance(change, Predicted):
            weight = base_weight(tuned.model, site)
            found[site.path] = torch.stack([change.at(weight, gamma) for gamma in gammas])
    return found


class Trunk(nn.Module):
    """Encoding and hidden layers, shared by all weights: gamma (k,) to features (hidden,)."""

    def __init__(self, recipe: Hypernetwork, generator: Generator) -> None:
        super().__init__()
        sizes = [recipe.inputs * (1 if recipe.encoding == "none" else 2), *recipe.hidden]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="leaky_relu", generator=generator)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        self.activation, self.encoding = _ACTIVATIONS[recipe.activation](), recipe.encoding
        self.gamma: Tensor
        self.register_buffer("gamma", torch.full((recipe.inputs,), 0.5), persistent=False)

    def forward(self, gamma: Tensor) -> Tensor:
        features = encode(gamma, self.encoding)
        for layer in self.layers:
            features = self.activation(layer(features))
        return features


class Predicted(WeightModification):
    """The last layer of the hypernetwork for one weight of `shape`: `head` (numbers, features)."""

    def __init__(
        self, trunk: Trunk, owner: bool, shape: tuple[int, ...], recipe: Hypernetwork, generator: Generator
    ) -> None:
        super().__init__()
        self._trunk = (trunk,)  # in a tuple, as all weights share it and the first one has it as its module
        if owner:
            self.trunk = trunk
        width = recipe.hidden[-1]
        rows = math.prod(shape[1:]) if len(shape) > 1 else 1  # each row of the weight counts as a layer of its own
        std = 0.0 if recipe.zero else nn.init.calculate_gain("leaky_relu") / math.sqrt(rows)
        self.head = nn.Parameter(std * torch.randn(math.prod(shape), width, generator=generator))
        self.base = nn.Parameter(torch.zeros(shape)) if recipe.train_base else None
        self.shape, self.residual = tuple(shape), recipe.residual

    def forward(self, weight: Tensor) -> Tensor:
        return self.at(weight, self._trunk[0].gamma)

    def at(self, weight: Tensor, gamma: Tensor) -> Tensor:
        """The weight at one setting (k,)."""
        value: Tensor = (self.head @ self._trunk[0](gamma.to(self.head))).reshape(self.shape).to(weight.dtype)
        if not self.residual:
            return value
        return weight + value if self.base is None else weight + self.base.to(weight.dtype) + value


def encode(gamma: Tensor, encoding: str = "cos|sin") -> Tensor:
    """gamma (k,) in [0, 1] as (2k,) of norm sqrt(k) by cosine and sine of a quarter turn, or as [z, 1 - z]."""
    if encoding == "cos|sin":
        return torch.cat([torch.cos(gamma * math.pi / 2), torch.sin(gamma * math.pi / 2)], -1)
    return torch.cat([gamma, 1 - gamma], -1) if encoding == "z|1-z" else gamma


def _trunk(tuned: Tuned) -> Trunk:
    for _, change in tuned.placements:
        if isinstance(change, Predicted):
            return change._trunk[0]
    raise ValueError(f"{type(tuned.tuner).__name__} predicts no weights: attach a Hypernetwork")
