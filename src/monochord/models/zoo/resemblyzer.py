"""Resemblyzer's speaker encoder: a three-layer LSTM that places voices by who speaks.

From "Generalized End-to-End Loss for Speaker Verification", October 28, 2017.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monochord.core.packages import Package
from monochord.models.catalog import Model
from monochord.models.stored import load_state, save_state


def convert(package: Path, folder: Path) -> None:
    """The checkpoint's network as safetensors; what only training needs is left out."""
    import torch

    stored = torch.load(package / "resemblyzer/pretrained.pt", map_location="cpu", weights_only=True)["model_state"]
    save_state(folder, {name: value for name, value in stored.items() if not name.startswith("similarity")})


def load(folder: Path, dtype: Any) -> Any:
    """A `SpeakerEncoder`."""
    from monochord.models.nets.speaker_encoder import SpeakerEncoder

    return load_state(SpeakerEncoder(), folder, dtype)


def processor(folder: Path) -> Any:
    """Waves to mel frames."""
    from monochord.models.nets.speaker_encoder import SpeakerProcessor

    return SpeakerProcessor()


ENTRIES = [
    Model(
        name="resemblyzer",
        kind="audio-encoder",
        title="Resemblyzer's speaker encoder, LSTM with 3 layers of 256",
        licence="Apache-2.0",
        parameters=1_423_616,
        architecture="SpeakerEncoder",
        package=Package(
            "pypi",
            "Resemblyzer",
            "0.1.4",
            sha256="8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
            size=15_747_704,
            members=("resemblyzer/pretrained.pt", "*LICENSE*"),
        ),
        convert=convert,
        load=load,
        processor=processor,
    )
]
