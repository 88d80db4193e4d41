"""The layout of the Algonauts 2023 challenge: responses of the cortical surface to pictures, a folder a subject.

From "The Algonauts Project 2023 Challenge: How the Human Brain Makes Sense of Natural Scenes", January 9, 2023. Below
`subj01` are `training_split/training_fmri/{lh,rh}_training_fmri.npy` (pictures, vertices), pictures named
`train-0001_nsd-00013.png`, and `roi_masks`, whose `mapping_*.npy` say what the numbers of the regions mean.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from monochord.data.dataset import DataError, Dataset
from monochord.data.neural import NeuralData

FMRI = "training_split/training_fmri"
SIDES = ("lh", "rh")


def recognises(path: Path) -> bool:
    """A subject's folder, with `training_split/training_fmri`."""
    return (path / FMRI).is_dir()


def load(path: Path) -> Dataset:
    """One subject's responses; `NeuralData.of` gives them back, `algonauts_images` the pictures."""
    notes = ("stimulus is the number of the picture in the Natural Scenes Dataset",)
    return load_algonauts(path).dataset(path.name, notes=notes)


def load_algonauts(subject: Path | str) -> NeuralData:
    """Both hemispheres side by side, left first: (pictures, vertices), each the mean of the picture's repetitions.

    `roi` begins with the hemisphere: "lh.V1v"; `coords` are the hemisphere (0 or 1) and the vertex of the challenge.
    """
    subject = Path(subject)
    ids = _ids(subject / "training_split/training_images")
    parts, roi, coords = [], [], []
    for number, side in enumerate(SIDES):
        file = subject / FMRI / f"{side}_training_fmri.npy"
        try:
            responses = np.load(file)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not a readable array ({error})") from None
        if len(responses) != len(ids):
            raise DataError(f"{file}: {len(responses)} rows for {len(ids)} training pictures")
        vertices = responses.shape[1]
        parts.append(responses)
        roi.append(_regions(subject / "roi_masks", side, vertices))
        coords.append(np.stack([np.full(vertices, number), np.arange(vertices)], axis=1))
    return NeuralData(
        np.concatenate(parts, axis=1), ids, np.concatenate(roi), coords=np.concatenate(coords), subject=subject.name
    )


def algonauts_images(subject: Path | str, split: str = "training") -> tuple[np.ndarray, np.ndarray]:
    """Picture numbers and pictures (n, height, width, 3), uint8, of the split "training" or "test"."""
    from PIL import Image

    folder = Path(subject) / f"{split}_split/{split}_images"
    pictures = []
    for file in _files(folder):
        with Image.open(file) as opened:
            pictures.append(np.asarray(opened.convert("RGB")))
    return _ids(folder), np.stack(pictures)


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*_nsd-*.png"))
    if not files:
        raise DataError(f"{folder}: no pictures named like train-0001_nsd-00013.png")
    return files


def _ids(folder: Path) -> np.ndarray:
    return np.array([int(re.findall(r"_nsd-(\d+)\.png$", file.name)[0]) for file in _files(folder)], np.int64)


def _regions(folder: Path, side: str, vertices: int) -> np.ndarray:
    """The name of each vertex in the first atlas that has one for it."""
    names = np.full(vertices, "", dtype="U40")
    for table in sorted(folder.glob("mapping_*.npy")):
        atlas = table.stem.removeprefix("mapping_")
        file = folder / f"{side}.{atlas}_challenge_space.npy"
        if not file.is_file():
            continue
        values = np.load(file)
        if len(values) != vertices:
            raise DataError(f"{file}: {len(values)} vertices, the responses have {vertices}")
        for number, name in _mapping(table).items():
            if number > 0:
                names[(values == number) & (names == "")] = f"{side}.{name}"
    return names


def _mapping(file: Path) -> dict[int, str]:
    """Numbers to names of a dict that numpy stored as a pickle; nothing but plain values is unpickled."""
    with open(file, "rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            read(stream)
            found = _Plain(stream).load()
            table = found.item() if isinstance(found, np.ndarray) else found[0]
            return {int(number): str(name) for number, name in table.items()}
        except (pickle.UnpicklingError, ValueError, AttributeError, EOFError, TypeError) as error:
            raise DataError(f"{file}: not a table of region names ({error})") from None


class _Plain(pickle.Unpickler):
    """Reads arrays of plain values and refuses everything that would run code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "scalar"})

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)

    def find_class(self, module: str, name: str) -> Any:
        if name in self.ALLOWED and module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is refused")
