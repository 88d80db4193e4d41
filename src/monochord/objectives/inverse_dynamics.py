"""Ways to pretrain an encoder of observations on demonstrations whose task nobody says: which action lay between two?

From "Inverse Dynamics Pretraining Learns Good Representations for Multitask Imitation", May 26, 2023, with what it is
compared with: cloning, contrastive forward dynamics, and two views of one observation.

    model = TransitionModel(encoder, width=64, actions=2)
    mc.fit(model, batches, InverseDynamics())      # batches of observation, action and next_observation
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monochord.core.objective import Batch, Loss, Objective, Step


class TransitionModel(nn.Module):
    """An `encoder` of observations to (batch, width) and the heads that objectives train beside it.

    Called with an observation it gives the encoder's embedding. A head is made of two hidden layers of `hidden`.
    """

    def __init__(self, encoder: nn.Module, width: int, actions: int, hidden: int = 256, projection: int = 64) -> None:
        super().__init__()
        self.encoder = encoder
        self.inverse = _mlp(2 * width, hidden, actions)
        self.policy = _mlp(width, hidden, actions)
        self.forward_in, self.forward_out = _mlp(width + actions, hidden, projection), _mlp(width, hidden, projection)
        self.view = _mlp(width, hidden, projection)

    def forward(self, observation: Tensor, **rest: Any) -> Tensor:
        found: Tensor = self.encoder(observation)
        return found


class InverseDynamics(Objective):
    """The mean squared error of the action, told from the embeddings of the observations before and after it."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        own = _of(model)
        pair = torch.cat([own.encoder(batch["observation"]), own.encoder(batch["next_observation"])], -1)
        return _named(self, F.mse_loss(own.inverse(pair), batch["action"]))


class BehaviorCloning(Objective):
    """The mean squared error of the action, told from the observation alone."""

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        own = _of(model)
        return _named(self, F.mse_loss(own.policy(own.encoder(batch["observation"])), batch["action"]))


class ForwardDynamics(Objective):
    """Contrastive: an observation and its action know what comes next among all that came next in the batch."""

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        own = _of(model)
        now = own.forward_in(torch.cat([own.encoder(batch["observation"]), batch["action"]], -1))
        after = own.forward_out(own.encoder(batch["next_observation"]))
        return _named(self, info_nce(now, after, self.temperature))


class StaticContrast(Objective):
    """Contrastive: two views of an observation, made by `augment`, know each other in the batch."""

    def __init__(self, augment: Callable[[Tensor], Tensor], temperature: float = 1.0) -> None:
        self.augment, self.temperature = augment, temperature

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        own = _of(model)
        first, second = (own.view(own.encoder(self.augment(batch["observation"]))) for _ in range(2))
        return _named(self, info_nce(first, second, self.temperature))


class SpatialSoftmax(nn.Module):
    """Where each channel is: the expected column and row of (batch, channels, height, width), from -1 to 1.

    Gives (batch, 2 * channels), all columns first.
    """

    def forward(self, maps: Tensor) -> Tensor:
        weights = maps.flatten(2).softmax(-1).reshape(maps.shape)
        rows, columns = (torch.linspace(-1, 1, side, dtype=maps.dtype, device=maps.device) for side in maps.shape[2:])
        return torch.cat([(weights.sum(2) * columns).sum(-1), (weights.sum(3) * rows).sum(-1)], -1)


def info_nce(one: Tensor, other: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy in nats of telling row i of `other` by row i of `one`, (batch, d), by cosines over temperature."""
    logits = F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def _of(model: nn.Module) -> Any:
    if not hasattr(model, "encoder") or not hasattr(model, "inverse"):
        raise ValueError(f"{type(model).__name__} has no heads for transitions: wrap its encoder in a TransitionModel")
    return model


def _named(objective: Objective, value: Tensor) -> Loss:
    return Loss(value, {objective.name: value.item()})
