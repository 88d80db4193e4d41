"""Parcellated time series: a table of scans by regions a run, as `.tsv`, `.csv`, `.npy` or MATLAB `.mat` files.

A folder has files such as `sub-05_ts_run_03.tsv`; beside them may be `*_events.tsv` of the same subject and run, and
`regions.tsv` with the columns `name` and `network`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.dataset import DataError, Dataset
from monochord.data.formats._files import numbers, read_json, read_lines, read_table
from monochord.data.formats.bids import read_events, shown
from monochord.data.neural import NeuralData, joined

SUFFIXES = (".tsv", ".csv", ".npy", ".mat")
SERIES = re.compile(r"(^|[_-])(ts|timeseries|bold|tc)([_.-]|$)", re.IGNORECASE)


def recognises(path: Path) -> bool:
    """A folder with time-series files of subjects, or one such file; no BIDS folder."""
    if path.is_file():
        return path.suffix in (".npy", ".mat") or (path.suffix == ".tsv" and _is_series(path))
    return path.is_dir() and not (path / "dataset_description.json").exists() and bool(_files(path))


def load(path: Path, *, subject: str = "", tr: float | None = None) -> Dataset:
    """One subject's runs, the first subject's by default; `NeuralData.of` gives them back."""
    found = load_parcellated(path, subject, tr=tr)
    return found.dataset(path.stem, notes=(f"sub-{found.subject}",) if found.subject else ())


def load_parcellated(path: Path | str, subject: str = "", *, tr: float | None = None) -> NeuralData:
    """All runs of a subject one after the other, (scans, regions); `roi` has the network, else the region's name.

    Arrays without a header must be longer in time than they have regions, or they are turned. `tr` (seconds) is that
    of `timeseries.json` ("RepetitionTime") where it is not given. Raises `DataError` for what is missing.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    files = _files(path) if path.is_dir() else [path]
    subjects = sorted({_number(file, "sub") for file in files})
    subject = subject.removeprefix("sub-") or subjects[0]
    files = [file for file in files if _number(file, "sub") == subject]
    if not files:
        raise DataError(f"{path}: no time series of sub-{subject}: there are {', '.join(subjects)}")
    sidecar = folder / "timeseries.json"
    if tr is None and sidecar.is_file():
        tr = float(read_json(sidecar)["RepetitionTime"])
    if tr is None:
        raise DataError(f"{path}: the repetition time is not stated: pass tr=2.0 (seconds)")
    networks = _networks(folder / "regions.tsv")
    runs = []
    for file in files:
        names, values = read_series(file)
        roi = np.array([networks.get(name, name) for name in names])
        table = _events(folder, subject, _number(file, "run"))
        events = read_events(table) if table else {name: np.array([]) for name in ("onset", "duration", "trial_type")}
        seen = shown(events, np.arange(len(values)) * tr)
        runs.append(NeuralData(values, seen, roi, subject=subject, tr=tr, events=events))
    return joined(runs)


def read_series(file: Path) -> tuple[list[str], np.ndarray]:
    """Names of the regions ("" for arrays) and values (scans, regions) of one file."""
    if file.suffix in (".tsv", ".csv"):
        header, rows = read_lines(file)  # regions may share a name
        kept = [place for place, name in enumerate(header) if name.strip()]
        columns = [numbers(file, header[place], [row[place] for row in rows]) for place in kept]
        return [header[place] for place in kept], np.stack(columns, axis=1)
    values = _array(file)
    if values.ndim != 2:
        raise DataError(f"{file}: {values.ndim} dimensions, (scans, regions) expected")
    values = values if len(values) >= values.shape[1] else values.T
    return [""] * values.shape[1], values


def _array(file: Path) -> np.ndarray:
    try:
        if file.suffix == ".npy":
            return np.load(file)
        from scipy.io import loadmat

        found: dict[str, Any] = {name: value for name, value in loadmat(file).items() if not name.startswith("_")}
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{file}: not a readable array ({error})") from None
    tables = [value for value in found.values() if getattr(value, "ndim", 0) == 2 and min(value.shape) > 1]
    if len(tables) != 1:
        raise DataError(f"{file}: {len(tables)} tables among {', '.join(found)}, one expected")
    return tables[0]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and _is_series(file))


def _is_series(file: Path) -> bool:
    return SERIES.search(file.name) is not None and "events" not in file.name


def _number(file: Path, entity: str) -> str:
    found = re.search(rf"{entity}[-_]([A-Za-z0-9]+)", file.name)
    return found.group(1) if found else ""


def _events(folder: Path, subject: str, run: str) -> Path | None:
    tables = [file for file in folder.glob("*events.tsv") if _number(file, "sub") == subject]
    return next((file for file in tables if _number(file, "run") == run), None)


def _networks(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    table = read_table(file)
    if not {"name", "network"} <= set(table):
        raise DataError(f"{file}: the columns name and network are needed, there are {', '.join(table)}")
    return dict(zip(table["name"], table["network"], strict=True))
