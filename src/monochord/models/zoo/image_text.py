"""The project's own image-text models: packaged or shipped encoders, joined by projections that ship.

`image-text` is DINOv2-S and MiniLM, `image-text-small` the body of `fashion-vit` and MiniLM, which is quick to tune.
tools/zoo/image_text.py trains the projections; tools/zoo/reports has what was measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.models.shipped import Shipped, checkpoint_file, read_weights, trained
from monochord.models.zoo import dinov2, minilm

if TYPE_CHECKING:
    from torch import nn

WIDTH = 256
PROJECTIONS = ("visual_projection.weight", "text_projection.weight", "logit_scale")


@dataclass(frozen=True, kw_only=True)
class Joined(Shipped):
    """A catalog entry for projections that ship, and the names of the encoders that they join."""

    encoders: tuple[str, str]

    def fetch(self, *, progress: bool = False) -> Path:
        from monochord.models.catalog import entries

        for name in self.encoders:
            entries()[name].fetch(progress=progress)
        return super().fetch(progress=progress)


def load(folder: Path, dtype: Any, *, vision: str, checkpoint: int | str = "final") -> nn.Module:
    """An `ImageText`; `checkpoint="init"` has projections that are not trained."""
    from monochord.models.loading import LoadError

    net = towers(vision, dtype)
    if checkpoint != "init":
        said = json.loads((folder / "net.json").read_text(encoding="utf8"))
        state = read_weights(checkpoint_file(folder, said["steps"], checkpoint))
        if set(state) != set(PROJECTIONS):
            raise LoadError(f"{folder.name}: {', '.join(PROJECTIONS)} expected, found {', '.join(state) or 'nothing'}")
        net.load_state_dict(state, strict=False)
    net.name_or_path = folder.name
    moved: nn.Module = net.to(dtype)
    return moved


def towers(vision: str, dtype: Any = None) -> Any:
    """The encoders `vision` and MiniLM with projections at their random start."""
    import torch

    from monochord.models.loading import load as load_model
    from monochord.models.nets.image_text import ImageText

    seen: Any = load_model(vision, dtype=dtype)
    net = ImageText(getattr(seen, "vit", seen), load_model("minilm", dtype=dtype), WIDTH)
    generator = torch.Generator().manual_seed(0)
    for projection in (net.visual_projection, net.text_projection):
        torch.nn.init.orthogonal_(projection.weight, generator=generator)
    return net


def processor(folder: Path, *, vision: str, **options: Any) -> Any:
    """Texts and pictures; `options` are those of the processor of pictures (`size=84`)."""
    from monochord.models.loading import processor as processor_of
    from monochord.models.nets.image_text import ImageTextProcessor

    return ImageTextProcessor(processor_of("minilm"), processor_of(vision, **options))


def _entry(name: str, vision: str, packages: tuple[Any, ...], parameters: int, title: str) -> Joined:
    return Joined(
        name=name,
        kind="image-text",
        title=title,
        licence="Apache-2.0; the projections are ours, their pictures under MIT, GPL-2.0-or-later and public domain",
        package=packages,
        encoders=(vision, "minilm"),
        parameters=parameters,
        architecture="ImageText",
        load=partial(load, vision=vision),
        processor=partial(processor, vision=vision),
    )


_SEES, _READS = dinov2.ENTRIES[0].packages, minilm.ENTRIES[0].packages
ENTRIES = trained(
    _entry("image-text", "dinov2-s", _SEES + _READS, 45_064_705, "DINOv2-S and MiniLM, joined by our own projections"),
    _entry("image-text-small", "fashion-vit", _READS, 26_947_713, "fashion-vit and MiniLM, joined by projections"),
)
