"""Spikes and what went on meanwhile: units' spike times, time series of behaviour, epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monochord.data.dataset import DataError, Dataset, Split
from monochord.data.neural import NeuralData


@dataclass(frozen=True)
class Recording:
    """One session. All times are in seconds.

    - `spikes`: an ascending array of spike times a unit; `units`: columns (units,) such as `location`
    - `series`: by name, times (samples,) and values (samples, ...)
    - `epochs`: by name, starts and stops (epochs, 2)
    """

    spikes: tuple[np.ndarray, ...]
    units: Mapping[str, np.ndarray] = field(default_factory=dict)
    series: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    epochs: Mapping[str, np.ndarray] = field(default_factory=dict)
    subject: str = ""

    def counts(self, width: float, start: float | None = None, stop: float | None = None) -> NeuralData:
        """Spikes counted in bins of `width` seconds, (bins, units), from `start` to `stop`."""
        if width <= 0 or not self.spikes:
            raise DataError(f"bins of {width} s of {len(self.spikes)} units: both must be positive")
        times = [unit for unit in self.spikes if len(unit)]
        start = min(unit[0] for unit in times) if start is None else start
        stop = max(unit[-1] for unit in times) if stop is None else stop
        bins = int(np.floor((stop - start) / width + 1e-9))
        if bins < 1:
            raise DataError(f"no bin of {width} s between {start} and {stop} s")
        edges = start + width * np.arange(bins + 1)
        counts = np.stack([np.histogram(unit, edges)[0] for unit in self.spikes], axis=1)
        roi = self.units.get("location", np.full(len(self.spikes), ""))
        return NeuralData(counts, np.full(bins, -1), np.asarray(roi), subject=self.subject, tr=width)

    def at(self, name: str, times: np.ndarray) -> np.ndarray:
        """A series read at the given times, linearly between its samples; NaN outside of them."""
        if name not in self.series:
            raise DataError(f"no series {name!r}: there are {', '.join(self.series) or 'none'}")
        known, values = self.series[name]
        flat = np.asarray(values, float).reshape(len(known), -1)
        read = [np.interp(times, known, column, left=np.nan, right=np.nan) for column in flat.T]
        return np.stack(read, axis=1).reshape(len(times), *np.shape(values)[1:])

    def dataset(self, name: str, **card: Any) -> Dataset:
        """As a `Dataset` of the splits "spikes" (time, unit), "units", and one for each series and for the epochs."""
        times = np.concatenate(self.spikes) if self.spikes else np.array([])
        unit = np.repeat(np.arange(len(self.spikes)), [len(spikes) for spikes in self.spikes])
        order = np.argsort(times, kind="stable")
        splits = {}
        if len(times):
            splits["spikes"] = Split({"time": times[order], "unit": unit[order]})
            splits["units"] = Split({"spikes": np.array([len(s) for s in self.spikes]), **self.units})
        splits |= {key: Split({"time": at, "value": values}) for key, (at, values) in self.series.items() if len(at)}
        if any(len(spans) for spans in self.epochs.values()):
            names = [key for key, spans in self.epochs.items() for _ in spans]
            spans = np.concatenate([spans for spans in self.epochs.values() if len(spans)])
            splits["epochs"] = Split({"start": spans[:, 0], "stop": spans[:, 1], "name": names})
        return Dataset(name=name, task="spikes", splits=splits, **card)

    @staticmethod
    def of(dataset: Dataset, subject: str = "") -> Recording:
        """The session of a `Dataset` that `dataset()` made."""
        splits = dict(dataset.splits)
        spikes: tuple[np.ndarray, ...] = ()
        units: dict[str, np.ndarray] = {}
        if "spikes" in splits:
            fired, known = splits.pop("spikes"), splits.pop("units")
            time, unit = np.asarray(fired["time"]), np.asarray(fired["unit"])
            spikes = tuple(time[unit == number] for number in range(len(known)))
            units = {name: np.asarray(known[name]) for name in known.columns if name != "spikes"}
        epochs: dict[str, np.ndarray] = {}
        if "epochs" in splits:
            found = splits.pop("epochs")
            spans = np.stack([np.asarray(found["start"]), np.asarray(found["stop"])], axis=1)
            names = np.asarray(found["name"])
            epochs = {name: spans[names == name] for name in dict.fromkeys(names.tolist())}
        series = {name: (np.asarray(split["time"]), np.asarray(split["value"])) for name, split in splits.items()}
        return Recording(spikes, units, series, epochs, subject)
