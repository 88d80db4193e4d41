"""Train the unconditional EDM denoiser on Fashion-MNIST, 32 by 32 pixels.

python tools/zoo/diffusion_edm.py            # trains (or goes on), ships, measures
"""

from __future__ import annotations

import argparse
from functools import cache

import numpy as np
import torch
from diffusion_training import Run, train
from torch import Tensor, nn

import monochord as mc

SEED = 0


def run() -> Run:
    """3,000 steps of 32 pictures: each of the 55,000 is seen almost twice."""
    return Run("edm-unet", build, loss, steps=3_000, rate=1.5e-3, seed=SEED)


def build() -> nn.Module:
    """The random initialisation."""
    from monochord.models.zoo.pictures import edm

    return edm(SEED)


def loss(net: nn.Module, step: int, batch: int, generator: torch.Generator) -> Tensor:
    """EDM's, of pictures drawn from the training split."""
    images = pictures("train")
    drawn = images[torch.randint(len(images), (batch,), generator=generator).numpy()]
    return net.loss(torch.from_numpy(drawn), generator)  # type: ignore[operator]


@cache
def pictures(split: str) -> np.ndarray:
    """A split of Fashion-MNIST, float32 (n, 1, 32, 32) between -1 and 1, two black pixels around."""
    images = np.asarray(mc.data("fashion-mnist")[split]["image"])
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return (padded[:, None] / np.float32(127.5) - 1).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--train-only", action="store_true", help="neither ship nor measure")
    train(run())
    if not parser.parse_args().train_only:
        from diffusion_report import edm_report

        edm_report(run())


if __name__ == "__main__":
    main()
