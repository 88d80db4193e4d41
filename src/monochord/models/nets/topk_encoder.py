"""The encoder of a sparse autoencoder that keeps the largest few latents of each token.

From "Scaling and evaluating sparse autoencoders", June 6, 2024.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn


class TopKEncoder(nn.Module):
    """Hidden states (..., width) to latents (..., latents), at most `k` of them above zero."""

    def __init__(self, width: int, latents: int, k: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=width, latents=latents, k=k)
        self.k = k
        self.encoder = nn.Linear(width, latents)

    def forward(self, hidden: Tensor) -> Tensor:
        values, places = self.encoder(hidden).relu().topk(self.k, dim=-1)
        return torch.zeros(*hidden.shape[:-1], self.config.latents, dtype=values.dtype, device=values.device).scatter(
            -1, places, values
        )
