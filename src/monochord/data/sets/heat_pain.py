"""Heat pain: fMRI of 33 people by 122 regions while their arm is heated and they turn the pain up or down in mind.

By its file names the public set of
"Distinct brain systems mediate the effects of nociceptive input and self-regulation on pain", January 6, 2015, as the
package connattractor ships it. Checked: 66 runs of 191 scans, 660 heat periods, at five or ten temperatures a person.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split
from monochord.data.formats._files import numbers, read_lines
from monochord.data.formats.parcellated import read_series

SUBJECTS, RUNS, SCANS, REGIONS, HEATS = 33, (3, 7), 191, 122, 660
TR = 2.0  # seconds; fitted, the package does not state it
FIRST = 10.216  # seconds into a run at which its first event begins; onsets are counted from the session's start
HOME = "resources/ex_timeseries_task"
COLUMNS = ("onset", "duration", "temperature", "rating")


def convert(package: Path, folder: Path) -> None:
    """All runs as one table of scans, and one table of events whose onsets are counted from their run."""
    names: list[str] = []
    responses, events = [], []
    for subject in range(1, SUBJECTS + 1):
        for run in RUNS:
            names, values = read_series(package / HOME / f"sub-{subject:02d}_ts_run_{run:02d}.tsv")
            responses.append(values[:, 1:].astype(np.float32))  # the first column is the global signal
            check(responses[-1].shape[0], SCANS, f"scans of subject {subject}, run {run}")
            file = package / HOME / f"sub-{subject:02d}_task-heatpainwithregulationandratings_run-{run:02d}_events.tsv"
            header, rows = read_lines(file)  # one table has its last column twice, and the last one is filled
            table = {name: [row[place] for row in rows] for place, name in enumerate(header)}
            columns = [numbers(file, name, table[name]) for name in ("onset", "duration", "temperature", "ratings")]
            columns[0] -= columns[0][0] - FIRST
            direction = np.array(table["regulate-up/down"]) == "up"
            events.append(
                np.stack([np.full(len(direction), subject), np.full(len(direction), run), *columns, direction])
            )
    np.savez(
        folder / "heat-pain.npz",
        responses=np.concatenate(responses),
        events=np.concatenate(events, axis=1),
        regions=np.array(names[1:]),
    )


def read(folder: Path, *, subject: int | None = None) -> Read:
    """All people's runs one after the other, or one person's; `stimulus` is what was on when a scan began.

    `trials` also has `subject`; `events` has temperature (degrees Celsius), rating (0 to 200) and whether the
    person was asked to turn pain up or down, NaN where that does not apply.
    """
    with np.load(folder / "heat-pain.npz") as file:
        responses, table, regions = file["responses"], file["events"], file["regions"]
    check(len(responses), SUBJECTS * len(RUNS) * SCANS, "scans")
    check(responses.shape[1], REGIONS, "regions")
    check(int(np.isfinite(table[4]).sum()), HEATS, "heat periods")
    person = np.repeat(np.arange(1, SUBJECTS + 1), len(RUNS) * SCANS)
    run = np.tile(np.repeat(RUNS, SCANS), SUBJECTS)
    stimulus = np.full(len(responses), "", dtype="U6")
    for who, which, onset, duration, temperature, _, _ in table.T.tolist():
        start = int(((who - 1) * len(RUNS) + RUNS.index(int(which))) * SCANS)
        first, last = int(np.ceil(onset / TR)), int(np.ceil((onset + duration) / TR))
        stimulus[start + first : start + min(last, SCANS)] = "rating" if np.isnan(temperature) else "heat"
    trials = Split({"response": responses, "stimulus": stimulus, "run": run, "subject": person})
    events = {"subject": table[0].astype(np.int64), "run": table[1].astype(np.int64)}
    events |= dict(zip(COLUMNS, table[2:6], strict=True))
    events["trial_type"] = np.where(np.isnan(table[4]), "rating", "heat")
    events["regulate"] = np.where(table[6] == 1, "up", "down")
    shown = Split(events)
    if subject is not None:
        if not 1 <= subject <= SUBJECTS:
            raise DataError(f"heat-pain has no subject {subject}: there are 1 to {SUBJECTS}")
        trials = trials.take(np.flatnonzero(person == subject))
        shown = shown.take(np.flatnonzero(events["subject"] == subject))
    nothing = np.full(REGIONS, np.nan, np.float32)
    voxels = Split({"roi": regions, "ncsnr": nothing, "coords": np.full((REGIONS, 3), np.nan, np.float32)})
    notes = (
        "a row of trials is a scan, every 2 s (fitted: the package does not state it); two of each person's runs",
        "nine people have regions without signal, where the series is constant",
        "regions are those of the MIST atlas at 122; some share a name",
        "pain is felt some seconds after the heat: across people, temperature is read best 12 s later (r 0.37)",
    )
    return {"trials": trials, "voxels": voxels, "events": shown}, notes


ENTRIES = [
    Source(
        name="heat-pain",
        kind="neural",
        title="fMRI of 33 people by 122 regions, with heat, ratings of pain and self-regulation",
        licence="GPL-3.0-or-later",
        package=Package(
            "pypi",
            "connattractor",
            "0.1.0",
            sha256="01172a7dfd28bfe18590c96d422cda08b1a9574a8364a911e41e12977f4440b1",
            size=24_018_708,
            members=("*ex_timeseries_task/*_ts_run_*.tsv", "*run-0[37]_events.tsv", "*METADATA"),
        ),
        convert=convert,
        read=read,
    )
]
