"""Haxby's objects: one person's fMRI of one slice while pictures of eight categories are shown, twelve runs.

From "Distributed and Overlapping Representations of Faces and Objects in Ventral Temporal Cortex", September 28, 2001,
subject 1, as PyMVPA ships it. Checked: 1,452 scans of 800 voxels, 864 of them labelled; the category of a block is
found in 0.74 of the cases by ridge regression, one run left out in turn (chance 0.125).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError
from monochord.data.formats._files import need
from monochord.data.neural import NeuralData

RUNS, SCANS, VOXELS, LABELLED = 12, 121, 800, 864
TR = 2.5  # seconds
HOME = "pymvpa2-2.6.5/mvpa2/data/haxby2001"


def convert(package: Path, folder: Path) -> None:
    """All runs as one table of scans, and the blocks as one table of events."""
    nibabel, home = need("nibabel", "brain", "haxby"), package / HOME
    lines = (home / "models/model001/condition_key.txt").read_text(encoding="utf8").splitlines()
    names = {int(line.split()[1][4:]): line.split(maxsplit=2)[2] for line in lines if line.strip()}
    scans, events = [], []
    for run in range(1, RUNS + 1):
        image = nibabel.load(home / f"sub001/BOLD/task001_run{run:03d}/bold_1slice.nii.gz").get_fdata(dtype=np.float32)
        scans.append(image.reshape(-1, image.shape[-1]).T)
        for number, name in names.items():
            file = home / f"sub001/model/model001/onsets/task001_run{run:03d}/cond{number:03d}.txt"
            events += [(run, onset, duration, name) for onset, duration, _ in np.loadtxt(file, ndmin=2).tolist()]
    events.sort()
    runs, onsets, durations, kinds = (np.array(column) for column in zip(*events, strict=True))
    np.savez(
        folder / "haxby.npz",
        responses=np.concatenate(scans),
        coords=np.argwhere(np.ones(image.shape[:3], bool)),
        run=runs,
        onset=onsets,
        duration=durations,
        trial_type=kinds,
    )


def read(folder: Path, *, lag: int = 2) -> Read:
    """All runs one after the other; a scan's stimulus is what was shown `lag` scans before, when blood responds.

    The region of a voxel is "brain" where it has a signal, else "".
    """
    if lag < 0:
        raise DataError(f"haxby: lag={lag} scans must be at least 0")
    with np.load(folder / "haxby.npz") as file:
        parts = dict(file)
    responses = parts["responses"]
    check(len(responses), RUNS * SCANS, "scans")
    check(responses.shape[1], VOXELS, "voxels")
    runs = np.repeat(np.arange(1, RUNS + 1), SCANS)
    events = {name: parts[name] for name in ("onset", "duration", "trial_type", "run")}
    stimulus = np.full(len(responses), "", dtype=parts["trial_type"].dtype)
    for onset, duration, kind, run in zip(*events.values(), strict=True):
        start = (run - 1) * SCANS
        first, last = (min(int(time / TR) + lag, SCANS) for time in (onset, onset + duration))
        stimulus[start + first : start + last] = kind
    if lag == 2:
        check(int((stimulus != "").sum()), LABELLED, "labelled scans")
    roi = np.where(responses.any(axis=0), "brain", "")
    data = NeuralData(responses, stimulus, roi, coords=parts["coords"], tr=TR, runs=runs, events=events)
    notes = (
        "one slice of one person; leave out whole runs to test, scans of a block are not independent",
        f'stimulus is what was shown {lag} scans ({lag * TR:g} s) before; "" is rest',
        "raw signal: remove each run's mean and drift first",
    )
    dataset = data.dataset("haxby", notes=notes)
    return dataset.splits, dataset.notes


ENTRIES = [
    Source(
        name="haxby",
        kind="neural",
        title="fMRI of one person looking at faces, houses and six kinds of objects",
        licence="CC-BY-SA-3.0 (data), MIT (PyMVPA)",
        package=Package(
            "pypi-source",
            "pymvpa2",
            "2.6.5",
            sha256="f98b18e15d012aaa68c0ef6ccf420662df05657673843ab368e7f0adfdda0758",
            size=8_126_622,
            members=("*haxby2001/models/*", "*haxby2001/sub001/model/*", "*bold_1slice.nii.gz", "*COPYING"),
        ),
        convert=convert,
        read=read,
    )
]
