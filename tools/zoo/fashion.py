"""Train the picture nets: a ResNet and a ViT of about 4 million parameters on Fashion-MNIST, emoji and clip art.

    python tools/zoo/fashion.py --net cnn      # trains (or goes on), ships, measures
    python tools/zoo/fashion.py --net vit

One body learns all three sets at once and has a head for each: ten kinds of clothes, ten categories of emoji in
Google's style, and the 71 keywords of clip art. Twitter's style is left out, to measure the shift.
"""

from __future__ import annotations

import argparse

import torch
from classify import Net, Part, train
from pictures import SIDE, part, pictures
from torch import nn

from monochord.models.shipped import initialised

SEED = 0
SETS = ("fashion-mnist", "emoji", "clip-art")


def cnn() -> Net:
    """A ResNet of seven basic blocks, 64 to 256 channels."""
    return Net("fashion-cnn", resnet, lambda: parts(88, 20, 20), steps=1100, rate=2e-3, bfloat16=True)


def vit() -> Net:
    """A ViT of six layers of 256, patches of 8 by 8; it sees no picture of clothes twice: they stay as they are."""
    return Net("fashion-vit", transformer, lambda: parts(64, 16, 16, still=True), steps=600, rate=3e-3, muon=True)


NETS = {"cnn": cnn, "vit": vit}


def parts(fashion: int, emoji: int, clip_art: int, *, still: bool = False) -> dict[str, Part]:
    """The three sets, so many rows of each in a batch; `still` clothes are neither moved nor mirrored."""
    rows = zip(SETS, (fashion, emoji, clip_art), strict=True)
    return {name: part(name, n, still=still and name == "fashion-mnist") for name, n in rows}


def labels() -> list[str]:
    """The classes of all heads, in their order."""
    return [f"{name}: {label}" for name in SETS for label in pictures(name).label_names]


def resnet() -> nn.Module:
    """The random initialisation."""
    from transformers import ResNetConfig

    config = ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256],
        depths=[2, 2, 3],
        layer_type="basic",
        num_labels=len(labels()),
        architectures=["ResNetForImageClassification"],
    )
    return initialised(config, SEED).to(memory_format=torch.channels_last)


def transformer() -> nn.Module:
    """The random initialisation."""
    from transformers import ViTConfig

    config = ViTConfig(
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=768,
        image_size=SIDE,
        patch_size=8,
        initializer_range=0.0375,
        num_labels=len(labels()),
        architectures=["ViTForImageClassification"],
    )
    return initialised(config, SEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--net", choices=NETS, required=True)
    parser.add_argument("--train-only", action="store_true", help="neither ship nor measure")
    given = parser.parse_args()
    net = NETS[given.net]()
    train(net)
    if not given.train_only:
        from classified import ship_and_measure

        tests = {name: (name, part(name, 1, "test")) for name in SETS}
        tests["emoji in Twitter's style, never trained"] = ("emoji", part("emoji", 1, "test", style="twitter"))
        ship_and_measure(net, tests)


if __name__ == "__main__":
    main()
