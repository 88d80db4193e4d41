"""Time two or more ways to do one thing against each other: interleaved, so that a drifting machine favours none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


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


def show(title: str, found: dict[str, float], bars: dict[str, float] | None = None) -> None:
    """Print ratios, with the bar beside those that have one."""
    print(title)
    for name, ratio in found.items():
        bar = (bars or {}).get(name)
        verdict = "" if bar is None else f"   bar {bar:g}: {'met' if ratio <= bar else 'MISSED'}"
        print(f"  {name:<28} {ratio:6.3f}{verdict}")
