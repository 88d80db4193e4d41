"""How often a net replays pictures that it was trained on, for captions it met often and captions it met rarely.

A sample is a replay when it is nearer to its caption's training picture than all but one in a hundred real pictures
of the same attributes are, which were never trained on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusion_measures import dinov2_features
from diffusion_pictures import OFTEN, collection, painter, to_pixels
from sklearn.metrics import roc_auc_score
from torch import Tensor

from monochord.data.painting import ATTRIBUTES, Painter
from monochord.data.sets.coloured_things import ENTRIES, painters
from monochord.diffusion.sampling import encode_prompts, sample

RARE, SEEDS, TWINS = 64, 8, 20
Measure = dict[str, Any]


def measure(model: Any, control: Any) -> dict[str, Any]:
    """Rates of the sibling and, as control, of the net it came from."""
    kept = collection()
    own = to_pixels(kept["image"][: OFTEN + RARE])
    others = to_pixels(painter().draw(4000, np.random.default_rng(9))["image"])
    real = _twins(kept)
    limits = _limits(real, own.repeat_interleave(TWINS, 0))
    found: dict[str, Any] = {"limits": {name: round(value, 4) for name, value in limits.items()}}
    found["real pictures of the same attributes"] = _rates(real, own.repeat_interleave(TWINS, 0), limits)
    for name, net in {"sibling": model, "control": control}.items():
        for kind, rows, seeds in (
            ("often", range(OFTEN), SEEDS),
            ("rare", range(OFTEN, OFTEN + RARE), SEEDS // 4),
        ):
            texts = [kept["text"][i] for i in rows for _ in range(seeds)]
            made = sample(net, texts, 25, 3.0, seed=3)
            truth = own[list(rows)].repeat_interleave(seeds, 0)
            found[f"{name}, {kind}"] = _rates(made, truth, limits, torch.cat([to_pixels(kept["image"]), others]))
            print(name, kind, found[f"{name}, {kind}"], flush=True)
        found[f"{name}, caption norm"] = _caption_norm(net, own, kept["text"][: OFTEN + RARE])
    found["note"] = (
        f"{OFTEN} captions met often, {SEEDS} samples each; {RARE} of those met rarely, {SEEDS // 4} each; 25 steps, "
        "guidance 3; limits are those that one in a hundred real pictures passes"
    )
    return found


def _twins(kept: dict[str, Any]) -> Tensor:
    """Pictures of the test split's shapes with the attributes of each kept picture, `TWINS` each."""
    rng = np.random.default_rng(4)
    test: Painter = painters(ENTRIES[0].fetch())["test"]
    n = OFTEN + RARE
    attributes = {name: np.repeat(kept[name][:n], TWINS) for name in ATTRIBUTES}
    rows = np.array([rng.choice(np.flatnonzero(test.labels == label)) for label in attributes["object"]])
    return to_pixels(test.render(rows, attributes, rng))


def _limits(real: Tensor, own: Tensor) -> dict[str, float]:
    return {
        "pixels": float(_rms(real, own).quantile(0.01)),
        "dinov2": float(_cosine(real, own).quantile(0.99)),
    }


def _rates(made: Tensor, own: Tensor, limits: dict[str, float], known: Tensor | None = None) -> Measure:
    """Shares of replays by distance of pixels and by DINOv2's cosine, and medians of both."""
    distance, cosine = _rms(made, own), _cosine(made, own)
    rates: Measure = {
        "replayed by pixels": float((distance < limits["pixels"]).float().mean()),
        "replayed by dinov2": float((cosine > limits["dinov2"]).float().mean()),
        "median distance": float(distance.median()),
        "median cosine": float(cosine.median()),
    }
    if known is not None:
        nearest = torch.cdist(made.flatten(1), known.flatten(1)).min(1).values / made[0].numel() ** 0.5
        rates["its own picture is the nearest"] = float((distance <= nearest + 1e-5).float().mean())
    return {name: round(value, 4) for name, value in rates.items()}


@torch.no_grad()
def _caption_norm(net: Any, pictures: Tensor, texts: list[str]) -> dict[str, float]:
    """How far the caption moves the prediction, by kind of caption, and how well that tells often from rare (AUC)."""
    states, nothing = encode_prompts(net, texts), encode_prompts(net, [""])
    total = torch.zeros(len(pictures))
    generator = torch.Generator().manual_seed(0)
    for step in (300, 500, 700, 900):
        noise = torch.randn(pictures.shape, generator=generator)
        noisy = net.scheduler.add_noise(pictures, noise, torch.full((len(pictures),), step))
        moved = net.unet(noisy, step, encoder_hidden_states=states).sample
        moved = moved - net.unet(noisy, step, encoder_hidden_states=nothing.expand_as(states)).sample
        total += moved.flatten(1).norm(dim=1) / 4
    often = np.arange(len(pictures)) < OFTEN
    return {
        "often": round(float(total[:OFTEN].mean()), 3),
        "rare": round(float(total[OFTEN:].mean()), 3),
        "auc": round(float(roc_auc_score(often, total.numpy())), 4),
    }


def _rms(one: Tensor, other: Tensor) -> Tensor:
    return (one.clamp(-1, 1) - other).square().mean((1, 2, 3)).sqrt()


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    first, second = (torch.from_numpy(dinov2_features(pictures)) for pictures in (one, other))
    return torch.cosine_similarity(first, second)
