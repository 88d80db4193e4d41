"""Brain waves of people who look at one of many flickering targets: which one is the class.

Codes: "From full calibration to zero training for a code-modulated visual evoked potentials for brain-computer
interface", 2021, as shipped with PyntBCI (five people; a code-lag ridge with one spatial filter finds 0.99, 0.90, 1.00,
0.73 and 0.97 in five folds, chance 0.05). Frequencies: one person's data that came with "Enhancing Detection of SSVEPs
for a High-Speed Brain Speller Using Task-Related Component Analysis", 2018, as shipped with meegkit (plain templates
of one second find 0.375, chance 0.025).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split

PEOPLE, TRIALS, CODES = 5, 100, 20
TARGETS, CHANNELS, SAMPLES, BLOCKS = 40, 9, 1250, 6


def convert_codes(package: Path, folder: Path) -> None:
    """One array of trials a person, and the codes."""
    for person in range(1, PEOPLE + 1):
        with np.load(package / f"pyntbci-1.8.3/pyntbci/data/thielen2021_sub-{person:02d}.npz") as file:
            check(len(file["X"]), TRIALS, f"trials of person {person}")
            np.save(folder / f"eeg-{person}.npy", file["X"])
            np.save(folder / f"label-{person}.npy", file["y"].astype(np.int64))
            np.save(folder / "codes.npy", file["V"])


def read_codes(folder: Path, *, subject: int | None = None) -> Read:
    """Trials `eeg` (8 channels, 2,520 samples at 240 Hz) with the `label` of the target, and the targets' codes.

    `codes` has a row a target: 504 samples of 0 and 1, which repeat five times in a trial.
    """
    people = _chosen(subject, PEOPLE, "cvep-eeg")
    waves = [np.load(folder / f"eeg-{person}.npy", mmap_mode="r") for person in people]
    labels = [np.load(folder / f"label-{person}.npy") for person in people]
    codes = np.load(folder / "codes.npy")
    check(len(codes), CODES, "codes")
    columns = {"eeg": waves[0] if len(waves) == 1 else np.concatenate(waves), "label": np.concatenate(labels)}
    columns["subject"] = np.repeat(people, TRIALS)
    check(len(columns["label"]), TRIALS * len(people), "trials")
    notes = ("240 samples a second; trials of one person are one session", "test on whole blocks or other people")
    return {"trials": Split(columns), "codes": Split({"code": codes})}, notes


def convert_frequencies(package: Path, folder: Path) -> None:
    """Targets by channels by samples by blocks, as (trials, channels, samples)."""
    from scipy.io import loadmat

    eeg = loadmat(package / "meegkit-0.1.3/tests/data/trcadata.mat")["eeg"]
    if eeg.shape != (TARGETS, CHANNELS, SAMPLES, BLOCKS):
        raise DataError(f"ssvep-eeg: an array of {eeg.shape}: the package is not the one that was checked")
    np.save(folder / "eeg.npy", eeg.transpose(3, 0, 1, 2).reshape(-1, CHANNELS, SAMPLES).astype(np.float32))


def read_frequencies(folder: Path) -> Read:
    """Trials `eeg` (9 channels, 1,250 samples at 250 Hz) with the `label` of the target and the `block`."""
    eeg = np.load(folder / "eeg.npy", mmap_mode="r")
    check(len(eeg), TARGETS * BLOCKS, "trials")
    labels, blocks = np.tile(np.arange(TARGETS), BLOCKS), np.repeat(np.arange(BLOCKS), TARGETS)
    notes = ("250 samples a second; six trials a target: leave out whole blocks to test",)
    return {"trials": Split({"eeg": eeg, "label": labels, "block": blocks})}, notes


def _chosen(subject: int | None, people: int, name: str) -> list[int]:
    if subject is not None and not 1 <= subject <= people:
        raise DataError(f"{name} has no subject {subject}: there are 1 to {people}")
    return list(range(1, people + 1)) if subject is None else [subject]


ENTRIES = [
    Source(
        name="cvep-eeg",
        kind="eeg",
        title="EEG of five people who look at one of 20 targets that flicker in pseudo-random codes",
        licence="BSD-3-Clause",
        package=Package(
            "pypi-source",
            "pyntbci",
            "1.8.3",
            sha256="b217e6dfaf2dbcbf3f438f15832fa35b03f0209ae1d84159b2c7148a8680fb22",
            size=45_235_342,
            members=("*data/thielen2021_sub-0*.npz", "*LICENSE"),
        ),
        convert=convert_codes,
        read=read_codes,
    ),
    Source(
        name="ssvep-eeg",
        kind="eeg",
        title="EEG of one person who looks at one of 40 targets that flicker at their own frequencies",
        licence="BSD-3-Clause",
        package=Package(
            "pypi-source",
            "meegkit",
            "0.1.3",
            sha256="c78650a53a224bf6b9cf320967f51f7eceded6c21fac99b0a1d3d86a1f0e22ee",
            size=25_538_284,
            members=("*tests/data/trcadata.mat", "*LICENSE"),
        ),
        convert=convert_frequencies,
        read=read_frequencies,
    ),
]
