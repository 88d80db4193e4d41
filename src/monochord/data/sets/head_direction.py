"""Head direction: 15 units of a mouse's thalamus and hippocampus, and where it looked while it walked about.

From "Internally organized mechanisms of the head direction sense", March 2, 2015 (the laboratory's later session
A2929-200711), as pynapple ships it for its tests. Checked: 98,794 spikes in 1,200 s; ridge regression on counts of
100 ms finds the direction in the last 30 % with a median error of 8.5 degrees.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.formats.nwb import load_nwb

UNITS, SPIKES, SAMPLES = 15, 98_794, 63_527
HOME = "pynapple-0.8.4/tests/nwbfilestest/neurosuite/pynapplenwb"
FILE = "A2929-200711.nwb"


def convert(package: Path, folder: Path) -> None:
    shutil.copyfile(package / HOME / FILE, folder / FILE)


def read(folder: Path) -> Read:
    """Spikes, units with their place, epochs, and the series of position and of direction (radians) by name."""
    session = load_nwb(folder / FILE)
    check(len(session.spikes), UNITS, "units")
    check(sum(map(len, session.spikes)), SPIKES, "spikes")
    check(len(session.series["CompassDirection/ry"][0]), SAMPLES, "samples of direction")
    notes = (
        "direction is CompassDirection/ry, in radians, tracked from 670 to 1,200 s while awake",
        "one session of one mouse: test on a later part of it",
    )
    return session.dataset("head-direction").splits, notes


ENTRIES = [
    Source(
        name="head-direction",
        kind="spikes",
        title="15 units of a mouse's thalamus and hippocampus with its head direction and position",
        licence="MIT",
        package=Package(
            "pypi-source",
            "pynapple",
            "0.8.4",
            sha256="9f8f57063dd472590c8b8eb091f32515dd031036d3b3ead858ca1032ed290120",
            size=87_878_881,
            members=(f"*neurosuite/pynapplenwb/{FILE}", "*LICENSE"),
        ),
        convert=convert,
        read=read,
    )
]
