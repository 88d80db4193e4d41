"""Convolutions that say where things are: an encoder of pictures to the places of its channels, and a decoder back.

The parts of "Inverse Dynamics Pretraining Learns Good Representations for Multitask Imitation", May 26, 2023; spatial
softmax is that of "End-to-End Training of Deep Visuomotor Policies", April 2, 2015.

    encoder = SpatialSoftmaxEncoder(side=32, channels=(16, 32, 32), strides=(2, 1, 1))
    features = encoded(encoder, observations)      # once for all, where the encoder is frozen
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monochord.core.forward import evaluating


class SpatialSoftmax(nn.Module):
    """Where each channel is: the expected column and row of (batch, channels, height, width), from -1 to 1.

    Gives (batch, 2 * channels), all columns first.
    """

    def forward(self, maps: Tensor) -> Tensor:
        weights = maps.flatten(2).softmax(-1).reshape(maps.shape)
        rows, columns = (torch.linspace(-1, 1, side, dtype=maps.dtype, device=maps.device) for side in maps.shape[2:])
        return torch.cat([(weights.sum(2) * columns).sum(-1), (weights.sum(3) * rows).sum(-1)], -1)


class SpatialSoftmaxEncoder(nn.Module):
    """Pictures (batch, 3, side, side), from 0 to 1 or uint8, to embeddings (batch, width) between -1 and 1.

    Convolutions of 3 by 3 without padding, `keypoints` maps of which only the places are kept, a linear layer, a norm
    and tanh. With `proprioception`, the width of a robot's own state, half of the embedding is made of that, and it is
    called with pictures and states. Without `strides` the first layers halve the maps while they stay 8 pixels wide.
    Raises `ValueError` when the maps get narrower than 3.
    """

    def __init__(
        self,
        side: int = 84,
        channels: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int] | None = None,
        keypoints: int = 256,
        width: int = 64,
        proprioception: int = 0,
    ) -> None:
        super().__init__()
        strides = _strides(side, len(channels)) if strides is None else strides
        if len(strides) != len(channels):
            raise ValueError(f"{len(strides)} strides for {len(channels)} channels: give one each")
        layers: list[nn.Module] = []
        for before, after, stride in zip((3, *channels), channels, strides, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride), nn.GELU()]
            side = (side - 3) // stride + 1
        if side < 3:
            raise ValueError(f"strides {tuple(strides)} leave maps {side} wide: use fewer layers or larger pictures")
        self.maps = nn.Sequential(*layers, nn.Conv2d(channels[-1], keypoints, 1))
        seen = width - width // 2 if proprioception else width
        self.seen = nn.Sequential(SpatialSoftmax(), nn.Linear(2 * keypoints, seen), nn.LayerNorm(seen), nn.Tanh())
        self.felt: nn.Sequential | None = None
        if proprioception:
            self.felt = nn.Sequential(nn.Linear(proprioception, width // 2), nn.LayerNorm(width // 2), nn.Tanh())
        self.width = width
        for layer in self.modules():  # smaller weights make flat maps, all places alike, from which nothing is learnt
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, pictures: Tensor, state: Tensor | None = None) -> Tensor:
        if (state is None) != (self.felt is None):
            wanted = "pictures alone" if self.felt is None else "pictures and states"
            raise ValueError(f"this encoder takes {wanted}: set proprioception to the width of the states, or to 0")
        pictures = pictures if pictures.is_floating_point() else pictures / 255
        found: Tensor = self.seen(self.maps(pictures - 0.5))
        return found if self.felt is None else torch.cat([found, self.felt(state)], -1)


class PixelDecoder(nn.Module):
    """From embeddings (batch, inputs) to pictures (batch, 3, side, side) around 0.5; `side` is a multiple of 8."""

    def __init__(self, inputs: int, side: int = 32, channels: int = 32) -> None:
        super().__init__()
        if side % 8:
            raise ValueError(f"side={side}: use a multiple of 8, such as {side // 8 * 8 + 8}")
        self.start = side // 8
        self.first = nn.Linear(inputs, 2 * channels * self.start**2)
        self.rest = nn.Sequential(
            nn.GELU(), nn.ConvTranspose2d(2 * channels, channels, 4, 2, 1),
            nn.GELU(), nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1),
            nn.GELU(), nn.ConvTranspose2d(channels // 2, 3, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.rest(self.first(x).unflatten(-1, (-1, self.start, self.start)))
        return found + 0.5


@torch.no_grad()
def encoded(encoder: nn.Module, observations: Tensor, batch_size: int = 512) -> Tensor:
    """The embeddings of all observations by an encoder as it is, in evaluation mode."""
    with evaluating(encoder):
        return torch.cat([encoder(part) for part in torch.split(observations, batch_size)])


def _strides(side: int, layers: int) -> tuple[int, ...]:
    """The first layers at 2, at most two of them, as many as leave at least 8 pixels; the others at 1."""
    for halved in range(min(2, layers), 0, -1):
        left = side
        for layer in range(layers):
            left = (left - 3) // (2 if layer < halved else 1) + 1
        if left >= 8:
            return (2,) * halved + (1,) * (layers - halved)
    return (1,) * layers
