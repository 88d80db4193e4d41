"""U-Nets of diffusers on patches of pixels: the picture is folded into channels, so the widest level costs a quarter.

From "simple diffusion: End-to-end diffusion for high resolution images", January 26, 2023, section 3.2.
"""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

PATCH = 2


class _Patched:
    """Pictures (batch, channels, side, side) in and out; within, channels times 4 and half the side.

    `config` is that of the U-Net within; `picture_shape` is what goes in. Folding is a permutation: noise stays
    Gaussian, distances and losses stay the same.
    """

    config: Any

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""
        side = self.config.sample_size * PATCH
        return self.config.in_channels // PATCH**2, side, side

    def forward(self, sample: Tensor, timestep: Any, *inputs: Any, return_dict: bool = True, **named: Any) -> Any:
        """As the class of diffusers, at the pixels."""
        made = super().forward(pixel_unshuffle(sample, PATCH), timestep, *inputs, **named)  # type: ignore[misc]
        made.sample = pixel_shuffle(made.sample, PATCH)
        return made if return_dict else (made.sample,)


class PatchedUNet(_Patched, UNet2DModel):
    """diffusers' `UNet2DModel` on patches of 2 by 2 pixels."""


class PatchedConditionalUNet(_Patched, UNet2DConditionModel):
    """diffusers' `UNet2DConditionModel` on patches of 2 by 2 pixels; `encoder_hidden_states` is (batch, seq, width)."""
