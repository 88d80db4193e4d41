"""What is measured of the diffusion nets: losses beside guesses, distances between sets, attributes of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

import monochord as mc
from monochord.data.painting import ATTRIBUTES, PLACES, read_attributes

WIDTHS = (0.4, 0.7, 1.0, 1.5, 2.5, 4.0)


# Losses


@torch.no_grad()
def losses_at(
    denoiser: Callable[[Tensor, Tensor], Tensor], clean: Tensor, known: Tensor, low: float, high: float
) -> dict[str, float]:
    """Mean square error of the clean picture, at noise levels spread in log between `low` and `high`."""
    generator = torch.Generator().manual_seed(0)
    share = (torch.randperm(len(clean), generator=generator) + 0.5) / len(clean)
    sigma = low * (high / low) ** share
    noisy = clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=generator)
    made = torch.cat([denoiser(x, s) for x, s in zip(noisy.split(64), sigma.split(64), strict=True)])
    return {"net": _mse(made, clean), **guesses(noisy, sigma, clean, known)}


def guesses(noisy: Tensor, sigma: Tensor, clean: Tensor, known: Tensor) -> dict[str, float]:
    """Guesses without a net, `noisy` being clean plus noise of `sigma`: the mean picture; the noisy picture, pulled to
    the mean as far as is best for pixels that know nothing of each other; the best of six blurs, chosen afterwards."""
    mean, variance = known.mean(0), known.var(0)
    level = sigma[:, None, None, None] ** 2
    pulled = mean + variance / (variance + level) * (noisy - mean)
    blurred = {width: _mse(_blur(noisy, width), clean) for width in WIDTHS}
    return {
        "mean picture": _mse(mean.expand_as(clean), clean),
        "pulled to the mean": _mse(pulled, clean),
        "best blur": min(blurred.values()),
    }


@torch.no_grad()
def losses_by_timestep(model: Any, test: Any, train: Any, n: int = 320) -> dict[str, dict[str, float]]:
    """The same of a text-to-image net, by fifths of the timesteps."""
    clean, known = _pixels(test["image"][:n]), _pixels(train["image"][:4000])
    texts = model.tokenize(test["text"][:n])
    alphas = model.scheduler.alphas_cumprod
    found = {}
    for first in range(0, 1000, 200):
        generator = torch.Generator().manual_seed(first)
        steps = first + (torch.arange(n) * 200) // n
        noise = torch.randn(clean.shape, generator=generator)
        signal, spread = (x.sqrt()[:, None, None, None] for x in (alphas[steps], 1 - alphas[steps]))
        noisy = signal * clean + spread * noise
        parts = zip(noisy.split(64), steps.split(64), texts.split(64), strict=True)
        velocity = torch.cat([model(*part).sample for part in parts])
        made = signal * noisy - spread * velocity
        sigma = (spread / signal)[:, 0, 0, 0]
        found[f"{first} to {first + 199}"] = {
            "net": _mse(made, clean),
            **guesses(noisy / signal, sigma, clean, known),
        }
    return found


@torch.no_grad()
def losses_by_caption(model: Any, test: Any, n: int = 320) -> dict[str, float]:
    """The training loss with the right caption, one of another picture, and none."""
    clean, texts = _pixels(test["image"][:n]), list(test["text"][:n])
    found = {}
    for name, said in {"right": texts, "another's": [*texts[1:], texts[0]], "none": [""] * n}.items():
        generator = torch.Generator().manual_seed(0)
        parts = zip(clean.split(64), model.tokenize(said).split(64), strict=True)
        found[name] = round(float(torch.cat([model.loss(x, ids, generator) for x, ids in parts]).mean()), 4)
    return found


# Sets of pictures


def dinov2_features(pictures: Tensor) -> np.ndarray:
    """Features (n, 384) of pictures between -1 and 1, grey or coloured, seen at 56 pixels."""
    model, process = mc.load("dinov2-s"), mc.processor("dinov2-s", size=56)
    made = []
    for part in to_bytes(pictures).split(64):
        with torch.inference_mode():
            images = part[:, 0].numpy() if part.shape[1] == 1 else part.permute(0, 2, 3, 1).numpy()
            made.append(model(**process(images)).last_hidden_state[:, 0])
    return torch.cat(made).numpy()


def gaussian_like(pictures: Tensor, n: int) -> Tensor:
    """`n` pictures of the Gaussian that has the mean and covariance of `pictures`."""
    flat = pictures.flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    noise = torch.randn(n, len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = flat.mean(0) + (noise * values.clamp(min=0).sqrt()) @ vectors.T
    return made.float().reshape(n, *pictures.shape[1:])


def nearest_rms(made: Tensor, test: Tensor, train: Tensor) -> dict[str, float]:
    """The median distance to the nearest training picture, a root mean square over pixels."""
    found = {}
    for name, pictures in {"samples": made, "test pictures": test}.items():
        distance = torch.cdist(pictures.flatten(1), train.flatten(1)).min(1).values / pictures[0].numel() ** 0.5
        found[name] = round(float(distance.median()), 4)
    return found


def save_sheet(pictures: Tensor, file: Path, columns: int) -> None:
    """Pictures side by side as a PNG."""
    from PIL import Image

    images = to_bytes(pictures).permute(0, 2, 3, 1).numpy()
    rows = len(images) // columns
    side = images.shape[1]
    sheet = images[: rows * columns].reshape(rows, columns, side, side, -1).transpose(0, 2, 1, 3, 4)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.reshape(rows * side, columns * side, -1).squeeze()).save(file, optimize=True)


# Attributes


def accuracies(judge: Any, pictures: Tensor, wanted: Any) -> dict[str, float]:
    """The share of pictures whose attributes are those wanted, by the judge, and by rule where there is one."""
    read = {name: torch.cat([judge.read(part)[name] for part in pictures.split(256)]) for name in ATTRIBUTES}
    right = {name: (read[name].numpy() == wanted[name]) for name in ATTRIBUTES}
    found = {name: _share(values) for name, values in right.items()}
    found["all four"] = _share(np.logical_and.reduce(list(right.values())))
    by_rule = read_attributes(to_bytes(pictures).permute(0, 2, 3, 1).numpy())
    return found | {f"{name} by rule": _share(values == wanted[name]) for name, values in by_rule.items()}


def chance() -> dict[str, float]:
    """Of a guess that knows how often each value comes; of places six in ten are large."""
    sizes = {name: len(values) for name, values in ATTRIBUTES.items()}
    return {name: round(0.6**2 + 2 * 0.2**2 if name == "place" else 1 / size, 3) for name, size in sizes.items()} | {
        "all four": round(
            (0.6**2 + 2 * 0.2**2) / np.prod([size for name, size in sizes.items() if len(PLACES) != size]), 5
        )
    }


def to_bytes(pictures: Tensor) -> Tensor:
    """Between -1 and 1 to uint8."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte()


def _pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _blur(pictures: Tensor, width: float) -> Tensor:
    """Gaussian blur of standard deviation `width`, edges repeated."""
    reach = max(1, round(3 * width))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * width**2))
    kernel = (kernel / kernel.sum()).expand(pictures.shape[1], 1, 1, -1)
    for axis in (kernel, kernel.transpose(2, 3)):
        border = (reach, reach, 0, 0) if axis.shape[3] > 1 else (0, 0, reach, reach)
        pictures = conv2d(pad(pictures, border, mode="replicate"), axis, groups=pictures.shape[1])
    return pictures


def _mse(one: Tensor, other: Tensor) -> float:
    return round(float((one - other).square().mean()), 5)


def _share(values: np.ndarray) -> float:
    return round(float(np.mean(values)), 4)
