"""A text-to-image model: a text encoder, a U-Net that attends to it, and the scheduler that both were trained with.

From "High-Resolution Image Synthesis with Latent Diffusion Models", December 20, 2021, section 3.3, at the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss


class TextToImage(nn.Module):
    """`unet` and `text_encoder`, with the `tokenizer` and the diffusers `scheduler` beside them.

    Pictures are (batch, 3, side, side) between -1 and 1. Captions are padded to the text encoder's length, and the
    empty caption stands for none: that is what classifier-free guidance compares with.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, scheduler: Any, tokenizer: Any = None) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        self.scheduler, self.tokenizer = scheduler, tokenizer
        self.config: Any = getattr(unet, "config", None)

    def forward(self, sample: Tensor, timestep: Any, input_ids: Tensor) -> Any:
        """diffusers' output, `.sample` like the noisy `sample`; `input_ids` (batch, seq) as `tokenize` makes them."""
        return self.unet(sample, timestep, encoder_hidden_states=self.encode(input_ids))

    def encode(self, input_ids: Tensor) -> Tensor:
        """What the U-Net attends to, (batch, seq, width)."""
        states: Tensor = self.text_encoder(input_ids=input_ids).last_hidden_state
        return states

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Captions as ids (batch, seq)."""
        made = self.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        ids: Tensor = made["input_ids"]
        return ids

    def loss(self, pictures: Tensor, input_ids: Tensor, generator: Generator) -> Tensor:
        """The training loss (batch,): mean square error of the scheduler's target, at timesteps of all sizes.

        The share of time is a uniform number to the power 0.7: more of what is nearly noise, where captions matter.
        """
        steps, n = self.scheduler.config.num_train_timesteps, len(pictures)
        spread = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
        return self.loss_at(pictures, input_ids, (spread**0.7 * steps).long(), generator)

    def loss_at(self, pictures: Tensor, input_ids: Tensor, timestep: Tensor, generator: Generator) -> Tensor:
        """The same at given timesteps (batch,)."""
        noise = torch.randn(pictures.shape, generator=generator)
        noisy = self.scheduler.add_noise(pictures, noise, timestep)
        wanted = noise
        if self.scheduler.config.prediction_type == "v_prediction":
            wanted = self.scheduler.get_velocity(pictures, noise, timestep)
        made = self(noisy, timestep, input_ids).sample.float()
        return mse_loss(made, wanted, reduction="none").mean((1, 2, 3))
