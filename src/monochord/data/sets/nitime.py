"""Two small classics of neural time series, as the library nitime ships them.

Event-related BOLD: one voxel's signal at 6 kinds of events, 96 of each. Grasshopper: spikes of an auditory receptor
while it hears noise whose loudness varies; "Spike-Timing Precision Underlies the Coding Efficiency of Auditory
Receptor Neurons", 2006. Checked: 3,360 scans; two recordings of 200,000 samples with 929 and 868 spikes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError
from monochord.data.formats._files import numbers, read_table
from monochord.data.neural import NeuralData
from monochord.data.recording import Recording

SCANS, KINDS, EACH = 3_360, 6, 96
TR = 2.0  # seconds
SAMPLES, SPIKES = 200_000, (929, 868)
HOME = "nitime/data"


def convert_events(package: Path, folder: Path) -> None:
    """Signal and events as two arrays."""
    file = package / HOME / "event_related_fmri.csv"
    table = read_table(file)
    for name in ("bold", "events"):
        np.save(folder / f"{name}.npy", numbers(file, name, table[name]))


def read_events(folder: Path) -> Read:
    """One voxel's time series; `stimulus` is the kind of event (1 to 6) that began with the scan, else -1."""
    bold, kinds = np.load(folder / "bold.npy"), np.load(folder / "events.npy").astype(np.int64)
    check(len(bold), SCANS, "scans")
    check(len(set(kinds.tolist()) - {0}), KINDS, "kinds of events")
    for kind in range(1, KINDS + 1):
        check(int((kinds == kind).sum()), EACH, f"events of kind {kind}")
    at = np.flatnonzero(kinds)
    events = {"onset": at * TR, "duration": np.zeros(len(at)), "trial_type": kinds[at].astype(str)}
    data = NeuralData(bold[:, None], np.where(kinds > 0, kinds, -1), tr=TR, events=events)
    dataset = data.dataset("event-related-bold", notes=("one voxel; what the six kinds are is not stated",))
    return dataset.splits, dataset.notes


def convert_grasshopper(package: Path, folder: Path) -> None:
    """Loudness and spike times of both recordings."""
    for number in (1, 2):
        heard = np.loadtxt(package / HOME / f"grasshopper_stimulus{number}.txt")
        spikes = np.loadtxt(package / HOME / f"grasshopper_spike_times{number}.txt")
        np.savez(folder / f"{number}.npz", heard=heard, spikes=spikes)


def read_grasshopper(folder: Path, *, recording: int = 1) -> Read:
    """One recording: spikes of one unit and the stimulus' loudness (dB), 20,000 samples a second."""
    if recording not in (1, 2):
        raise DataError(f"grasshopper has no recording {recording}: there are 1 and 2")
    with np.load(folder / f"{recording}.npz") as file:
        heard, spikes = file["heard"], file["spikes"]
    check(len(heard), SAMPLES, "samples")
    check(len(spikes), SPIKES[recording - 1], "spikes")
    seconds = 1e-6  # the files count microseconds
    session = Recording((spikes * seconds,), series={"stimulus": (heard[:, 0] * seconds, heard[:, 1])})
    return session.dataset("grasshopper").splits, (f"recording {recording} of two, of 10 s each",)


PACKAGE = Package(
    "pypi",
    "nitime",
    "0.12.1",
    sha256="19442111829b94fa9aa9849bdfb6aa92bc5467ba74194b18450728e432086882",
    size=4_136_941,
    members=(f"{HOME}/event_related_fmri.csv", f"{HOME}/grasshopper_*.txt", "*LICENSE*"),
    tag="cp311-abi3-manylinux_2_28_x86_64",
)
ENTRIES = [
    Source(
        name="event-related-bold",
        kind="neural",
        title="One voxel's fMRI signal over 112 minutes with 576 events of six kinds",
        licence="BSD-3-Clause",
        package=PACKAGE,
        convert=convert_events,
        read=read_events,
    ),
    Source(
        name="grasshopper",
        kind="spikes",
        title="Spikes of a grasshopper's auditory receptor that hears noise of varying loudness",
        licence="BSD-3-Clause",
        package=PACKAGE,
        convert=convert_grasshopper,
        read=read_grasshopper,
    ),
]
