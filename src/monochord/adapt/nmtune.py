"""Noisy-model tuning: a small network on frozen features, held to spectra that transfer.

From "Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks", September 29, 2023. Features of
a model that was pretrained on noisy labels are reshaped by an MLP whose output keeps near the features, is decorrelated
and has strong leading directions (`NMTuneTerms`). It needs the features only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from monochord.adapt.full_tuning import FullTuning
from monochord.core.attach import Placement
from monochord.core.modification import Modification, uniform
from monochord.core.objective import Batch, Loss, Objective, Step
from monochord.core.sites import resolve, width
from monochord.core.tuner import Tuned, Tuner


@dataclass(frozen=True)
class NMTune(Tuner):
    """Before the classifier's head, features F become `a * h(F) + F`; h, a and the head train.

    h is linear to `ratio` times the width, batch norm, ReLU, linear back; a (width,) starts at `gain`. With `gain=0`
    it is a linear probe at first, and the paper's 1 changes the features from the start.
    """

    default_lr: ClassVar[float] = 1e-3

    ratio: float = 4.0
    gain: float = 0.0
    sites: str = "head:in"

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[Placement]:
        for site in resolve(model, self.sites):
            yield site, FeatureNetwork(width(model, site), self.ratio, self.gain, generator)
        yield from FullTuning("head").plan(model, generator)


class FeatureNetwork(Modification):
    """`a * h(features) + features` for features (batch, d). `seen` has the latest features and their images."""

    def __init__(self, d: int, ratio: float = 4.0, gain: float = 1.0, generator: Generator | None = None) -> None:
        super().__init__()
        inner = max(round(ratio * d), 1)
        self.up = nn.Parameter(uniform((inner, d), d, generator))
        self.up_bias = nn.Parameter(torch.zeros(inner))
        self.batch_norm = nn.BatchNorm1d(inner)
        self.down = nn.Parameter(uniform((d, inner), inner, generator))
        self.down_bias = nn.Parameter(torch.zeros(d))
        self.gain = nn.Parameter(torch.full((d,), gain))
        self.seen: tuple[Tensor, Tensor] | None = None

    def forward(self, value: Tensor) -> Tensor:
        features = value.to(self.up.dtype)
        hidden = F.relu(self.batch_norm(F.linear(features, self.up, self.up_bias)))
        image = self.gain * F.linear(hidden, self.down, self.down_bias) + features
        self.seen = (features.detach(), image)
        return image.to(value.dtype)


class NMTuneTerms(Objective):
    """The paper's regularisers of the images Z of features F, to add to a cross-entropy.

    `consistency` weighs the mean squared distance of Z and F at unit length, `covariance` the sum of squared
    covariances between dimensions over d, `dominance` minus the mean of the `top` largest singular values of Z over
    their sum.
    """

    def __init__(
        self,
        tuned: Tuned,
        consistency: float = 1.0,
        covariance: float = 0.04,
        dominance: float = 0.001,
        top: int = 5,
    ) -> None:
        networks = [change for _, change in tuned.placements if isinstance(change, FeatureNetwork)]
        if not networks:
            raise ValueError("NMTuneTerms needs an attached NMTune")
        self.networks, self.top = networks, top
        self.weights = {"consistency": consistency, "covariance": covariance, "dominance": dominance}

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        step.forward(model, batch)
        values = {name: torch.zeros(()) for name in self.weights}
        for network in self.networks:
            if network.seen is None:
                raise ValueError("the model ran and its head did not: NMTuneTerms finds no features")
            features, image = network.seen
            values["consistency"] = values["consistency"] + consistency(features, image)
            values["covariance"] = values["covariance"] + covariance(image)
            values["dominance"] = values["dominance"] - dominance(image, self.top)
        total = sum((self.weights[name] * value for name, value in values.items()), torch.zeros(()))
        return Loss(total, {name: value.item() for name, value in values.items()})


def consistency(features: Tensor, image: Tensor) -> Tensor:
    """The mean squared difference of two sets of rows (n, d) at unit length."""
    return F.mse_loss(F.normalize(image, dim=-1), F.normalize(features, dim=-1))


def covariance(image: Tensor) -> Tensor:
    """The squared covariances between different dimensions of rows (n, d), summed, over d."""
    centred = image - image.mean(0)
    matrix = centred.t() @ centred / (len(image) - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / image.shape[1]


def dominance(image: Tensor, top: int = 5) -> Tensor:
    """The mean of the `top` largest singular values of rows (n, d) at unit length, over the sum of all."""
    values: Tensor = torch.linalg.svdvals(F.normalize(image, dim=-1))
    return values[:top].mean() / values.sum()


def spectrum(features: Tensor) -> dict[str, float]:
    """What the singular values of features (n, d), rows at unit length, say of them.

    `sve` is the entropy of their shares, log d where all are equal; `lsvr` is minus the log of the largest share, 0
    where there is but one.
    """
    values = torch.linalg.svdvals(F.normalize(features.double(), dim=-1))
    shares = values / values.sum()
    return {"sve": float(torch.special.entr(shares).sum()), "lsvr": -math.log(float(shares[0]))}
