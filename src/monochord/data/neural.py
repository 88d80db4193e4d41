"""Responses of a brain, or of a simulated one: a table of trials by voxels, and what is known of rows and columns.

Every loader of fMRI and EEG layouts, the simulator and the catalog make this one class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from monochord.data.dataset import DataError, Dataset, Split


@dataclass(frozen=True)
class NeuralData:
    """Measured responses of one subject.

    - `responses` (trials, voxels), float32; with `tr` (seconds) set, the rows are the scans of a time series
    - `stimulus_ids` (trials,): integers or names of what was shown; -1 or "" where nothing was
    - `roi` (voxels,): region names, "" where there is none
    - `ncsnr` (voxels,): signal sd over noise sd of a single trial, NaN where unknown
    - `coords` (voxels, 2 or 3): places in the grid or space of the source, NaN where unknown
    - `runs` (trials,): number of the run; responses of one run are not independent
    - `events`: columns `onset`, `duration` (seconds) and `trial_type` of time series, and `run`

    Raises `DataError` when lengths disagree or responses are not finite.
    """

    responses: np.ndarray
    stimulus_ids: np.ndarray
    roi: np.ndarray = None  # type: ignore[assignment]
    ncsnr: np.ndarray = None  # type: ignore[assignment]
    coords: np.ndarray = None  # type: ignore[assignment]
    subject: str = ""
    tr: float | None = None
    runs: np.ndarray = None  # type: ignore[assignment]
    events: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        responses = np.asarray(self.responses)
        if responses.ndim != 2 or 0 in responses.shape:
            raise DataError(f"responses must be (trials, voxels), got {responses.shape}")
        trials, voxels = responses.shape
        defaults = {
            "roi": np.full(voxels, ""),
            "ncsnr": np.full(voxels, np.nan, np.float32),
            "coords": np.full((voxels, 3), np.nan, np.float32),
            "runs": np.zeros(trials, np.int64),
        }
        lengths = {"stimulus_ids": trials, "roi": voxels, "ncsnr": voxels, "coords": voxels, "runs": trials}
        for name, length in lengths.items():
            value = getattr(self, name)
            value = defaults[name] if value is None else np.asarray(value)
            if len(value) != length:
                raise DataError(f"{name} has {len(value)} entries for responses {responses.shape}")
            object.__setattr__(self, name, value)
        if len({len(column) for column in self.events.values()}) > 1:
            raise DataError("the columns of events have different lengths")
        if not np.isfinite(responses).all():
            bad = int((~np.isfinite(responses)).any(axis=0).sum())
            raise DataError(f"{bad} of {voxels} voxels have responses that are not finite: leave them out")
        object.__setattr__(self, "responses", responses.astype(np.float32, copy=False))

    @property
    def shape(self) -> tuple[int, int]:
        """(trials, voxels)."""
        return self.responses.shape[0], self.responses.shape[1]

    def take(self, rows: Sequence[int] | np.ndarray) -> NeuralData:
        """The given trials, by number or as a mask, in that order."""
        rows = np.asarray(rows)
        return replace(self, responses=self.responses[rows], stimulus_ids=self.stimulus_ids[rows], runs=self.runs[rows])

    def select(self, *rois: str, min_ncsnr: float | None = None) -> NeuralData:
        """The voxels whose region matches one of the patterns ("V1", "CAT_*") and whose ncsnr is high enough."""
        kept = np.ones(self.shape[1], bool)
        if rois:
            matches = {name: any(fnmatchcase(name, pattern) for pattern in rois) for name in set(self.roi.tolist())}
            kept &= np.array([matches[name] for name in self.roi.tolist()])
        if min_ncsnr is not None:
            kept &= self.ncsnr >= min_ncsnr
        if not kept.any():
            known = ", ".join(sorted(set(self.roi.tolist()) - {""})) or "none"
            raise DataError(
                f"no voxel in {', '.join(rois) or 'any region'} (ncsnr >= {min_ncsnr}): regions are {known}"
            )
        voxels = {name: getattr(self, name)[kept] for name in ("roi", "ncsnr", "coords")}
        return replace(self, responses=self.responses[:, kept], **voxels)

    def average(self) -> NeuralData:
        """One row a stimulus, the mean of its repetitions, in ascending order of `stimulus_ids`."""
        if self.tr is not None:
            raise DataError("the rows of a time series are scans, not trials: fit responses first")
        ids, index, counts = np.unique(self.stimulus_ids, return_inverse=True, return_counts=True)
        sums = np.zeros((len(ids), self.shape[1]))
        np.add.at(sums, index, self.responses)
        return replace(self, responses=sums / counts[:, None], stimulus_ids=ids, runs=np.zeros(len(ids), np.int64))

    def ceiling(self, repetitions: int = 1) -> np.ndarray:
        """The noise ceiling of each voxel in percent of variance, for means of so many repetitions."""
        return noise_ceiling(self.ncsnr, repetitions)

    def dataset(self, name: str, **card: Any) -> Dataset:
        """As a `Dataset` of the splits "trials", "voxels" and, where there are some, "events"."""
        rows = {"response": self.responses, "stimulus": self.stimulus_ids, "run": self.runs}
        splits = {
            "trials": Split(rows),
            "voxels": Split({"roi": self.roi, "ncsnr": self.ncsnr, "coords": self.coords}),
        }
        if self.events and len(next(iter(self.events.values()))):
            splits["events"] = Split(self.events)
        notes = tuple(card.pop("notes", ()))
        if self.tr is not None:
            notes = (*notes, f"a row of trials is a scan, every {self.tr:g} s")
        return Dataset(name=name, task="neural", splits=splits, notes=notes, **card)

    @staticmethod
    def of(dataset: Dataset, subject: str = "", tr: float | None = None) -> NeuralData:
        """The responses of a `Dataset` with the splits "trials" and "voxels", as `dataset()` makes them."""
        trials, voxels = dataset["trials"], dataset["voxels"]
        events = dataset.splits.get("events")
        return NeuralData(
            responses=np.asarray(trials["response"]),
            stimulus_ids=np.asarray(trials["stimulus"]),
            roi=np.asarray(voxels["roi"]),
            ncsnr=np.asarray(voxels["ncsnr"]),
            coords=np.asarray(voxels["coords"]),
            subject=subject,
            tr=tr,
            runs=np.asarray(trials["run"]),
            events={column: np.asarray(events[column]) for column in events.columns} if events else {},
        )


def noise_ceiling(ncsnr: np.ndarray, repetitions: int = 1) -> np.ndarray:
    """`100 * ncsnr**2 / (ncsnr**2 + 1 / repetitions)`: percent of variance that the stimulus can explain."""
    power = np.square(ncsnr)
    return 100 * power / (power + 1 / repetitions)


def estimate_ncsnr(data: NeuralData) -> np.ndarray:
    """The ncsnr of each voxel from its repetitions: sd of the signal over sd of the noise, 0 where none is seen.

    The noise variance is the mean variance over the repetitions of a stimulus; the signal variance is the variance
    of the means, less what noise adds to it. Raises `DataError` where no stimulus was repeated.
    """
    ids, index, counts = np.unique(data.stimulus_ids, return_inverse=True, return_counts=True)
    extra = data.shape[0] - len(ids)
    if extra == 0:
        raise DataError("no stimulus was repeated: signal and noise can't be told apart")
    means = np.zeros((len(ids), data.shape[1]))
    np.add.at(means, index, data.responses)
    means /= counts[:, None]
    noise = np.square(data.responses - means[index]).sum(axis=0) / extra
    signal = means.var(axis=0, ddof=1) - noise * np.mean(1 / counts)
    return np.sqrt(np.maximum(signal, 0) / np.maximum(noise, 1e-12))


def joined(parts: Sequence[NeuralData]) -> NeuralData:
    """Runs of one subject one after the other; their voxels must be the same. Runs are numbered from 1."""
    if len({part.shape[1] for part in parts}) != 1:
        raise DataError(f"runs have {sorted({part.shape[1] for part in parts})} voxels: one number is needed")
    numbered = [np.full(part.shape[0], number) for number, part in enumerate(parts, start=1)]
    names = list(parts[0].events)
    events = {name: np.concatenate([part.events[name] for part in parts]) for name in names}
    if names:
        lengths = [len(part.events[names[0]]) for part in parts]
        events["run"] = np.repeat(np.arange(1, len(parts) + 1), lengths)
    known = {f.name: getattr(parts[0], f.name) for f in fields(NeuralData)}
    known |= {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("responses", "stimulus_ids")}
    return NeuralData(**{**known, "runs": np.concatenate(numbered), "events": events})
