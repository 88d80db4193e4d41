"""The Brain Imaging Data Structure: functional runs of a subject as NIfTI, with their events.

From "The brain imaging data structure, a format for organizing and describing outputs of neuroimaging experiments",
June 21, 2016. Read are `sub-*/[ses-*/]func/*_bold.nii.gz`, `*_events.tsv` and the repetition time of `*_bold.json`, of
the run or, by the principle of inheritance, at the top.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from monochord.data.dataset import DataError, Dataset
from monochord.data.formats._files import need, numbers, read_json, read_table
from monochord.data.neural import NeuralData, joined

BOLD = "_bold.nii.gz"


def recognises(path: Path) -> bool:
    """A folder with `dataset_description.json` and folders of subjects."""
    return (path / "dataset_description.json").is_file() and any(path.glob("sub-*"))


def load(path: Path, *, subject: str = "", task: str = "", mask: str | None = None) -> Dataset:
    """One subject's runs, the first subject's by default; `NeuralData.of` gives them back."""
    found = load_bids(path, subject, task, mask=mask)
    return found.dataset(path.name, notes=(f"sub-{found.subject}",))


def load_bids(root: Path | str, subject: str = "", task: str = "", *, mask: Path | str | None = None) -> NeuralData:
    """All runs of a subject and task one after the other, (scans, voxels), with events.

    `mask` is a NIfTI file of the same grid; without one, voxels that change in every run are taken. `stimulus_ids` is
    the type of trial that was on when a scan began, "" where none was. Raises `DataError` for what is missing, and
    where a subject has several tasks and none is named.
    """
    root = Path(root)
    subjects = sorted(folder.name.removeprefix("sub-") for folder in root.glob("sub-*") if folder.is_dir())
    subject = subject.removeprefix("sub-") or (subjects[0] if subjects else "")
    if subject not in subjects:
        raise DataError(f"{root}: no sub-{subject}: there are {', '.join(subjects) or 'none'}")
    files = sorted((root / f"sub-{subject}").rglob(f"*{BOLD}"))
    tasks = sorted({entity(file, "task") for file in files})
    if not task and len(tasks) == 1:
        task = tasks[0]
    if task not in tasks:
        raise DataError(f"{root}/sub-{subject}: task {task!r} is not among {', '.join(tasks) or 'any'}: name one")
    files = [file for file in files if entity(file, "task") == task]
    volumes = [_volume(file) for file in files]
    if len({volume.shape[:3] for volume in volumes}) != 1:
        raise DataError(f"{files[0].parent}: runs of different grids, {sorted({v.shape[:3] for v in volumes})}")
    inside = _volume(Path(mask)) > 0 if mask else np.all([volume.std(axis=3) > 0 for volume in volumes], axis=0)
    if inside.shape != volumes[0].shape[:3] or not inside.any():
        raise DataError(f"the mask {inside.shape} has no voxel of the grid {volumes[0].shape[:3]}")
    runs = [_run(root, file, volume[inside].T, subject) for file, volume in zip(files, volumes, strict=True)]
    return replace(joined(runs), coords=np.argwhere(inside))


def entity(file: Path, name: str) -> str:
    """The value of an entity in a file's name: "faces" for `task` in `sub-01_task-faces_bold.nii.gz`."""
    found = re.search(rf"(?:^|_){name}-([A-Za-z0-9]+)", file.name)
    return found.group(1) if found else ""


def read_events(file: Path) -> dict[str, np.ndarray]:
    """Onset and duration in seconds, and the type of trial, of an events table."""
    table = read_table(file)
    for column in ("onset", "duration"):
        if column not in table:
            raise DataError(f"{file}: no column {column} among {', '.join(table)}")
    onset, duration = (numbers(file, name, table[name]) for name in ("onset", "duration"))
    kinds = table.get("trial_type") or ["event"] * len(onset)
    return {"onset": onset, "duration": np.nan_to_num(duration), "trial_type": np.array(kinds)}


def shown(events: dict[str, np.ndarray], times: np.ndarray) -> np.ndarray:
    """The type of trial that is on at each time, "" where none is; of several, the last that began."""
    found = np.full(len(times), "", dtype=events["trial_type"].dtype if len(events["trial_type"]) else "U1")
    for onset, duration, kind in zip(*events.values(), strict=True):
        found[(times >= onset - 1e-6) & (times < onset + duration - 1e-6)] = kind
    return found


def _run(root: Path, file: Path, responses: np.ndarray, subject: str) -> NeuralData:
    tr = _repetition_time(root, file)
    table = file.with_name(file.name.replace(BOLD, "_events.tsv"))
    names = ("onset", "duration", "trial_type")
    events = read_events(table) if table.is_file() else {name: np.array([]) for name in names}
    seen = shown(events, np.arange(len(responses)) * tr)
    return NeuralData(responses, seen, subject=subject, tr=tr, events=events)


def _repetition_time(root: Path, file: Path) -> float:
    places = [file.with_name(file.name.replace(".nii.gz", ".json")), root / f"task-{entity(file, 'task')}_bold.json"]
    for place in places:
        if place.is_file() and "RepetitionTime" in (found := read_json(place)):
            return float(found["RepetitionTime"])
    nibabel = need("nibabel", "brain", file)
    zooms = nibabel.load(file).header.get_zooms()
    if len(zooms) == 4 and zooms[3] > 0:
        return float(zooms[3])
    raise DataError(f"{file}: no RepetitionTime in {places[0].name} or {places[1].name}")


def _volume(file: Path) -> np.ndarray:
    nibabel = need("nibabel", "brain", file)
    try:
        return nibabel.load(file).get_fdata(dtype=np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{file}: not a readable NIfTI file ({str(error).splitlines()[0]})") from None
