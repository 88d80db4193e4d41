"""The one training loop: any objective, any update, on Hugging Face Accelerate, with exact resume."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from monochord.core.batches import Stream
from monochord.core.history import Callback, History, Monitor, Run
from monochord.core.objective import Loss, Objective, OwnLoss, Step, Wrapped, evaluating, unwrap
from monochord.core.schedules import Rate
from monochord.core.state import pack, unpack
from monochord.core.storage import StorageError, load_tensors, save_tensors
from monochord.core.update import Gradient, Update, trained

__all__ = ["Callback", "History", "Monitor", "Run", "fit"]


def fit(
    model: nn.Module,
    data: Any,
    objective: Objective | None = None,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    lr: float = 1e-3,
    update: Update | None = None,
    optimizer: str | Callable[..., torch.optim.Optimizer] = "adamw",
    weight_decay: float = 0.0,
    schedule: str = "constant",
    warmup: float = 0.0,
    seed: int = 0,
    callbacks: Iterable[Callback] = (),
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    eval_every: int | None = None,
    streams: Mapping[str, Any] | None = None,
    precision: str = "no",
    accumulate: int = 1,
    max_grad_norm: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    resume: bool = True,
    log_with: Any = None,
    progress: bool = True,
    device: str | torch.device | None = None,
    accelerator: Any = None,
) -> History:
    """Train the parameters of `model` that have `requires_grad`; everything else stays bit-identical.

    `data` is a DataLoader or a sequence of batches (dicts, or pairs of input and labels), gone through as
    often as it takes; without an `objective` the model's own loss is minimised. A step takes `accumulate`
    batches, as if they were one. Give `steps` or `epochs`. Without an `update` it is `Gradient(optimizer,
    lr, weight_decay, max_grad_norm)`. `schedule` (constant, linear, cosine) follows a warmup over `warmup`
    steps, or that share of them if below 1. `evaluate(model)` runs every `eval_every` steps and at the end.
    `streams` are further data by the names objectives ask for. With a `checkpoint` folder the state is kept
    every `save_every` steps (a tenth of all, if not given) and a second call goes on from there, to the same
    numbers. `precision="bf16"` computes forwards in bfloat16; launched by Accelerate, its own settings hold.
    The model's mode is the same after as before.

    Raises `ValueError` for what can't be trained and `NotFinite`, with the step and the first module that
    produced it, before a step that is not a number.
    """
    model = model if isinstance(model, nn.Module) else model.model  # what a tuner's attach returned
    parameters = trained(model)
    if (steps is None) == (epochs is None):
        raise ValueError("pass one of steps and epochs")
    if precision not in ("no", "bf16"):
        raise ValueError(f"precision must be 'no' or 'bf16', got {precision!r}")
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    objective = objective if objective is not None else OwnLoss()
    accelerator = accelerator or _accelerator(device, log_with, checkpoint)
    main, others = Stream(data, seed, accelerator), {}
    for name in objective.streams:
        if name not in (streams or {}):
            raise ValueError(f"the objective needs a second stream: pass streams={{{name!r}: ...}}")
        others[name] = Stream((streams or {})[name], seed, accelerator, name)
    if steps is None:
        steps = max(1, round((epochs or 0) * main.epoch_length / accumulate))
    model.to(accelerator.device)
    update = update or Gradient(optimizer, lr, weight_decay, max_grad_norm)
    wrapped = accelerator.prepare_model(model) if accelerator.num_processes > 1 and update.backward else model
    update.setup(model, accelerator)
    rate = Rate(schedule, steps, warmup)
    run = Run(model, objective, update, History(), steps)
    watchers = list(callbacks)
    file = Path(checkpoint) / "training.safetensors" if checkpoint is not None else None
    if file is not None and resume and file.exists():
        _load(file, run, parameters)
        main.skip(run.step * accumulate)
        for stream in others.values():
            stream.skip(run.step * accumulate)
    save_every = save_every or max(1, steps // 10)
    minimised = _Autocast(objective, accelerator.device.type) if precision == "bf16" else objective
    if log_with is not None:
        accelerator.init_trackers("monochord")
    with _training(model, parameters), _own_randomness(), _bar(run, progress, accelerator) as advance:
        for watcher in watchers:
            watcher.on_start(run)
        while run.step < steps and not run.stop:
            _seed(seed, run.step, accelerator.process_index)
            batches = [main.take() for _ in range(accumulate)]
            for batch in batches:
                batch.update({name: stream.take() for name, stream in others.items()})
            step = Step(run.step, seed=seed * 131_071 + accelerator.process_index)
            step.counts = count_targets(objective, batches, step, accelerator)
            update.scale_lr(rate(run.step))
            loss = update.step(wrapped, batches, minimised, step)
            record = _record(run, loss, rate(run.step), accelerator)
            run.history.steps.append(record)
            run.step += 1
            if log_with is not None:
                accelerator.log(record, step=run.step)
            if evaluate is not None and (run.step == steps or (eval_every and run.step % eval_every == 0)):
                with evaluating(model), torch.no_grad():
                    run.history.evals.append({"step": run.step, **evaluate(model)})
                for watcher in watchers:
                    watcher.on_eval(run)
            for watcher in watchers:
                watcher.on_step(run)
            if file is not None and (run.step % save_every == 0 or run.step == steps or run.stop):
                if accelerator.is_main_process:
                    _save(file, run, parameters)
                accelerator.wait_for_everyone()
            advance(record["loss"])
        for watcher in watchers:
            watcher.on_end(run)
    if log_with is not None:
        accelerator.end_training()
    return run.history


@contextmanager
def _training(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Training mode for a block, except for norms with running statistics of which nothing is trained."""
    modes = [(module, module.training) for module in model.modules()]
    whole = len(parameters) == sum(1 for _ in model.parameters())
    model.train()
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            own = list(module.parameters())
            if not any(p.requires_grad for p in own) and (own or not whole):
                module.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def count_targets(
    objective: Objective, batches: Sequence[Mapping[str, Any]], step: Step, accelerator: Any
) -> dict[int, float]:
    """What each mean divides by: the count of the global batch, over the processes that gradients are
    averaged over.
    """
    totals: dict[int, float] = {}
    for i, batch in enumerate(batches):
        for key, count in objective.counts(batch, step.part(i)).items():
            totals[key] = totals.get(key, 0.0) + count
    if accelerator.num_processes > 1 and totals:
        values = torch.tensor(list(totals.values()), dtype=torch.float64, device=accelerator.device)
        totals = dict(zip(totals, accelerator.reduce(values, "mean").tolist(), strict=True))
    return {key: max(count, 1e-12) if count else 1.0 for key, count in totals.items()}


def _record(run: Run, loss: Any, factor: float, accelerator: Any) -> dict[str, float]:
    total = accelerator.reduce(loss.total.detach().float().clone(), "mean")
    record = {"step": run.step, "loss": float(total), **loss.terms, "lr_factor": factor}
    if isinstance(run.update, Gradient):
        record["grad_norm"] = run.update.grad_norm
    return record


def _save(file: Path, run: Run, parameters: Mapping[str, nn.Parameter]) -> None:
    told, tensors = pack(run.update.state_dict(), "update")
    tensors |= {f"parameter.{name}": parameter for name, parameter in parameters.items()}
    buffers = {name: b for name, b in unwrap(run.model).named_buffers() if name in run.model.state_dict()}
    tensors |= {f"buffer.{name}": buffer for name, buffer in buffers.items()}
    save_tensors(file, tensors, {"training": 1, "step": run.step, "update": told, "history": run.history.to_json()})


def _load(file: Path, run: Run, parameters: Mapping[str, nn.Parameter]) -> None:
    tensors, told = load_tensors(file)
    if told.get("training") != 1:
        raise StorageError(f"{file} is not a training checkpoint")
    saved = {name.removeprefix("parameter.") for name in tensors if name.startswith("parameter.")}
    if odd := sorted(saved ^ parameters.keys()):
        raise StorageError(f"{file} is of other trained parameters, such as {odd[0]!r}: pass resume=False")
    buffers = dict(run.model.named_buffers())
    with torch.no_grad():
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            target = parameters.get(name) if part == "parameter" else buffers.get(name) if part == "buffer" else None
            if target is not None:
                if target.shape != tensor.shape:
                    raise StorageError(f"{file}: {name!r} is {tuple(tensor.shape)}, the model's {tuple(target.shape)}")
                target.copy_(tensor)
    run.update.load_state_dict(unpack(told["update"], tensors))
    run.history = History.from_json(told["history"])
    run.step = told["step"]


class _Autocast(Wrapped):
    """An objective whose forwards compute in bfloat16."""

    def __init__(self, inner: Objective, device: str) -> None:
        super().__init__(inner)
        self.device = device

    def loss(self, model: nn.Module, batch: Mapping[str, Any], step: Step) -> Loss:
        with torch.autocast(self.device, torch.bfloat16):
            return self.inner(model, batch, step)


@contextmanager
def _own_randomness() -> Iterator[None]:
    """What a block draws leaves the caller's random numbers as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _seed(seed: int, step: int, process: int) -> None:
    """Dropout and augmentation depend on the seed, the step and the process alone: a resumed run draws the
    same.
    """
    mixed = int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0])
    torch.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed)


def _accelerator(device: Any, log_with: Any, checkpoint: Any) -> Any:
    from accelerate import Accelerator

    folder = str(checkpoint) if checkpoint is not None else ("." if log_with is not None else None)
    cpu = device is not None and torch.device(device).type == "cpu"
    return Accelerator(cpu=cpu, log_with=log_with, project_dir=folder, step_scheduler_with_optimizer=False)


@contextmanager
def _bar(run: Run, progress: bool, accelerator: Any) -> Iterator[Callable[[float], None]]:
    if not progress or not accelerator.is_main_process:
        with nullcontext():
            yield lambda loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("fit"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
    bar: AbstractContextManager[Any] = Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    )
    with bar as shown:
        task = shown.add_task("fit", total=run.steps, completed=run.step, loss="")
        yield lambda loss: shown.update(task, completed=run.step, loss=f"{loss:.4f}")
