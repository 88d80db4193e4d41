"""The generator of a DCGAN: a vector becomes a picture through transposed convolutions.

From "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks", November 19, 2015.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Generator, Tensor, nn


class FaceGenerator(nn.Module):
    """`z` (batch, 100), standard normal, to pictures (batch, 3, 64, 64) between -1 and 1.

    `blocks` double the size each: 4, 8, 16 and 32 pixels a side; `to_rgb` makes the picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(latent_size=100, image_size=64)
        channels = (100, 512, 256, 128, 64)
        self.blocks = nn.ModuleList(Upsample(channels[i], channels[i + 1], first=i == 0) for i in range(4))
        self.to_rgb = nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        hidden = z.reshape(len(z), -1, 1, 1)
        for block in self.blocks:
            hidden = block(hidden)
        pictures: Tensor = self.to_rgb(hidden).tanh()
        return pictures

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """`n` random pictures (n, 3, 64, 64)."""
        like = self.to_rgb.weight
        z = torch.randn(n, self.config.latent_size, generator=generator)
        made: Tensor = self(z.to(like.device, like.dtype))
        return made


class Upsample(nn.Module):
    """`conv` to twice the size (of the `first`: from 1 to 4), batch `norm`, ReLU."""

    def __init__(self, channels: int, wanted: int, first: bool = False) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, wanted, 4, 1 if first else 2, 0 if first else 1, bias=False)
        self.norm = nn.BatchNorm2d(wanted)
        self.act = nn.ReLU()

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.act(self.norm(self.conv(hidden)))
        return made
