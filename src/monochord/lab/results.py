"""What a comparison's `results.json` contains, in one place, and how it is summed up from trials.

Everything is plain JSON. Scores are fractions or losses in the units of `metric`; sizes are bytes,
times seconds. Intervals are 95 % t intervals over seeds; their ends are null with a single seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, TypedDict

from monochord.lab.records import DONE, Record, finite
from monochord.lab.statistics import Interval, mean_interval, paired_difference

FORMAT = "monochord-compare/1"


class Metric(TypedDict):
    name: str  # "accuracy", "perplexity"
    higher_is_better: bool
    percent: bool  # shown times 100


class Summary(TypedDict):
    mean: float
    low: float | None
    high: float | None
    n: int  # seeds


class BlockChange(TypedDict):
    """How tuning changed one block of the model."""

    block: str  # "blocks.3"
    norm: float | None  # Frobenius norm of the weight change over that of the weights
    rank: float | None  # effective rank of the change: exp of the entropy of its singular values, mean of its matrices
    overlap: float | None  # share of the change inside the top singular subspace of the base's weights
    overlap_chance: float | None  # the same share for a change in random directions
    cka: float | None  # linear CKA of the block's output with the base's; 1 is unchanged


class TrialResult(TypedDict):
    """What one training run measured."""

    score: float  # on test data
    retention: float | None  # score on the base model's own task after tuning
    parameters: int  # trained numbers, head included
    head_parameters: int  # those in the head alone
    bytes: int  # size of the files that `save` wrote
    peak_memory: int  # of training, above the loaded model
    memory_source: str  # how that was measured
    step_seconds: float  # median
    train_seconds: float
    seconds: float  # with loading, scoring and measuring
    cpu_seconds: float  # the same in processor time, of one core
    steps: int
    losses: list[float]  # of training, at most 50 of them
    blocks: list[BlockChange]


class Arm(TypedDict):
    """A method over all its seeds, at the learning rate its validation score chose."""

    name: str  # "lora"
    method: str  # full spec, "lora(rank=4)"
    score: Summary
    difference: Summary | None  # of score to the reference arm, seed by seed
    retention: Summary | None
    forgotten: Summary | None  # retention of the base minus that after tuning; positive is worse
    parameters: int
    head_parameters: int
    bytes: int
    peak_memory: int
    step_seconds: float
    train_seconds: float
    steps: int
    learning_rate: float
    search: dict[str, float | None]  # learning rate: validation score with the first seed
    edge: bool  # the chosen rate is the first or last of the grid: a wider one may do better
    blocks: list[BlockChange]  # mean over seeds
    trials: list[dict[str, Any]]  # {"seed": 0, **TrialResult}


class Failure(TypedDict):
    label: str
    reason: str


class Results(TypedDict):
    format: str
    title: str
    metric: Metric
    retention_metric: Metric | None
    retention_task: str | None  # in words
    chance: float  # score without knowing anything
    base_score: float | None  # of the untouched base, where it needs no new head
    retention_base: float | None  # of the untouched base
    reference: str | None  # the arm that differences are taken to
    arms: list[Arm]
    failures: list[Failure]
    settings: dict[str, Any]
    versions: dict[str, str]
    seconds: float  # of all trials together
    cpu_seconds: float  # the same in processor time


def summarise_arm(
    name: str,
    method: str,
    rate: float,
    search: Mapping[float, Record],
    trials: Mapping[int, Record],
    retention_base: float | None,
    retention_better: bool,
) -> Arm | None:
    """One row of the comparison from its trials by seed, or None when none of them finished."""
    done: dict[int, Any] = {seed: r.result for seed, r in trials.items() if r.state == DONE and r.result}
    if not done:
        return None
    results = list(done.values())
    kept = [r["retention"] for r in results if r["retention"] is not None]
    forgotten = None
    if kept and retention_base is not None:
        sign = 1 if retention_better else -1
        forgotten = [sign * (retention_base - value) for value in kept]
    return Arm(
        name=name,
        method=method,
        score=summary(mean_interval([r["score"] for r in results])),
        difference=None,
        retention=summary(mean_interval(kept)) if kept else None,
        forgotten=summary(mean_interval(forgotten)) if forgotten else None,
        parameters=results[0]["parameters"],
        head_parameters=results[0]["head_parameters"],
        bytes=results[0]["bytes"],
        peak_memory=int(median(r["peak_memory"] for r in results)),
        step_seconds=median(r["step_seconds"] for r in results),
        train_seconds=median(r["train_seconds"] for r in results),
        steps=results[0]["steps"],
        learning_rate=rate,
        search={f"{lr:g}": (r.result or {}).get("validation") for lr, r in sorted(search.items())},
        edge=len(search) > 1 and rate in (min(search), max(search)),
        blocks=mean_blocks([r["blocks"] for r in results]),
        trials=[{"seed": seed, **result} for seed, result in done.items()],
    )


def add_differences(arms: Sequence[Arm], reference: str | None) -> None:
    """Fill in each arm's paired difference of score to the reference arm, over the seeds both have."""
    base = next((arm for arm in arms if arm["name"] == reference), None)
    if base is None:
        return
    theirs = {trial["seed"]: trial["score"] for trial in base["trials"]}
    for arm in arms:
        arm["difference"] = None
        pairs = [(t["score"], theirs[t["seed"]]) for t in arm["trials"] if t["seed"] in theirs]
        if arm is not base and pairs:
            first, second = zip(*pairs, strict=True)
            arm["difference"] = summary(paired_difference(first, second))


def mean_blocks(runs: Sequence[Sequence[BlockChange]]) -> list[BlockChange]:
    """The mean over runs of every block's figures; None where no run has one."""
    merged: list[Any] = []
    for entries in zip(*runs, strict=True):
        block: dict[str, Any] = {"block": entries[0]["block"]}
        for name in ("norm", "rank", "overlap", "overlap_chance", "cka"):
            values = [entry[name] for entry in entries if entry[name] is not None]
            block[name] = sum(values) / len(values) if values else None
        merged.append(block)
    return merged


def summary(interval: Interval) -> Summary:
    """An interval as JSON."""
    return finite({"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n})
