"""A simulated brain written to disk in the layouts that real data come in, so that code for these runs on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.formats import algonauts, nsd
from monochord.data.formats._files import need
from monochord.data.neural import NeuralData
from monochord.data.simbrain.brain import SimBrain
from monochord.data.simbrain.series import TR, parcels, series
from monochord.data.simbrain.sheet import CELLS, ROIS

ATLAS = "simbrain"
SUBJECTS = 8  # that the design of the Natural Scenes Dataset has room for
TASK = "scenes"


def write(
    brain: SimBrain, root: Path | str, format: str = "nsd", subjects: Sequence[int] | None = None, **sizes: int
) -> Path:
    """Write subjects (all by default) below `root`, a new or empty folder; that folder.

    The cortical sheet is one slice of 64 by 64 voxels. The layouts of scans, "bids" and "parcellated", take
    `scans` and `runs`. Raises `DataError` for another layout and for a folder that has something in it.
    """
    root = Path(root)
    writers: dict[str, Callable[..., None]] = {"nsd": _nsd, "algonauts": _algonauts}
    writers |= {"bids": _bids, "parcellated": _parcellated}
    if format not in writers:
        raise DataError(f"no layout {format!r}: use one of {', '.join(writers)}")
    if root.exists() and any(root.iterdir()):
        raise DataError(f"{root} is not empty: nothing was written")
    root.mkdir(parents=True, exist_ok=True)
    writers[format](brain, root, range(brain.subjects) if subjects is None else subjects, **sizes)
    return root


def _nsd(brain: SimBrain, root: Path, subjects: Sequence[int]) -> None:
    from scipy.io import savemat

    h5py = need("h5py", "brain", root)
    if brain.subjects > SUBJECTS:
        raise DataError(f"{brain.subjects} subjects: the layout has room for {SUBJECTS}")
    design = root / nsd.DESIGN
    design.parent.mkdir(parents=True)
    seen = np.stack([brain.ids(min(number, brain.subjects - 1)) + 1 for number in range(SUBJECTS)])
    shared = np.arange(1, brain.shared + 1)
    savemat(design, {"masterordering": brain.order()[None] + 1, "subjectim": seen, "sharedix": shared[None]})
    stimuli = root / nsd.STIMULI
    stimuli.parent.mkdir(parents=True)
    with h5py.File(stimuli, "w") as file:
        shape = (int(seen[: brain.subjects].max()), *brain.images(np.arange(1)).shape[1:])
        bricks = file.create_dataset("imgBrick", shape, np.uint8, chunks=(1, *shape[1:]))
        for number in subjects:
            ids = brain.ids(number)
            for rows in np.array_split(ids, 1 + len(ids) // 500):
                bricks[rows] = brain.images(rows)
    for number in subjects:
        _nsd_subject(brain, root, number)


def _nsd_subject(brain: SimBrain, root: Path, number: int) -> None:
    h5py = need("h5py", "brain", root)
    data = brain.subject(number).data
    home = root / f"nsddata/ppdata/{data.subject}/{nsd.SPACE}/roi"
    labels = root / f"nsddata/freesurfer/{data.subject}/label"
    stored = root / f"nsddata_betas/ppdata/{data.subject}/{nsd.SPACE}/{nsd.BETAS}"
    for folder in (home, labels, stored):
        folder.mkdir(parents=True)
    _save(home / f"{nsd.MASK}.nii.gz", _volume(np.ones(data.shape[1], np.int16), data))
    regions = np.array([ROIS.index(name) + 1 for name in data.roi.tolist()], np.int16)
    _save(home / f"{ATLAS}.nii.gz", _volume(regions, data))
    names = ["0 Unknown", *(f"{place} {name}" for place, name in enumerate(ROIS, start=1))]
    (labels / f"{ATLAS}.mgz.ctab").write_text("\n".join(names) + "\n", encoding="utf8")
    _save(stored / "ncsnr.nii.gz", _volume(data.ncsnr.astype(np.float32), data))
    for session, start in enumerate(range(0, data.shape[0], nsd.SESSION), start=1):
        betas = np.round(data.responses[start : start + nsd.SESSION] * nsd.SCALE)
        if np.abs(betas).max() > np.iinfo(np.int16).max:
            raise DataError(f"{data.subject}: betas beyond {np.iinfo(np.int16).max / nsd.SCALE:.0f} can't be stored")
        volumes = np.stack([_volume(row.astype(np.int16), data) for row in betas])
        with h5py.File(stored / f"betas_session{session:02d}.hdf5", "w") as file:
            file.create_dataset("betas", data=volumes.transpose(0, 3, 2, 1), compression="gzip", compression_opts=1)


def _algonauts(brain: SimBrain, root: Path, subjects: Sequence[int]) -> None:
    """Means over repetitions; the left half of the sheet is the left hemisphere."""
    from PIL import Image

    for number in subjects:
        subject = brain.subject(number)
        home = root / subject.data.subject
        for split, data in (("training", subject.train.average()), ("test", subject.test.average())):
            folder = home / f"{split}_split/{split}_images"
            folder.mkdir(parents=True)
            pairs = zip(data.stimulus_ids.tolist(), brain.images(data.stimulus_ids), strict=True)
            for place, (stimulus, image) in enumerate(pairs, start=1):
                name = f"{split.removesuffix('ing')}-{place:04d}_nsd-{stimulus:05d}.png"
                Image.fromarray(image).save(folder / name)
        train, left = subject.train.average(), subject.data.coords[:, 1] < CELLS // 2
        (home / algonauts.FMRI).mkdir(parents=True)
        (home / "roi_masks").mkdir()
        regions = np.array([ROIS.index(name) + 1 for name in train.roi.tolist()])
        for side, here in zip(algonauts.SIDES, (left, ~left), strict=True):
            np.save(home / algonauts.FMRI / f"{side}_training_fmri.npy", train.responses[:, here])
            np.save(home / f"roi_masks/{side}.{ATLAS}_challenge_space.npy", regions[here])
        mapping = {0: "Unknown", **dict(enumerate(ROIS, start=1))}
        np.save(home / f"roi_masks/mapping_{ATLAS}.npy", np.array(mapping, dtype=object))


def _bids(brain: SimBrain, root: Path, subjects: Sequence[int], scans: int = 300, runs: int = 2) -> None:
    _json(root / "dataset_description.json", {"Name": "SimBrain", "BIDSVersion": "1.10.0", "DatasetType": "raw"})
    _json(root / f"task-{TASK}_bold.json", {"TaskName": TASK, "RepetitionTime": TR})
    names = []
    for number in subjects:
        names.append(f"sub-{number + 1:02d}")
        folder = root / names[-1] / "func"
        folder.mkdir(parents=True)
        for run in range(1, runs + 1):
            data = series(brain, number, scans, run)
            stem = f"{names[-1]}_task-{TASK}_run-{run}"
            _save(folder / f"{stem}_bold.nii.gz", _volume(data.responses.T, data))
            _events(folder / f"{stem}_events.tsv", data)
    (root / "participants.tsv").write_text("\n".join(["participant_id", *names]) + "\n", encoding="utf8")


def _parcellated(brain: SimBrain, root: Path, subjects: Sequence[int], scans: int = 300, runs: int = 2) -> None:
    _json(root / "timeseries.json", {"RepetitionTime": TR})
    for number in subjects:
        for run in range(1, runs + 1):
            data = parcels(brain, number, scans, run)
            names = [f"{network}_{place:03d}" for place, network in enumerate(data.roi.tolist())]
            rows = ["\t".join(f"{value:.6g}" for value in row) for row in data.responses.tolist()]
            stem = f"sub-{number + 1:02d}"
            (root / f"{stem}_ts_run_{run:02d}.tsv").write_text("\n".join(["\t".join(names), *rows]) + "\n", "utf8")
            _events(root / f"{stem}_task-{TASK}_run-{run:02d}_events.tsv", data)
    regions = [f"{name}\t{name.split('_')[0]}" for name in names]
    (root / "regions.tsv").write_text("\n".join(["name\tnetwork", *regions]) + "\n", encoding="utf8")


def _volume(values: np.ndarray, data: NeuralData) -> np.ndarray:
    """A value, or a row of scans, a voxel as a volume of one slice: (64, 64, 1) or (64, 64, 1, scans)."""
    volume = np.zeros((CELLS, CELLS, 1, *values.shape[1:]), values.dtype)
    volume[data.coords[:, 0], data.coords[:, 1], 0] = values
    return volume


def _save(file: Path, volume: np.ndarray) -> None:
    nibabel = need("nibabel", "brain", file)
    image = nibabel.Nifti1Image(volume, np.diag([1.8, 1.8, 1.8, 1.0]))
    if volume.ndim == 4:
        image.header.set_zooms((1.8, 1.8, 1.8, TR))
    nibabel.save(image, file)


def _events(file: Path, data: NeuralData) -> None:
    rows = [f"{onset:g}\t{duration:g}\t{kind}" for onset, duration, kind in zip(*data.events.values(), strict=True)]
    file.write_text("\n".join(["onset\tduration\ttrial_type", *rows]) + "\n", encoding="utf8")


def _json(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf8")
