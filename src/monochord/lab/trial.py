"""The trials of a comparison: pure functions that run in processes of their own.

Each takes JSON arguments and `objects` (see `tasks.py`) and returns JSON. The same arguments give the
same numbers on one machine, times and memory aside.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.core.pattern import SiteError
from monochord.core.registry import build
from monochord.lab import retention as own_task
from monochord.lab.measure import Clock, Peak, activation_likeness, block_names, folder_bytes, weight_changes
from monochord.lab.records import content_key
from monochord.lab.results import BlockChange, TrialResult
from monochord.lab.task import Task
from monochord.lab.tasks import open_task

if TYPE_CHECKING:
    from torch import nn

HEAD = "head"  # the module of the classifier's head
SIZES = ("rank", "width", "bottleneck", "length", "n_tokens")  # what makes a method larger or smaller
N_TIMED = 6  # steps of a timing trial
N_LOOK = 8  # training batches that a method may choose by


def search(
    task: Mapping[str, Any], method: str, rate: float, seed: int, steps: int, *, objects: Mapping[str, Any]
) -> dict[str, Any]:
    """Train at one learning rate and score on validation data; what was trained is kept for `train`."""
    begin, work = time.perf_counter(), time.process_time()
    opened = open_task(task, objects)
    model = opened.model(seed)
    tuned = tuner_of(method, opened, model, seed).attach(model, seed=seed)
    cost = _trained(opened, model, tuned, state_path(objects, task, method, rate, seed, steps), rate, seed, steps)
    validation = opened.score(model, "validation")
    return {"validation": validation, "losses": cost["losses"], **_spent(begin, work)}


def train(
    task: Mapping[str, Any],
    method: str,
    rate: float,
    seed: int,
    steps: int,
    retention: bool,
    *,
    objects: Mapping[str, Any],
) -> TrialResult:
    """Train `method` for `steps` at learning rate `rate`, or take what `search` trained so, and measure everything."""
    begin, work = time.perf_counter(), time.process_time()
    opened = open_task(task, objects)
    model = opened.model(seed)
    tuned = tuner_of(method, opened, model, seed).attach(model, seed=seed)
    path = state_path(objects, task, method, rate, seed, steps)
    cost = _trained(opened, model, tuned, path if path and path.exists() else None, rate, seed, steps)
    result = TrialResult(
        score=opened.score(model, "test"),
        retention=own_task.measure(opened, model) if retention else None,
        parameters=tuned.n_trainable,
        head_parameters=_head_size(model),
        bytes=_stored(tuned),
        peak_memory=cost["peak_memory"],
        memory_source=cost["memory_source"],
        step_seconds=cost["step_seconds"],
        train_seconds=cost["train_seconds"],
        seconds=0.0,
        cpu_seconds=0.0,
        steps=steps,
        losses=cost["losses"],
        blocks=_changes(opened, model, tuned),
    )
    if path is not None:
        path.unlink(missing_ok=True)
    result.update(_spent(begin, work))  # type: ignore[typeddict-item]
    return result


def base(task: Mapping[str, Any], retention: bool, *, objects: Mapping[str, Any]) -> dict[str, Any]:
    """The untouched base: its score on its own task, on the new one where it has no fresh head, and chance."""
    begin, work = time.perf_counter(), time.process_time()
    opened = open_task(task, objects)
    model = opened.model(0)
    return {
        "chance": opened.chance,
        "retention": own_task.measure(opened, model) if retention else None,
        "score": None if _head_size(model) else opened.score(model, "test"),
        "parameters": sum(p.numel() for p in model.parameters()) - _head_size(model),
        **_spent(begin, work),
    }


def step_time(task: Mapping[str, Any], method: str, *, objects: Mapping[str, Any]) -> dict[str, Any]:
    """Median seconds of a training step of `method`."""
    opened = open_task(task, objects)
    model = opened.model(0)
    tuner_of(method, opened, model).attach(model, seed=0)
    _, clock, _ = _fit(opened, model, 0.0, 0, N_TIMED)
    return {"step_seconds": clock.median()}


def sizes(
    task: Mapping[str, Any], methods: list[str], reference: str | None, *, objects: Mapping[str, Any]
) -> dict[str, Any]:
    """For each method the size (rank, width, length) at which it trains about as many parameters as `reference`.

    Without a reference it is the first method that has a size. Returns the counts and, for those with a
    size, its name and value; heads don't count.
    """
    opened = open_task(task, objects)
    model = opened.model(0)
    tuners = {method: objects.get("tuners", {}).get(method) or build(method) for method in methods}
    look = opened.batches(0, N_LOOK)
    tuners = {method: tuner.for_task(model, look, opened.objective()) for method, tuner in tuners.items()}
    sized = {method: name for method, tuner in tuners.items() if (name := _size_name(tuner))}
    counts = {method: _count(tuner, model) for method, tuner in tuners.items()}
    reference = reference or next(iter(sized), None)
    if reference is None:
        raise ValueError("match='parameters' needs a method with a rank, width or length, or a reference")
    found = {}
    for method, name in sized.items():
        if method != reference:
            value, count = _nearest(tuners[method], name, counts[reference], model)
            found[method] = {"name": name, "value": value, "count": count}
    return {"reference": reference, "counts": counts, "sizes": found}


def tuner_of(method: str, task: Task, model: nn.Module, seed: int = 0) -> Any:
    """The method, after a look at the task where it asks for one; and full tuning of a fresh head that it leaves."""
    from torch import Generator

    from monochord.adapt import FullTuning

    tuner = task.objects.get("tuners", {}).get(method) or build(method)
    tuner = tuner.for_task(model, task.batches(seed, N_LOOK), task.objective())
    if not _head_size(model):
        return tuner
    trained = {site.path for site, _ in tuner.plan(model, Generator().manual_seed(0))}
    rest = [name for name, _ in model.named_parameters() if name.startswith(f"{HEAD}.") and name not in trained]
    return tuner | FullTuning(sites=tuple(rest)) if rest else tuner


def _spent(begin: float, work: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - work}


def state_path(objects: Mapping[str, Any], *training: Any) -> Path | None:
    """Where the state of this training is kept between `search` and `train`."""
    folder = objects.get("states")
    return Path(folder) / f"{content_key(*training)[:32]}.safetensors" if folder else None


def _trained(
    task: Task, model: nn.Module, tuned: Any, path: Path | None, rate: float, seed: int, steps: int
) -> dict[str, Any]:
    """Train, or take over the state at `path`; returns what the training cost."""
    from monochord.core.storage import StorageError, load_tensors, save_tensors

    if path is not None and path.exists():
        with suppress(StorageError, OSError):  # damaged: train again
            tensors, cost = load_tensors(path)
            tuned.load_state(tensors)
            return dict(cost)
    peak, clock, losses = _fit(task, model, rate, seed, steps)
    cost = {
        "peak_memory": peak.bytes,
        "memory_source": peak.source,
        "step_seconds": clock.median(),
        "train_seconds": sum(clock.seconds),
        "losses": _thinned(losses),
    }
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, tuned.state(), cost)
    return cost


def _fit(task: Task, model: nn.Module, rate: float, seed: int, steps: int) -> tuple[Peak, Clock, list[float]]:
    """Train what the tuner left trainable; a fresh head has a rate of its own, the same for every method."""
    import torch

    from monochord.core.fit import Callback, Run, fit
    from monochord.core.update import Gradient

    clock = Clock()

    class Ticks(Callback):
        def on_start(self, run: Run) -> None:
            clock.start()

        def on_step(self, run: Run) -> None:
            clock.tick()

    head = (
        {id(p) for name, p in model.named_parameters() if name.startswith(f"{HEAD}.")} if _head_size(model) else set()
    )

    def optimizer(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        parameters = [p for group in groups for p in group["params"]]
        rest = [p for p in parameters if id(p) not in head]
        apart = [p for p in parameters if id(p) in head]
        made = [{"params": rest, "lr": lr}] if rest else []
        made += [{"params": apart, "lr": task.settings.head_rate if rest else lr}] if apart else []
        return torch.optim.AdamW(made, weight_decay=0.0)

    with Peak() as peak:
        history = fit(
            model,
            task.batches(seed, steps),
            task.objective(),
            steps=steps,
            update=Gradient(optimizer, rate),
            schedule="linear",
            warmup=0.1,
            seed=seed,
            callbacks=[Ticks()],
            progress=False,
            device="cpu",
        )
    return peak, clock, history.losses


def _head_size(model: nn.Module) -> int:
    """Parameters of the head that every method trains; 0 where the model has none from here."""
    from monochord.models import Classifier

    return (
        sum(p.numel() for n, p in model.named_parameters() if n.startswith(f"{HEAD}."))
        if isinstance(model, Classifier)
        else 0
    )


def _stored(tuned: Any) -> int:
    with tempfile.TemporaryDirectory(prefix="monochord-") as folder:
        tuned.save(f"{folder}/tuner")
        return folder_bytes(f"{folder}/tuner")


def _changes(task: Task, model: nn.Module, tuned: Any) -> list[BlockChange]:
    """What changed in each block; detaches the tuner to look at the base."""
    likeness: dict[str, float] = {}
    with suppress(SiteError):  # a model without blocks
        likeness = activation_likeness(model, tuned.disabled(), task.probe())
    delta: Mapping[str, Any] = {}
    with suppress(ValueError):  # a method that adds activations changes no weights
        delta = tuned.delta()
    tuned.detach()
    blocks = weight_changes(delta, model, block_names(model))
    for block in blocks:
        block["cka"] = likeness.get(block["block"])
    return blocks


def _thinned(losses: list[float], most: int = 50) -> list[float]:
    """At most `most` of them, evenly spaced, the last included."""
    if len(losses) <= most:
        return losses
    return [losses[round(i * (len(losses) - 1) / (most - 1))] for i in range(most)]


def _size_name(tuner: Any) -> str | None:
    return next((name for name in SIZES if isinstance(getattr(tuner, name, None), int)), None)


def _count(tuner: Any, model: nn.Module) -> int:
    """Trained parameters outside a fresh head."""
    tuned = tuner.attach(model, seed=0)
    try:
        head = {id(p) for name, p in model.named_parameters() if name.startswith(f"{HEAD}.")}
        inside = head if _head_size(model) else set()
        return sum(p.numel() for p in tuned.parameters() if id(p) not in inside)
    finally:
        tuned.detach()


def _nearest(tuner: Any, name: str, wanted: int, model: nn.Module) -> tuple[int, int]:
    """The size at which a tuner's parameters come nearest to `wanted`, found by halving."""

    def count(size: int) -> int:
        try:
            return _count(replace(tuner, **{name: size}), model)
        except ValueError:  # larger than the model allows
            return 10 * wanted + size

    low, high = 1, 2
    while count(high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < wanted else (low, middle)
    best = min((low, high), key=lambda size: abs(count(size) - wanted))
    return best, count(best)
