"""A made-up comparison, for looking at the report and for its tests. None of it was measured."""

from __future__ import annotations

import math
import random

from monochord.lab.records import DONE, Record
from monochord.lab.results import BlockChange, Results, TrialResult, add_differences, summarise_arm

_ARMS = {  # name: score, forgotten, parameters, relative norm, rank
    "last-layer": (0.66, 0.0, 770, 0.0, 0.0),
    "bitfit": (0.70, 0.03, 51_000, 0.002, 1.0),
    "ia3": (0.69, 0.02, 19_000, 0.004, 40.0),
    "prompt": (0.67, 0.01, 3_800, 0.0, 0.0),
    "lora": (0.735, 0.09, 74_500, 0.011, 6.5),
    "dora": (0.738, 0.08, 79_000, 0.012, 7.5),
    "hft": (0.752, 0.15, 5_300_000, 0.009, 150.0),
    "full": (0.751, 0.22, 10_600_000, 0.014, 190.0),
}


def sample() -> Results:
    """Eight methods with three seeds each; the same numbers every time."""
    chance = random.Random(0)
    arms = []
    for name, (score, forgotten, parameters, norm, rank) in _ARMS.items():
        trials = {
            seed: _trial(score + chance.gauss(0, 0.006), 0.81 - forgotten, parameters, norm, rank, chance)
            for seed in range(3)
        }
        search = {
            rate: Record("key", "label", DONE, {}, {"validation": score - loss})
            for rate, loss in ((1e-4, 0.06), (1e-3, 0.0), (1e-2, 0.1))
        }
        arm = summarise_arm(name, name, 1e-3, search, trials, 0.81, True)
        if arm is not None:
            arms.append(arm)
    add_differences(arms, "full")
    return Results(
        format="monochord-compare/1",
        title="a sample with made-up numbers",
        metric={"name": "accuracy", "higher_is_better": True, "percent": True},
        retention_metric={"name": "top-1 retrieval", "higher_is_better": True, "percent": True},
        retention_task="find the answer to an instruction among 200",
        chance=0.5,
        base_score=None,
        retention_base=0.81,
        reference="full",
        arms=arms,
        failures=[{"label": "lora(rank=9999), rate 0.001, seed 0", "reason": "ValueError: rank=9999 does not fit"}],
        settings={"model": "sample", "data": "sample", "steps": 48, "seeds": [0, 1, 2], "batch_size": 16},
        versions={"monochord": "0", "torch": "0"},
        seconds=412.0,
        cpu_seconds=399.0,
    )


def _trial(score: float, retention: float, parameters: int, norm: float, rank: float, chance: random.Random) -> Record:
    blocks: list[BlockChange] = []
    for i in range(6):
        size = norm * (1 + 0.25 * i) * math.exp(chance.gauss(0, 0.05))
        blocks.append(
            BlockChange(
                block=f"blocks.{i}",
                norm=size if norm else None,
                rank=rank * (1 + 0.03 * i) if norm else None,
                overlap=0.12 + 0.05 * chance.random() if norm else None,
                overlap_chance=0.08,
                cka=1 - 12 * norm * norm * 100 * (i + 1) / 6,
            )
        )
    result = TrialResult(
        score=score,
        retention=retention + chance.gauss(0, 0.01),
        parameters=parameters,
        head_parameters=770,
        bytes=4 * parameters + 900,
        peak_memory=60_000_000 + 12 * parameters,
        memory_source="made up",
        step_seconds=0.09 if norm == 0 else 0.2,
        train_seconds=9.0,
        seconds=13.0,
        cpu_seconds=12.0,
        steps=48,
        losses=[0.7, 0.65, 0.6],
        blocks=blocks,
    )
    return Record("key", "label", DONE, {}, dict(result))
