"""A small convolutional net that says what a picture of a coloured thing shows."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from monochord.data.painting import ATTRIBUTES


class AttributeJudge(nn.Module):
    """Pictures (batch, 3, 32, 32) between -1 and 1 to logits by attribute: object, colour, background, place.

    `features` are 128 numbers a picture, for distances between sets of pictures.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=128)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList(_block(*sizes) for sizes in ((3, 32, 2), (32, 64, 1), (64, 64, 2), (64, 64, 2)))
            self.pool = nn.Linear(64 * 16, 128)
            self.heads = nn.ModuleDict({name: nn.Linear(128, len(values)) for name, values in ATTRIBUTES.items()})

    def features(self, pictures: Tensor) -> Tensor:
        """(batch, 128)."""
        hidden = pictures
        for block in self.blocks:
            hidden = block(hidden)
        made: Tensor = nn.functional.silu(self.pool(hidden.flatten(1)))
        return made

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits (batch, values) by attribute."""
        features = self.features(pictures)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pictures: Tensor) -> dict[str, Tensor]:
        """The likeliest value of each attribute, (batch,)."""
        return {name: logits.argmax(1) for name, logits in self(pictures).items()}


def _block(channels: int, wanted: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, wanted, 3, stride, 1), nn.GroupNorm(8, wanted), nn.SiLU())
