"""Train the net that reads what pictures of coloured things show; reports count with it.

    python tools/zoo/diffusion_judge.py            # trains (or goes on), ships, measures

It sees every pair of thing and colour, the held-out ones too, so that it can judge them.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from diffusion_pictures import painter, to_pixels
from diffusion_training import Run, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from monochord.data.painting import ATTRIBUTES, Painter

SEED = 0


def run() -> Run:
    """2,000 steps of 64 pictures."""
    return Run("pictures-judge", build, loss, steps=2_000, batch=64, rate=2e-3, average=0.995, seed=SEED)


def build() -> nn.Module:
    """The random initialisation."""
    from monochord.models.nets.judge import AttributeJudge

    return AttributeJudge(SEED)


def loss(net: nn.Module, step: int, batch: int, generator: torch.Generator) -> Tensor:
    """Cross-entropy over all attributes; pictures have noise of random strength, one in eight is of a held-out pair."""
    rng = np.random.default_rng((SEED + 5, step))
    usual = painter()
    held = Painter(usual.shapes, usual.labels, composed=True)
    parts: Any = [usual.draw(batch - batch // 8, rng), held.draw(batch // 8, rng)]
    made = {name: np.concatenate([part[name] for part in parts]) for name in ("image", *ATTRIBUTES)}
    pictures = to_pixels(made["image"])
    noise = torch.randn(pictures.shape, generator=generator)
    pictures = pictures + 0.15 * torch.rand(batch, 1, 1, 1, generator=generator) * noise
    logits = net(pictures)
    losses = [cross_entropy(logits[name].float(), torch.from_numpy(made[name]), reduction="none") for name in logits]
    return torch.stack(losses).sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--train-only", action="store_true", help="neither ship nor measure")
    train(run())
    if not parser.parse_args().train_only:
        from diffusion_report import judge_report

        judge_report(run())


if __name__ == "__main__":
    main()
