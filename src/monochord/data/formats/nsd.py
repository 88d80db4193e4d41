"""The layout of the Natural Scenes Dataset: single-trial betas in a subject's volume, and which picture each was.

From "A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial intelligence", 2021. Read are, below
the root,

    nsddata/experiments/nsd/nsd_expdesign.mat                       order of the pictures
    nsddata/ppdata/subj01/func1pt8mm/roi/*.nii.gz                   masks and regions
    nsddata/freesurfer/subj01/label/*.mgz.ctab                      names of the regions
    nsddata_betas/ppdata/subj01/func1pt8mm/BETAS/betas_session01.hdf5 (or .nii.gz), ncsnr.nii.gz
    nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5                    the pictures
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.dataset import DataError, Dataset
from monochord.data.formats._files import need
from monochord.data.neural import NeuralData

BETAS = "betas_fithrf_GLMdenoise_RR"
SPACE = "func1pt8mm"
MASK = "nsdgeneral"
SESSION = 750  # trials
SCALE = 300  # betas are stored as 300 times percent signal change, int16
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"


def recognises(path: Path) -> bool:
    """A folder with `nsddata` and `nsddata_betas`."""
    return (path / "nsddata").is_dir() and (path / "nsddata_betas").is_dir()


def load(path: Path, *, subject: str | int = 1, mask: str = MASK, average: bool = False) -> Dataset:
    """One subject's responses; `NeuralData.of` gives them back, `nsd_images` the pictures."""
    found = load_nsd(path, subject, mask=mask, average=average)
    notes = (f"{found.subject}, mask {mask}", "stimulus is the picture's number, counted from 0 in all pictures")
    return found.dataset(path.name, notes=notes)


def load_nsd(
    root: Path | str,
    subject: str | int = 1,
    *,
    mask: str = MASK,
    betas: str = BETAS,
    space: str = SPACE,
    average: bool = False,
) -> NeuralData:
    """All sessions that are there, trials by voxels in percent signal change, `runs` being the session.

    `stimulus_ids` count all pictures from 0. `roi` is each voxel's name in the first atlas that has one for it, among
    those with a table of names. `average` gives a row a picture. Raises `DataError` for what is missing.
    """
    root, name = Path(root), subject if isinstance(subject, str) else f"subj{subject:02d}"
    home, stored = root / f"nsddata/ppdata/{name}/{space}", root / f"nsddata_betas/ppdata/{name}/{space}/{betas}"
    if not home.is_dir():
        known = ", ".join(sorted(p.name for p in (root / "nsddata/ppdata").glob("subj*"))) or "none"
        raise DataError(f"{root}: no {name} in {space}: subjects are {known}")
    inside = _volume(home / f"roi/{mask}.nii.gz") > 0
    if not inside.any():
        raise DataError(f"{home}/roi/{mask}.nii.gz: the mask is empty")
    files = sorted(
        f for f in stored.glob("betas_session*") if re.fullmatch(r"betas_session\d+\.(hdf5|nii\.gz)", f.name)
    )
    if not files:
        raise DataError(f"{stored}: no betas_session01.hdf5 or .nii.gz")
    ids, runs, parts = [], [], []
    order = _order(root, name)
    for file in files:
        session = int(re.findall(r"\d+", file.name)[0])
        part = _betas(file, inside)
        first = (session - 1) * SESSION
        if first + len(part) > len(order):
            raise DataError(f"{file}: trials to {first + len(part)}, the design has {len(order)}")
        parts.append(part)
        ids.append(order[first : first + len(part)])
        runs.append(np.full(len(part), session))
    ncsnr = stored / "ncsnr.nii.gz"
    data = NeuralData(
        responses=np.concatenate(parts),
        stimulus_ids=np.concatenate(ids),
        roi=_regions(home, root / f"nsddata/freesurfer/{name}/label", inside, mask),
        ncsnr=_volume(ncsnr)[inside] if ncsnr.is_file() else None,  # type: ignore[arg-type]
        coords=np.argwhere(inside),
        subject=name,
        runs=np.concatenate(runs),
    )
    return data.average() if average else data


def nsd_images(root: Path | str, stimulus_ids: np.ndarray) -> np.ndarray:
    """The pictures of the given numbers, uint8 (n, height, width, 3)."""
    file = Path(root) / STIMULI
    h5py = need("h5py", "brain", file)
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    unique, index = np.unique(stimulus_ids, return_inverse=True)
    with h5py.File(file, "r") as opened:
        return opened["imgBrick"][unique][index]


def nsd_shared(root: Path | str) -> np.ndarray:
    """The numbers, counted from 0, of the pictures that all subjects saw."""
    return np.sort(_design(Path(root))["sharedix"].ravel().astype(np.int64) - 1)


def _order(root: Path, subject: str) -> np.ndarray:
    """The picture of each trial, counted from 0."""
    design = _design(root)
    own = design["subjectim"][int(re.findall(r"\d+", subject)[0]) - 1]
    return own[design["masterordering"].ravel().astype(np.int64) - 1].astype(np.int64) - 1


def _design(root: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        return loadmat(root / DESIGN)
    except (OSError, ValueError) as error:
        raise DataError(f"{root / DESIGN}: not readable ({error})") from None


def _betas(file: Path, inside: np.ndarray) -> np.ndarray:
    """(trials, voxels) in percent signal change."""
    if file.suffix == ".gz":
        return _volume(file)[inside].T.astype(np.float32) / SCALE
    h5py = need("h5py", "brain", file)
    with h5py.File(file, "r") as opened:
        stored = opened["betas"]
        if stored.shape[1:] != inside.shape[::-1]:
            raise DataError(f"{file}: volumes {stored.shape[:0:-1]}, the mask is {inside.shape}")
        blocks = [stored[start : start + 50] for start in range(0, len(stored), 50)]
    return np.concatenate([block.transpose(0, 3, 2, 1)[:, inside].astype(np.float32) / SCALE for block in blocks])


def _regions(home: Path, labels: Path, inside: np.ndarray, mask: str) -> np.ndarray:
    names = np.full(int(inside.sum()), "", dtype="U32")
    for table in sorted(labels.glob("*.mgz.ctab")):
        atlas = table.name.removesuffix(".mgz.ctab")
        file = home / f"roi/{atlas}.nii.gz"
        if atlas == mask or not file.is_file():
            continue
        values = _volume(file)[inside].astype(np.int64)
        for line in table.read_text(encoding="utf8").splitlines():
            number, _, name = line.strip().partition(" ")
            if number.isdigit() and int(number) > 0:
                names[(values == int(number)) & (names == "")] = name.split()[0]
    return names


def _volume(file: Path) -> np.ndarray:
    nibabel = need("nibabel", "brain", file)
    try:
        return np.asanyarray(nibabel.load(file).dataobj)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{file}: not a readable NIfTI file ({str(error).splitlines()[0]})") from None
