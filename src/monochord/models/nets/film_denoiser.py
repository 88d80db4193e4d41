"""A small denoiser of vectors under a condition, such as a diffusion policy that sees its state.

Features scale and shift the layers, as in "FiLM: Visual Reasoning with a General Conditioning Layer", September 22,
2017.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm


class FiLMDenoiser(nn.Module):
    """Noised values (batch, *shape), timesteps (batch,) and conditions (batch, features) to a prediction of that shape.

    Residual layers that an embedding of the condition and of the time scales and shifts. Conditions are standardised by
    the mean and deviation of `examples`, (n, features); timesteps go up to `levels`.
    """

    mean: Tensor
    std: Tensor
    waves: Tensor

    def __init__(
        self, shape: tuple[int, ...], examples: Tensor, *, width: int = 160, layers: int = 3, levels: int = 50
    ) -> None:
        super().__init__()
        if examples.ndim != 2 or len(examples) < 2:
            raise ValueError(f"examples of shape {tuple(examples.shape)}: give conditions (n, features), 2 or more")
        size, features = math.prod(shape), examples.shape[1]
        self.levels = levels
        self.register_buffer("mean", examples.mean(0))
        self.register_buffer("std", examples.std(0) + 0.05)  # a feature that never varies stays small
        self.register_buffer("waves", torch.exp(torch.linspace(0, math.log(50), 8)))
        self.embed = nn.Sequential(nn.Linear(features + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.inner = nn.Linear(size, width)
        self.films = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(layers)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))

    def forward(self, noisy: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        angles = times[:, None].to(noisy) / self.levels * self.waves
        known = (condition - self.mean) / self.std
        embedded = self.embed(torch.cat([known, angles.sin(), angles.cos()], 1))
        x = self.inner(noisy.flatten(1))
        for film, layer in zip(self.films, self.layers, strict=True):
            scale, shift = film(embedded).chunk(2, 1)
            x = x + layer(layer_norm(x, x.shape[1:]) * (1 + scale) + shift)
        predicted: Tensor = self.out(x).reshape(noisy.shape)
        return predicted
