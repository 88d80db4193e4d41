"""Pictures from diffusion models: guided by captions, unconditional, or along EDM's noise levels.

Guidance is that of "Classifier-Free Diffusion Guidance", July 26, 2022; Heun's method and the levels are those of
"Elucidating the Design Space of Diffusion-Based Generative Models", June 1, 2022, algorithm 1 and equation 5.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

Predict = Callable[[Tensor, Tensor, slice], Tensor]


def sample(
    model: Any,
    prompts: str | Sequence[str],
    steps: int = 25,
    guidance: float = 3.0,
    seed: int = 0,
    *,
    batch_size: int = 64,
) -> Tensor:
    """A picture a prompt, (prompts, channels, height, width), mostly between -1 and 1.

    `model` holds a diffusers `unet` and `scheduler`, a `text_encoder` and its `tokenizer`, as diffusers' pipelines and
    our `TextToImage` do; of a U-Net of latents the latents are returned. With `guidance` 1 the empty caption is not
    asked, with 0 it alone is. The same seed gives the same pictures in batches of any size, up to rounding.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ValueError("no prompts: give at least one caption")
    texts = encode_prompts(model, [*prompts, ""])

    def predict(noisy: Tensor, timestep: Tensor, rows: slice) -> Tensor:
        captions = texts[:-1][rows]
        nothing = texts[-1:].expand(len(noisy), -1, -1)
        if guidance in (0, 1):
            return _call(model.unet, noisy, timestep, captions if guidance else nothing)
        both = _call(model.unet, torch.cat([noisy, noisy]), timestep, torch.cat([captions, nothing]))
        with_caption, without = both.chunk(2)
        return without + guidance * (with_caption - without)

    return denoise(predict, _noise(model.unet, len(prompts), seed), model.scheduler, steps, seed, batch_size=batch_size)


def sample_unconditional(
    unet: Any, scheduler: Any, n: int, steps: int = 25, seed: int = 0, *, batch_size: int = 64
) -> Tensor:
    """`n` pictures of a diffusers U-Net that takes no captions."""

    def predict(noisy: Tensor, timestep: Tensor, rows: slice) -> Tensor:
        return _call(unet, noisy, timestep)

    return denoise(predict, _noise(unet, n, seed), scheduler, steps, seed, batch_size=batch_size)


@torch.no_grad()
def denoise(
    predict: Predict, noise: Tensor, scheduler: Any, steps: int, seed: int = 0, *, batch_size: int = 64
) -> Tensor:
    """Carry `noise` (n, channels, height, width), of unit variance, to pictures by a scheduler of diffusers.

    `predict(noisy, timestep, rows)` is what the scheduler was made for (noise, velocity or picture); `rows` says which
    of the n are asked for. The scheduler itself is left as it is. Its own noise, if any, comes from `seed`.
    """
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps={steps} and batch_size={batch_size} must be at least 1")
    made = []
    for first in range(0, len(noise), batch_size):
        own = type(scheduler).from_config(scheduler.config)  # it keeps state between steps
        own.set_timesteps(steps)
        generator = Generator().manual_seed(seed + 1 + first)
        rows = slice(first, first + batch_size)
        noisy = noise[rows] * own.init_noise_sigma
        for timestep in own.timesteps:
            output = predict(own.scale_model_input(noisy, timestep), timestep, rows)
            noisy = own.step(output, timestep, noisy, **_randomness(own, generator)).prev_sample
        made.append(noisy)
    return torch.cat(made)


@torch.no_grad()
def heun(denoiser: Callable[[Tensor, Tensor], Tensor], noise: Tensor, levels: Tensor) -> Tensor:
    """Heun's method for `denoiser(noisy, level)`, the expected clean picture: two evaluations a step, the last has one.

    `noise` (n, ...) has unit variance; `levels` falls to 0, as `karras_levels` gives them.
    """
    noisy = noise * levels[0]
    for level, following in pairwise(levels):
        slope = (noisy - denoiser(noisy, level)) / level
        moved = noisy + (following - level) * slope
        if following > 0:
            slope = (slope + (moved - denoiser(moved, following)) / following) / 2
            moved = noisy + (following - level) * slope
        noisy = moved
    return noisy


def karras_levels(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels (steps + 1,) from `sigma_max` to `sigma_min`, even in their `rho`-th root, then 0."""
    if steps < 2 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"steps={steps}, levels {sigma_min} to {sigma_max}: use 2 steps or more and rising levels")
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (sigma_max ** (1 / rho) + share * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)]).float()


def sample_edm(model: Any, n: int, steps: int = 18, seed: int = 0, *, batch_size: int = 64) -> Tensor:
    """`n` pictures of an EDM `Denoiser`, such as `mc.load("edm-unet")`, in `2 * steps - 1` evaluations."""
    levels = karras_levels(steps, model.sigma_min, model.sigma_max)
    noise = _noise(model.unet, n, seed)
    parts = [noise[first : first + batch_size] for first in range(0, n, batch_size)]
    return torch.cat([heun(model, part, levels.to(noise)) for part in parts])


@torch.no_grad()
def encode_prompts(model: Any, prompts: Sequence[str]) -> Tensor:
    """What the U-Net attends to for each caption, (prompts, seq, width)."""
    length = model.tokenizer.model_max_length
    padding = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    ids = model.tokenizer(list(prompts), **padding)["input_ids"]
    states: Tensor = model.text_encoder(ids.to(next(model.text_encoder.parameters()).device))[0]
    return states


def picture_shape(unet: Any) -> tuple[int, int, int]:
    """Channels, height and width of what a U-Net of diffusers makes."""
    if hasattr(unet, "picture_shape"):
        shape: tuple[int, int, int] = unet.picture_shape
        return shape
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return unet.config.in_channels, height, width


def _noise(unet: Any, n: int, seed: int) -> Tensor:
    if n < 1:
        raise ValueError(f"n={n}: make at least one picture")
    like = next(unet.parameters())
    return torch.randn((n, *picture_shape(unet)), generator=Generator().manual_seed(seed)).to(like.device, like.dtype)


def _call(unet: Any, noisy: Tensor, timestep: Tensor, states: Tensor | None = None) -> Tensor:
    named = {} if states is None else {"encoder_hidden_states": states}
    made: Tensor = unet(noisy, timestep, **named).sample
    return made


def _randomness(scheduler: Any, generator: Generator) -> dict[str, Generator]:
    """The generator, for schedulers that take one."""
    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
