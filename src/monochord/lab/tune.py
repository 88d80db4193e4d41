"""Tune one model on one data set by one method, and keep what was tuned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.lab import plan
from monochord.lab.tasks import open_task
from monochord.lab.trial import tuner_of

if TYPE_CHECKING:
    from torch import nn

    from monochord.core.tuner import Tuned

RECORD = "tuned.json"


def tune(
    model: Any,
    data: Any = None,
    method: Any = "lora",
    *,
    out: str | Path,
    steps: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    max_length: int | None = None,
    precision: str = "no",
    progress: bool = True,
) -> dict[str, Any]:
    """Train and save; returns the scores before and after on held-out data, and where it is.

    `model`, `data` and `method` are what `compare` takes; the learning rate is the method's own if not given. Stopped,
    the same call goes on from its last checkpoint in `out`. Under `accelerate launch` it trains on all processes.
    """
    from accelerate import PartialState

    from monochord.core.fit import fit
    from monochord.core.tensorfile import replacing
    from monochord.models import Classifier

    overrides = {"batch_size": batch_size, "max_length": max_length}
    problem = plan.problem(model, data, None, steps, None, overrides)
    objects: dict[str, Any] = {}
    problem.fill(objects, retention=False)
    task = open_task(problem.settings.to_json(), objects)
    (entrant,) = plan.entrants([method], lr)
    net = task.model(seed)
    if isinstance(method, str):
        objects["tuners"] = {}
    else:
        objects["tuners"] = {entrant.spec: method}
    tuned = tuner_of(entrant.spec, task, net, seed).attach(net, seed=seed)
    before = task.score(net, "test")
    rates: Sequence[float] = entrant.rates
    rate = lr if lr is not None else rates[len(rates) // 2]
    history = fit(
        net,
        task.batches(seed, problem.steps),
        task.objective(),
        steps=problem.steps,
        lr=rate,
        schedule="linear",
        warmup=0.1,
        seed=seed,
        precision=precision,
        checkpoint=Path(out) / "checkpoint",
        progress=progress,
    )
    found = {
        "task": problem.title,
        "method": entrant.name,
        "metric": task.metric["name"],
        "before": before,
        "after": task.score(net, "test"),
        "chance": task.chance,
        "parameters": tuned.n_trainable,
        "learning_rate": rate,
        "steps": problem.steps,
        "loss": history.losses[-1],
        "saved": str(Path(out) / "tuner"),
    }
    if PartialState().is_main_process:
        tuned.save(Path(out) / "tuner")
        with replacing(Path(out) / RECORD) as file:
            classes = len(task.data.label_names) if isinstance(net, Classifier) else 0
            file.write(json.dumps({**found, "classes": classes, "seed": seed}, indent=1).encode())
    return found


def tuned_model(base: Any, folder: str | Path) -> tuple[nn.Module, Tuned]:
    """The base, with a head where `tune` gave it one, and what `tune` saved in `folder` attached to it."""
    from monochord.core.tuner import Tuned
    from monochord.models import Classifier, load

    record = json.loads((Path(folder) / RECORD).read_text(encoding="utf8"))
    model = load(base)
    if record["classes"]:
        model = Classifier(model, record["classes"], seed=record["seed"])
    return model, Tuned.load(model, Path(folder) / "tuner")
