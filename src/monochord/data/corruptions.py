"""Pictures spoilt as cameras and channels spoil them: noise, blur, light and lost detail, at five severities.

The kinds of "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", March 28, 2019, at
strengths for pictures of about 32 pixels a side.

    spoilt = corrupt(pixels, "motion blur", severity=5, generator=generator)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from monochord.data.dataset import DataError


def corrupt(pixels: Tensor, kind: str, severity: int = 5, generator: Generator | None = None) -> Tensor:
    """Pictures (n, channels, height, width) of values in 0 to 1, spoilt, in the same range.

    `kind` is one of `CORRUPTIONS`. Raises `DataError` for another kind, a severity outside 1 to 5, or other shapes.
    """
    if kind not in _KINDS:
        near = ", ".join(get_close_matches(kind, _KINDS, 3, 0.3)) or ", ".join(CORRUPTIONS[:3])
        raise DataError(f"no corruption {kind!r}: did you mean {near}?")
    if severity not in range(1, 6):
        raise DataError(f"severity={severity}: use 1 to 5")
    if pixels.dim() != 4:
        raise DataError(f"pictures are (n, channels, height, width), got {tuple(pixels.shape)}")
    spoil, strengths = _KINDS[kind]
    spoilt: Tensor = spoil(pixels.cpu(), strengths[severity - 1], generator)  # a seed says the same on any device
    return spoilt.clamp(0, 1).to(pixels.device)


def _gaussian_noise(x: Tensor, sd: float, generator: Generator | None) -> Tensor:
    return x + sd * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _shot_noise(x: Tensor, photons: float, generator: Generator | None) -> Tensor:
    return torch.poisson(x * photons, generator=generator) / photons


def _impulse_noise(x: Tensor, share: float, generator: Generator | None) -> Tensor:
    """Pixels replaced by black or white, all channels together."""
    chance = torch.rand((len(x), 1, *x.shape[2:]), generator=generator, dtype=x.dtype)
    return torch.where(chance < share / 2, 0.0, torch.where(chance < share, 1.0, x))


def _speckle_noise(x: Tensor, sd: float, generator: Generator | None) -> Tensor:
    return x + x * sd * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def _gaussian_blur(x: Tensor, sd: float, generator: Generator | None) -> Tensor:
    reach = math.ceil(3 * sd)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=x.dtype) / sd) ** 2)
    return _filtered(x, torch.outer(bell, bell))


def _defocus_blur(x: Tensor, radius: float, generator: Generator | None) -> Tensor:
    """The mean over a disc; its edge is soft."""
    reach = math.ceil(radius)
    line = torch.arange(-reach, reach + 1, dtype=x.dtype)
    return _filtered(x, (radius + 0.5 - torch.hypot(line[:, None], line[None, :])).clamp(0, 1))


def _motion_blur(x: Tensor, length: float, generator: Generator | None) -> Tensor:
    """The mean along a line of one of eight directions, drawn for each picture."""
    turns = torch.randint(8, (len(x),), generator=generator)
    out = torch.empty_like(x)
    reach = math.ceil(length / 2)
    line = torch.arange(-reach, reach + 1, dtype=x.dtype)
    for turn in range(8):
        angle = turn * math.pi / 8
        across = (line[:, None] * math.cos(angle) - line[None, :] * math.sin(angle)).abs()
        along = (line[:, None] * math.sin(angle) + line[None, :] * math.cos(angle)).abs()
        kernel = (1 - across).clamp(0, 1) * (length / 2 + 0.5 - along).clamp(0, 1)
        out[turns == turn] = _filtered(x[turns == turn], kernel)
    return out


def _contrast(x: Tensor, kept: float, generator: Generator | None) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + kept * (x - mean)


def _brightness(x: Tensor, added: float, generator: Generator | None) -> Tensor:
    return x + added


def _fog(x: Tensor, depth: float, generator: Generator | None) -> Tensor:
    """Clouds of three sizes laid over the picture, brightest where they are densest."""
    side = x.shape[2:]
    clouds = torch.zeros((len(x), 1, *side), dtype=x.dtype)
    for number, cells in enumerate((2, 4, 8)):
        coarse = torch.rand((len(x), 1, cells, cells), generator=generator, dtype=x.dtype)
        clouds += F.interpolate(coarse, size=side, mode="bicubic", align_corners=False) / 2**number / 1.75
    return (x + depth * clouds) / (1 + depth)


def _pixelate(x: Tensor, share: float, generator: Generator | None) -> Tensor:
    small = F.interpolate(x, scale_factor=share, mode="area")
    return F.interpolate(small, size=x.shape[2:], mode="nearest")


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Each channel under a kernel of odd sides and sum 1, the edge repeated."""
    kernel = kernel / kernel.sum()
    rows, columns = (side // 2 for side in kernel.shape)
    padded = F.pad(x, (columns, columns, rows, rows), mode="replicate")
    return F.conv2d(padded, kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])


_Spoil = Callable[[Tensor, float, Generator | None], Tensor]
_KINDS: dict[str, tuple[_Spoil, tuple[float, ...]]] = {
    "gaussian noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle noise": (_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian blur": (_gaussian_blur, (0.5, 0.75, 1.0, 1.5, 2.0)),
    "defocus blur": (_defocus_blur, (0.6, 1.0, 1.5, 2.0, 2.5)),
    "motion blur": (_motion_blur, (3, 4, 5, 7, 9)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "fog": (_fog, (0.5, 1.0, 1.5, 2.0, 3.0)),
    "pixelate": (_pixelate, (0.75, 0.5, 0.375, 0.25, 0.1875)),
}
CORRUPTIONS = tuple(_KINDS)
