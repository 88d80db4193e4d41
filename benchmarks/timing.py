"""Time two or more ways to do one thing against each other, and keep what was found.

Rounds interleave the ways, so that a drifting machine favours none; results are ratios within one run.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def ratios(ways: dict[str, Callable[[], object]], base: str, rounds: int = 30, warmup: int = 3) -> dict[str, float]:
    """The median over rounds of each way's time over the time of `base` in the same round."""
    for _ in range(warmup):
        for run in ways.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds):
        names = list(ways) if i % 2 else list(ways)[::-1]
        for name in names:
            start = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - start)
    return {n: statistics.median(t / b for t, b in zip(times[n], times[base], strict=True)) for n in ways}


def peak(script: str, *which: str) -> float:
    """MiB by which `rise` finds that a few steps raise the memory of a process of its own: SCRIPT --one WHICH."""
    command = [sys.executable, script, "--one", *which]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def rise(step: Callable[[], object], steps: int = 2) -> float:
    """MiB by which some steps raise the peak memory of this process above what it holds (Linux), or ever held."""
    forgets = Path("/proc/self/clear_refs")
    if forgets.exists():
        forgets.write_text("5")  # from here on the peak is that of the steps
    before = _peak()
    for _ in range(steps):
        step()
    return _peak() - before


def _peak() -> float:
    """MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Report:
    """The rows of one script: printed as they are found, written to `results/` at the end."""

    def __init__(self, script: str) -> None:
        self.script = Path(script).stem
        self.rows: list[dict[str, Any]] = []

    def add(self, workload: str, base: str, found: dict[str, float], bar: float | None, *, ours: str = "monochord"):
        """One workload: each way's figure (a ratio to `base`, or its unit), and the bar ours is held to."""
        self.rows.append({"workload": workload, "to": base, "found": found, "ours": ours, "bar": bar})
        print(f"{workload}, {base}")
        for name, figure in found.items():
            verdict = ""
            if name == ours and bar is not None:
                verdict = f"   bar {bar:g}: {'met' if round(figure, 2) <= bar else 'MISSED'}"
            print(f"  {name:<28} {figure:8.3f}{verdict}")

    def save(self, *, keep: bool = False) -> None:
        """Write the rows; `keep` leaves those of an earlier run that are not among them."""
        import torch

        versions = {"python": platform.python_version(), "torch": torch.__version__}
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), **versions}
        RESULTS.mkdir(exist_ok=True)
        target = RESULTS / f"{self.script}.json"
        rows = {row["workload"]: row for row in self.rows}
        if keep:
            rows = {row["workload"]: row for row in json.loads(target.read_text(encoding="utf8"))["rows"]} | rows
        partial = target.with_suffix(".tmp")
        partial.write_text(json.dumps({"rows": list(rows.values()), **machine}, indent=1) + "\n", encoding="utf8")
        partial.replace(target)


def optional(module: str) -> Any | None:
    """A peer's package where it is installed, else None and a line that says it was left out."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"  {module} left out: {str(error).splitlines()[0]}")
        return None
