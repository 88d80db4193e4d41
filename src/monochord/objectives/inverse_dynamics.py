"""Ways to pretrain an encoder of observations on demonstrations whose task nobody says: which action lay between two?

From "Inverse Dynamics Pretraining Learns Good Representations for Multitask Imitation", May 26, 2023, with what it is
compared with: cloning, forward dynamics, contrastive or explicit, and two views of one observation.

    model = TransitionModel(encoder, width=64, actions=2)
    mc.fit(model, batches, InverseDynamics())      # batches of observation, action and next_observation

Observations further apart are a matter of the data: `Trajectories.transitions(steps)` pairs them with the first action
between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monochord.core.objective import Batch, Loss, Objective, Step


class TransitionModel(nn.Module):
    """An `encoder` of observations to (batch, width) and the heads that objectives train beside it.

    Called with an observation it gives the encoder's embedding. A head is made of two hidden layers of `hidden`, with
    `dropout` after each. `decoder` makes observations of (batch, width + actions) and is needed for explicit forward
    dynamics alone.
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        actions: int,
        hidden: int = 256,
        projection: int = 64,
        dropout: float = 0.0,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.inverse = _mlp(2 * width, hidden, actions, dropout)
        self.policy = _mlp(width, hidden, actions, dropout)
        self.forward_in = _mlp(width + actions, hidden, projection, dropout)
        self.forward_out, self.view = (_mlp(width, hidden, projection, dropout) for _ in range(2))

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
    """What an observation and its action say of the next one.

    "contrastive": they know it among all that came next in the batch; "explicit": the mean squared error of the next
    observation as the model's decoder makes it.
    """

    def __init__(self, mode: Literal["contrastive", "explicit"] = "contrastive", temperature: float = 1.0) -> None:
        if mode not in ("contrastive", "explicit"):
            raise ValueError(f"forward dynamics are contrastive or explicit, not {mode!r}")
        self.mode, self.temperature = mode, temperature

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        own, after = _of(model), batch["next_observation"]
        known = torch.cat([own.encoder(batch["observation"]), batch["action"]], -1)
        if self.mode == "contrastive":
            told = own.forward_out(own.encoder(after))
            return _named(self, info_nce(own.forward_in(known), told, self.temperature))
        if own.decoder is None:
            raise ValueError("explicit forward dynamics need TransitionModel(decoder=...), such as a PixelDecoder")
        wanted = after if after.is_floating_point() else after / 255
        return _named(self, F.mse_loss(own.decoder(known), wanted))


class StaticContrast(Objective):
    """Contrastive: two views of an observation, made by `augment`, know each other in the batch."""

    def __init__(self, augment: Callable[[Tensor], Tensor], temperature: float = 1.0) -> None:
        self.augment, self.temperature = augment, temperature

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        own = _of(model)
        first, second = (own.view(own.encoder(self.augment(batch["observation"]))) for _ in range(2))
        return _named(self, info_nce(first, second, self.temperature))


def info_nce(one: Tensor, other: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy in nats of telling row i of `other` by row i of `one`, (batch, d), by cosines over temperature."""
    logits = F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def jittered(pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Pictures (batch, ..., 3, height, width) moved by at most a pixel and tinted, each row of the batch its own way.

    Observations of one transition in one row change alike.
    """
    n, height, width = len(pictures), *pictures.shape[-2:]
    known: dict[str, Any] = {"generator": generator, "device": pictures.device}
    move = torch.randint(-1, 2, (2, n, 1), **known)
    down = (torch.arange(height, device=pictures.device) + move[0]).clamp(0, height - 1)
    across = (torch.arange(width, device=pictures.device) + move[1]).clamp(0, width - 1)
    rows = torch.arange(n, device=pictures.device)[:, None, None]
    moved = pictures.movedim((-2, -1), (1, 2))[rows, down[:, :, None], across[:, None, :]].movedim((1, 2), (-2, -1))
    shape = (n, *[1] * (pictures.ndim - 4), 3, 1, 1)
    scale, shift = (torch.rand(shape, **known) - 0.5 for _ in range(2))
    return moved * (1 + 0.4 * scale) + 0.2 * shift


def _mlp(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, hidden):
        layers += [nn.Linear(width, hidden), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


def _of(model: nn.Module) -> Any:
    if not hasattr(model, "encoder") or not hasattr(model, "inverse"):
        raise ValueError(f"{type(model).__name__} has no heads for transitions: wrap its encoder in a TransitionModel")
    return model


def _named(objective: Objective, value: Tensor) -> Loss:
    return Loss(value, {objective.name: value.item()})
