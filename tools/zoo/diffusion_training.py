"""The training loop of the diffusion nets: AdamW or Muon, warm-up and cosine, averaged weights, one thread, can be
resumed.

What a run leaves in `runs/zoo/NAME/`: the averaged weights at its end, `log.jsonl`, and the state to go on from.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pretrain import RUNS, save_weights
from torch import Tensor, nn


@dataclass(frozen=True)
class Run:
    """What is trained and how long: `steps` steps of `batch` pictures; with `muon` kernels and matrices by Muon.

    `build()` is the net at its start; `loss(net, pictures)` draws what it needs from its own generator of the step:
    `loss(net, step, batch, generator)` is (batch,).
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int, int, torch.Generator], Tensor]
    steps: int
    batch: int = 32
    rate: float = 1e-3
    average: float = 0.998
    seed: int = 0
    muon: bool = False

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    @property
    def weights(self) -> Path:
        return self.folder / f"step-{self.steps}.safetensors"

    def log(self) -> list[dict[str, Any]]:
        """The lines of the log, one for every 20 steps."""
        return [json.loads(line) for line in (self.folder / "log.jsonl").read_text(encoding="utf8").splitlines()]


def train(run: Run, *, every: int = 200) -> None:
    """Train a net to its end, from where it was left. Does nothing when its weights are there."""
    if run.weights.exists():
        return
    torch.set_num_threads(1)
    run.folder.mkdir(parents=True, exist_ok=True)
    model = _with_plain_attention(run.build()).train()
    optimizers = _optimizers(run, model)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
    start, spent_before = _resume(run, model, optimizers, averaged)
    log = open(run.folder / "log.jsonl", "a", encoding="utf8")  # noqa: SIM115  (open through the whole run)
    total, begun = 0.0, time.process_time()
    for step in range(start, run.steps):
        for optimizer, own in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = rate * _schedule(step, run.steps)
        generator = torch.Generator().manual_seed(run.seed * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = run.loss(model, step, run.batch, generator).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        _average(averaged, model, min(run.average, (step + 1) / (step + 10)))
        total += loss.item()
        if not math.isfinite(total):
            raise FloatingPointError(f"{run.name}: the loss is {total} at step {step + 1}")
        done = step + 1
        if done % 20 == 0:
            spent = spent_before + time.process_time() - begun
            line = {"step": done, "loss": round(total / 20, 4), "cpu_seconds": round(spent, 1)}
            log.write(json.dumps(line) + "\n")
            log.flush()
            total = 0.0
            if done % every == 0:
                _keep(run, model, optimizers, averaged, done, spent)
                print(run.name, line, f"{done * run.batch / spent:.0f} pictures a CPU second", flush=True)
    model.load_state_dict(averaged)
    save_weights(model, run.weights)


class KernelMuon(torch.optim.Muon):
    """Muon on kernels and matrices, each as a matrix of (out, everything else)."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        self.whole = parameters
        flat = [nn.Parameter(parameter.data.flatten(1)) for parameter in parameters]  # the same memory
        super().__init__(flat, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Any = None) -> Any:
        for whole, flat in zip(self.whole, self.param_groups[0]["params"], strict=True):
            flat.grad = None if whole.grad is None else whole.grad.flatten(1)
        return super().step(closure)


def _optimizers(run: Run, model: nn.Module) -> list[Any]:
    """AdamW for all; with Muon, for embeddings, the two ends and vectors alone, at half the rate."""
    outer = ("embeddings", "conv_in", "conv_out")
    inner = {n for n, p in model.named_parameters() if run.muon and p.ndim > 1 and not any(o in n for o in outer)}
    rest = [p for n, p in model.named_parameters() if n not in inner]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    rate = run.rate / 2 if run.muon else run.rate
    made: list[Any] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True)]
    if inner:
        made.append(KernelMuon([p for n, p in model.named_parameters() if n in inner], run.rate))
    return made


def _with_plain_attention(model: nn.Module) -> nn.Module:
    """The same function; the backward pass of torch's fused attention is slow on a CPU."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    return model


def _average(averaged: dict[str, Tensor], model: nn.Module, keep: float) -> None:
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averaged[name].lerp_(value, 1 - keep)
            else:
                averaged[name].copy_(value)


def _schedule(step: int, steps: int) -> float:
    """The share of the rate: up in a fiftieth of the steps, then a cosine down to a hundredth."""
    warm = max(1, steps // 50)
    if step < warm:
        return (step + 1) / warm
    return 0.505 + 0.495 * math.cos(math.pi * (step - warm) / (steps - warm))


def _keep(
    run: Run, model: nn.Module, optimizers: list[Any], averaged: dict[str, Tensor], step: int, spent: float
) -> None:
    partial = run.folder / "state.part"
    moments = [optimizer.state_dict() for optimizer in optimizers]
    state = {"model": model.state_dict(), "optimizers": moments, "averaged": averaged}
    torch.save({**state, "step": step, "seconds": spent}, partial)
    partial.rename(run.folder / "state.pt")


def _resume(run: Run, model: nn.Module, optimizers: list[Any], averaged: dict[str, Tensor]) -> tuple[int, float]:
    file, log = run.folder / "state.pt", run.folder / "log.jsonl"
    if not file.exists():
        log.unlink(missing_ok=True)
        return 0, 0.0
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, moments in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(moments)
    averaged.update(state["averaged"])
    kept = [line for line in run.log() if line["step"] <= state["step"]]
    log.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf8")
    return int(state["step"]), float(state["seconds"])
