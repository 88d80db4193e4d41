"""The training of the nets that classify pictures and sounds: one body, a head for each set, `monochord.fit`.

What a run leaves in `runs/zoo/NAME/`: `training.safetensors`, from which it goes on, and at the end its weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import monochord as mc
from monochord.core.history import Callback, Run
from monochord.core.objective import Batch, Loss, Objective, Step
from monochord.core.update import Gradient

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "runs/zoo"


@dataclass(frozen=True)
class Part:
    """One set in the training of a net: what its classes are, and `rows` of it in every batch.

    `labels` is int64 (items,), or for several labels an item uint8 (items, classes). `inputs(items, generator)` gives
    the net's input of some items, changed at random; without a generator as they are.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    inputs: Callable[[np.ndarray, np.random.Generator | None], Tensor]
    rows: int = 1


@dataclass(frozen=True)
class Net:
    """What is trained and how long, all decided before looking at the test split."""

    name: str
    build: Callable[[], nn.Module]
    parts: Callable[[], Mapping[str, Part]]
    input: str = "pixel_values"
    steps: int = 1000
    rate: float = 1e-3
    decay: float = 0.05
    muon: bool = False
    bfloat16: bool = False

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    @property
    def weights(self) -> Path:
        return self.folder / f"step-{self.steps}.safetensors"


def train(net: Net) -> None:
    """Train a net to its end, from where it was left. Does nothing when its weights are there."""
    if net.weights.exists():
        return
    torch.set_num_threads(1)
    parts = net.parts()
    model = net.build()
    mc.fit(
        model,
        Mixed(parts, net.input),
        SeveralHeads(parts, net.input),
        steps=net.steps,
        update=Gradient(MuonAndAdamW if net.muon else AdamW, net.rate, net.decay, max_grad_norm=1.0),
        schedule="cosine",
        warmup=0.05,
        precision="bf16" if net.bfloat16 else "no",
        checkpoint=net.folder,
        save_every=max(1, net.steps // 20),
        callbacks=[Clock(net.name)],
        progress=False,
        device="cpu",
    )
    partial = net.weights.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial)
    partial.rename(net.weights)


AdamW = partial(torch.optim.AdamW, betas=(0.9, 0.98), fused=True)


class MuonAndAdamW:
    """Muon for matrices, AdamW at half its rate for the rest, as one optimizer.

    In a trial of 150 steps of 64 clothes the ViT came to 81.3 % with it, to 77.0 % with AdamW alone.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float) -> None:
        flat = [p for group in groups for p in group["params"] if p.ndim == 2]
        rest = [p for group in groups for p in group["params"] if p.ndim != 2]
        decay = max(group["weight_decay"] for group in groups)
        muon = torch.optim.Muon(flat, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        self.parts = [muon, AdamW(rest, lr=lr / 2, weight_decay=weight_decay)]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {str(place): part.state_dict() for place, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for place, part in enumerate(self.parts):
            part.load_state_dict(state[str(place)])


class Mixed:
    """Batches with `rows` of every part: `mixed[k]` is step k, always the same; an epoch of each part has each item
    once."""

    def __init__(self, parts: Mapping[str, Part], input: str, seed: int = 0) -> None:
        self.parts, self.input, self.seed = parts, input, seed
        self.epoch_steps = self.steps = max(len(part.labels) // part.rows for part in parts.values())

    def __len__(self) -> int:
        return self.steps

    def skip(self, steps: int) -> Mixed:
        raise NotImplementedError("steps are read by their number")

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        inputs, batch = [], {}
        for place, (name, part) in enumerate(self.parts.items()):
            epochs, places = divmod(np.arange(step * part.rows, (step + 1) * part.rows), len(part.labels))
            items = np.array([self._order(place, epoch)[at] for epoch, at in zip(epochs, places, strict=True)])
            inputs.append(part.inputs(items, np.random.default_rng((self.seed, step, place))))
            batch[f"labels of {name}"] = torch.from_numpy(part.labels[items])
        return {self.input: torch.cat(inputs), **batch}

    def _order(self, place: int, epoch: int) -> np.ndarray:
        kept: dict[tuple[int, int], np.ndarray] = self.__dict__.setdefault("_orders", {})
        if (place, epoch) not in kept:
            for old in [key for key in kept if key[0] == place and key[1] < epoch - 1]:
                del kept[old]
            n = len(list(self.parts.values())[place].labels)
            kept[place, epoch] = np.random.default_rng((self.seed, place, epoch)).permutation(n)
        return kept[place, epoch]


class SeveralHeads(Objective):
    """Cross-entropy of each part's rows over its own classes alone; where several labels hold, of each label."""

    def __init__(self, parts: Mapping[str, Part], input: str) -> None:
        self.input = input
        self.sizes = {name: (part.rows, len(part.names)) for name, part in parts.items()}

    def loss(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        logits = model(**{self.input: batch[self.input]}).logits.float()
        total, terms, row, column = logits.new_zeros(()), {}, 0, 0
        for name, (rows, classes) in self.sizes.items():
            said, labels = logits[row : row + rows, column : column + classes], batch[f"labels of {name}"]
            if labels.ndim == 2:  # as many nats as a choice among the labels would have, not as their mean
                own = binary_cross_entropy_with_logits(said, labels.float()) * classes / 4
            else:
                own = cross_entropy(said, labels)
            total = total + own * (rows / len(logits))
            terms[name] = own.item()
            row, column = row + rows, column + classes
        return Loss(total, terms)


class Clock(Callback):
    """Keeps the CPU seconds that a run took, over all its sittings, in its history, and says how it goes."""

    def __init__(self, name: str, every: int = 50) -> None:
        self.name, self.every = name, every

    def on_start(self, run: Run) -> None:
        kept = run.history.monitors.setdefault("cpu_seconds", [])
        self.begun = time.process_time() - (kept[-1][1] if kept else 0.0)

    def on_step(self, run: Run) -> None:
        if run.step % self.every == 0 or run.step == run.steps:
            spent = round(time.process_time() - self.begun, 1)
            run.history.monitors["cpu_seconds"].append((run.step, spent))
            last = run.history.steps[-self.every :]
            terms = {
                k: round(float(np.mean([r[k] for r in last])), 3) for k in last[-1] if k not in ("step", "lr_factor")
            }
            print(self.name, run.step, "of", run.steps, terms, f"{spent} s", flush=True)


def history(net: Net) -> dict[str, Any]:
    """What a finished run kept: `steps` with their losses, `monitors` with the CPU seconds."""
    from monochord.core.storage import load_tensors

    told: dict[str, Any] = load_tensors(net.folder / "training.safetensors")[1]["history"]
    return told
