"""Folders of sounds (WAV, FLAC, Ogg): a folder a class; `train`, `validation` and `test` above them are the splits."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from monochord.data.audio import RATE, Clips, read_sound
from monochord.data.dataset import DataError, Dataset, Split
from monochord.data.formats._files import class_of, files_by_split, has_files

SOUNDS = (".wav", ".flac", ".ogg")


def recognises(path: Path) -> bool:
    """A folder with sounds at most three levels down."""
    return has_files(path, SOUNDS)


def load(path: Path, *, rate: int = RATE, seed: int = 0) -> Dataset:
    """Sounds as `Clips` resampled to `rate`, with their class as `label`; the file's name is kept as `file`.

    A single split is cut from `seed` into train, validation and test. Raises `DataError` for files in no class folder
    and for those that can't be read.
    """
    splits = files_by_split(path, SOUNDS)
    classes = {split: [class_of(file, path) for file in files] for split, files in splits.items()}
    for split, found in classes.items():
        if None in found:
            raise DataError(f"{splits[split][found.index(None)]}: in no class folder: give each class a folder")
    names = sorted({str(name) for found in classes.values() for name in found})
    parts = {}
    for split, files in splits.items():
        label = np.array([names.index(str(name)) for name in classes[split]], np.int64)
        where = [file.relative_to(path).as_posix() for file in files]
        parts[split] = Split({"audio": _clips(files, rate), "label": label, "file": where})
    if list(parts) == ["train"]:
        parts = _cut(parts["train"], seed)
    return Dataset(name=path.name, task="audio-classification", splits=parts, label_names=tuple(names))


def _clips(files: list[Path], rate: int) -> Clips:
    sounds = []
    for file in files:
        try:
            sounds.append(read_sound(file, rate))
        except (ValueError, RuntimeError, OSError, EOFError, struct.error) as error:
            raise DataError(f"{file}: not a readable sound ({error})") from None
    ends = np.cumsum([len(sound) for sound in sounds])
    return Clips(np.concatenate(sounds), np.concatenate([[0], ends[:-1]]), ends, rate)


def _cut(whole: Split, seed: int) -> dict[str, Split]:
    """80, 10 and 10 % of at least twenty sounds, all of fewer."""
    n, tenth = len(whole), len(whole) // 10
    if n < 20:
        return {"train": whole}
    order = np.random.default_rng(seed).permutation(n)
    rows = np.split(order, [n - 2 * tenth, n - tenth])
    return {name: whole.take(part) for name, part in zip(("train", "validation", "test"), rows, strict=True)}
