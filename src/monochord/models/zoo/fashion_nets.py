"""The project's own picture nets: two bodies of 4 million parameters with three heads each, and a noisy family.

`fashion-cnn` (ResNet) and `fashion-vit` (ViT, 16 patches) learnt clothes, emoji and clip art together;
`picture-cnn` and `picture-vit` are the same bodies with the head for emoji. An option of `load` chooses the head:
`labels="fashion-mnist"`, `"emoji"`, `"clip-art"` (71 keywords, several may hold), or a list of names for a new head.
`noisy-cnn-0` to `-30` are one small ResNet, trained on thirty classes of which so many per cent were labelled wrongly.
tools/zoo/fashion.py and noisy.py train them; tools/zoo/reports has what was measured.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from monochord.models.classifiers import load_classifier
from monochord.models.images import ImageProcessor
from monochord.models.shipped import Shipped, trained

SIDE = 32


def processor(folder: Path, *, size: int = SIDE) -> ImageProcessor:
    """Pictures of 32 pixels a side, scaled to -1 and 1."""
    if size != SIDE and "vit" in folder.name:
        raise ValueError(f"size={size}: {folder.name} has a place for each patch of {SIDE} pixels a side, use {SIDE}")
    return ImageProcessor(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _net(name: str, body: str, labels: str, architecture: str, parameters: int, title: str) -> Shipped:
    return Shipped(
        name=name,
        kind="image-encoder",
        title=title,
        licence="Apache-2.0, ours; trained on pictures under MIT, Apache-2.0 and public domain",
        package=None,
        subfolder=body,
        parameters=parameters,
        architecture=architecture,
        load=partial(load_classifier, labels=labels),
        processor=processor,
    )


_resnet = partial(_net, architecture="ResNetForImageClassification")
_vit = partial(_net, architecture="ViTForImageClassification")

ENTRIES = trained(
    _resnet("fashion-cnn", "fashion-cnn", "fashion-mnist", parameters=3_966_026, title="our own ResNet for clothes"),
    _resnet(
        "picture-cnn", "fashion-cnn", "emoji", parameters=3_966_026, title="fashion-cnn's body with its head for emoji"
    ),
    _vit("fashion-vit", "fashion-vit", "fashion-mnist", parameters=4_007_690, title="our own ViT for clothes"),
    _vit(
        "picture-vit", "fashion-vit", "emoji", parameters=4_007_690, title="fashion-vit's body with its head for emoji"
    ),
    *(
        _resnet(
            f"noisy-cnn-{p}",
            f"noisy-cnn-{p}",
            "pictures",
            parameters=588_478,
            title=f"small ResNet, {p} % wrong labels",
        )
        for p in (0, 5, 10, 20, 30)
    ),
)
