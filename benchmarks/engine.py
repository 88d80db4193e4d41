"""What the engine adds to trials of about ten seconds, and what a second worker saves.

python benchmarks/engine.py
"""

import tempfile
import time

from timing import Report

from monochord.lab.engine import Trial, run
from monochord.lab.store import Store


def work(number: int) -> dict[str, float]:
    """A fixed amount of arithmetic in torch; returns the seconds it took."""
    import torch

    start = time.perf_counter()
    x = torch.randn(400, 400, generator=torch.Generator().manual_seed(number))
    for _ in range(6000):
        x = torch.tanh(x @ x) / 20
    return {"seconds": time.perf_counter() - start}


def wall(trials: int, workers: int) -> tuple[float, float]:
    """Seconds of all trials together as one sees them, and the sum of what they took inside."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [Trial("engine:work", {"number": i}, f"trial {i}") for i in range(trials)]
        start = time.perf_counter()
        records = run(jobs, Store(f"{folder}/s.sqlite"), workers=workers)
        seconds = time.perf_counter() - start
    return seconds, sum(record.result["seconds"] for record in records if record.result)


def main() -> None:
    report = Report(__file__)
    wall(1, 1)  # the server that forks trials starts once
    one, inside = wall(4, 1)
    two, _ = wall(4, 2)
    print(f"a trial takes {inside / 4:.1f} s")
    report.add("4 trials, one worker", "share of time outside of the trials", {"monochord": one / inside - 1}, 0.05)
    report.add("4 trials, two workers", "time of one worker", {"monochord": two / one, "one worker": 1.0}, 1 / 1.7)
    report.save()


if __name__ == "__main__":
    main()
