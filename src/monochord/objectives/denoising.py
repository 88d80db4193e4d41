"""The loss of a diffusion model on pictures, at noise that the step alone decides: the same for every method.

For nets that say their own loss, such as the catalog's `edm-unet` ("Elucidating the Design Space of Diffusion-Based
Generative Models", June 1, 2022) and `pictures-unet`.
"""

from __future__ import annotations

from typing import Any

from torch import Generator, nn

from monochord.core.objective import Batch, Loss, Objective, Step, unwrap


class Denoising(Objective):
    """The mean of the model's own `loss(pixel_values, generator)`; captions, `input_ids`, go between the two.

    `pixel_values` (batch, channels, height, width) are mostly between -1 and 1. Raises `ValueError` for a model
    without such a loss.
    """

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        own: Any = unwrap(model)
        if not callable(getattr(own, "loss", None)):
            raise ValueError(
                f"{type(own).__name__} has no denoising loss: give it loss(pictures, generator), as edm-unet has"
            )
        captions = (batch["input_ids"],) if "input_ids" in batch else ()
        total = own.loss(batch["pixel_values"], *captions, Generator().manual_seed(step.index)).mean()
        return Loss(total, {self.name: total.item()})
