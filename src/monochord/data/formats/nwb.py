"""Neurodata Without Borders files (`.nwb`): units, behaviour and epochs, read as the plain HDF5 that they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.dataset import DataError, Dataset
from monochord.data.formats._files import need
from monochord.data.recording import Recording

LARGE = 50_000_000  # values: longer series, such as raw voltages, are left out


def recognises(path: Path) -> bool:
    """A file that ends in `.nwb`."""
    return path.suffix == ".nwb" and path.is_file()


def load(path: Path) -> Dataset:
    """Spikes, units, series and epochs as splits; `Recording.of` gives the session back."""
    return load_nwb(path).dataset(path.stem)


def load_nwb(path: Path) -> Recording:
    """One session: every time series with numbers in acquisition and processing, all interval tables, all units."""
    h5py = need("h5py", "data", path)
    try:
        with h5py.File(path, "r") as file:
            if "nwb_version" not in file.attrs:
                raise DataError(f"{path}: no nwb_version in it, so not an NWB file")
            series: dict[str, tuple[np.ndarray, np.ndarray]] = {}
            for part in ("acquisition", "processing", "stimulus/presentation"):
                if part in file:
                    _collect(file[part], series)
            spikes, units = _units(str(path), file["units"]) if "units" in file else ((), {})
            epochs = {name: _spans(table) for name, table in file.get("intervals", {}).items()}
            subject = _text(file["general/subject/subject_id"][()]) if "general/subject/subject_id" in file else ""
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file ({str(error).splitlines()[0]})") from None
    return Recording(spikes, units, series, epochs, subject)


def _collect(group: Any, series: dict[str, tuple[np.ndarray, np.ndarray]], above: str = "") -> None:
    """Put every time series below a group into `series`, under its path without the containers' names."""
    for name, item in group.items():
        if not hasattr(item, "keys"):
            continue
        path = f"{above}/{name}" if above else name
        data = item.get("data")
        if data is None:
            _collect(item, series, path)
        elif getattr(data, "dtype", None) is not None and data.dtype.kind in "fiub" and 0 < data.size <= LARGE:
            times = _times(item, len(data)) if data.ndim else None
            if times is not None:
                scale = data.attrs.get("conversion", 1.0)
                series[path] = times, data[:] * scale if scale != 1 else data[:]


def _times(item: Any, count: int) -> np.ndarray | None:
    if "timestamps" in item:
        times = item["timestamps"][:]
        return times if len(times) == count else None
    if "starting_time" in item:
        first = item["starting_time"]
        return first[()] + np.arange(count) / first.attrs["rate"]
    return None


def _units(path: str, table: Any) -> tuple[tuple[np.ndarray, ...], dict[str, np.ndarray]]:
    if "spike_times" not in table:
        return (), {}
    times, ends = table["spike_times"][:], table["spike_times_index"][:].astype(np.int64)
    if len(ends) and ends[-1] != len(times):
        raise DataError(f"{path}: units end at spike {ends[-1]} of {len(times)}: the file is cut off")
    spikes = tuple(np.split(times, ends[:-1]))
    columns = {}
    for name in _names(table):
        column = table.get(name)
        if column is not None and hasattr(column, "shape") and column.shape == (len(ends),):
            values = column[:]
            if values.dtype.kind in "fiub":
                columns[name] = values
            elif values.dtype.kind in "OS":
                columns[name] = np.array([_text(value) for value in values])
    return spikes, columns


def _names(table: Any) -> list[str]:
    return [_text(name) for name in table.attrs.get("colnames", list(table)) if _text(name) != "spike_times"]


def _spans(table: Any) -> np.ndarray:
    return np.stack([table["start_time"][:], table["stop_time"][:]], axis=1)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
