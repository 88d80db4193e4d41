"""A denoiser with the preconditioning of EDM: a U-Net sees unit variance at every noise level, and so does its target.

From "Elucidating the Design Space of Diffusion-Based Generative Models", June 1, 2022, section 5 and table 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Denoiser(nn.Module):
    """`D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`, where `unet` is F.

    Trained on levels with `log sigma` normal, mean -1.2 and deviation 1.2; sampled from `sigma_max` to `sigma_min`.
    """

    def __init__(
        self, unet: nn.Module, sigma_data: float = 0.7, sigma_min: float = 0.002, sigma_max: float = 80.0
    ) -> None:
        super().__init__()
        self.unet = unet
        self.config: Any = getattr(unet, "config", None)
        self.sigma_data, self.sigma_min, self.sigma_max = sigma_data, sigma_min, sigma_max

    def forward(self, noisy: Tensor, sigma: Tensor | float) -> Tensor:
        """The expected clean pictures of `noisy` (batch, channels, side, side); `sigma` is a number or (batch,)."""
        sigma = torch.as_tensor(sigma, dtype=noisy.dtype, device=noisy.device).expand(len(noisy))
        c_skip, c_out, c_in = self.coefficients(sigma)
        made: Tensor = self.unet(c_in * noisy, sigma.log() / 4).sample
        return c_skip * noisy + c_out * made

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`c_skip`, `c_out` and `c_in` of levels (batch,), each (batch, 1, 1, 1)."""
        sigma = sigma[:, None, None, None]
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt()

    def loss(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """The training loss (batch,): mean square error of F, at random levels."""
        sigma = (1.2 * torch.randn(len(pictures), generator=generator) - 1.2).exp()
        return self.loss_at(pictures, sigma, generator)

    def loss_at(self, pictures: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
        """The same at given levels (batch,)."""
        noise = torch.randn(pictures.shape, generator=generator)
        noisy = pictures + sigma[:, None, None, None] * noise
        c_skip, c_out, c_in = self.coefficients(sigma)
        made = self.unet(c_in * noisy, sigma.log() / 4).sample.float()
        wanted = (pictures - c_skip * noisy) / c_out
        loss: Tensor = (made - wanted).square().mean((1, 2, 3))
        return loss
