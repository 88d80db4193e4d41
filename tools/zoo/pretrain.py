"""The training loop of the language nets: next token, Muon or AdamW, warm-up and cosine, one thread, can be resumed.

What a run leaves in `runs/zoo/NAME/`: weights at its checkpoints, `log.jsonl`, and the optimiser's state.
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
from mixture import LENGTH, ROOT, stream
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

RUNS = ROOT / "runs/zoo"


@dataclass(frozen=True)
class Net:
    """What is trained and how long: `steps` steps of `rows` rows of 256 tokens, all decided before looking."""

    name: str
    build: Callable[[], nn.Module]
    steps: int = 3000
    rows: int = 4
    rate: float = 3e-3
    muon: bool = False  # for the matrices of the blocks; everything else, and else everything, has AdamW
    without: tuple[str, ...] = ()
    bfloat16: bool = True
    first_row: int = 0
    checkpoints: int = 5
    loss: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]] | None = None

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    def saved_steps(self) -> list[int]:
        """Log-spaced from a fiftieth of the training to its end."""
        last = self.checkpoints - 1
        return [round(self.steps * 0.02 ** (1 - k / last)) for k in range(self.checkpoints)] if last else [self.steps]

    def weights(self, step: int) -> Path:
        return self.folder / f"step-{step}.safetensors"


def train(net: Net, *, every: int = 200) -> None:
    """Train a net to its end, from where it was left. Does nothing when the last checkpoint is there."""
    if net.weights(net.steps).exists():
        return
    torch.set_num_threads(1)
    rows = torch.from_numpy(stream(net.first_row + net.steps * net.rows, net.without).astype("int64"))[net.first_row :]
    net.folder.mkdir(parents=True, exist_ok=True)
    model = net.build().train()
    optimizers = _optimizers(net, model)
    start, seconds = _resume(net, model, optimizers)
    log = open(net.folder / "log.jsonl", "a", encoding="utf8")  # noqa: SIM115  (open through the whole run)
    total, since = 0.0, start
    begun = time.process_time()
    for step in range(start, net.steps):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = net.rate * _schedule(step, net.steps)
        batch = rows[step * net.rows : (step + 1) * net.rows]
        with torch.autocast("cpu", torch.bfloat16, enabled=net.bfloat16):
            loss, shown = (net.loss or next_token)(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        total += shown.item()
        if not math.isfinite(total):
            raise FloatingPointError(f"{net.name}: the loss is {total} at step {step + 1}")
        done = step + 1
        if done in net.saved_steps():
            save_weights(model, net.weights(done))
        if done % 10 == 0 or done == net.steps:
            spent = seconds + time.process_time() - begun
            line = {"step": done, "tokens": done * net.rows * LENGTH, "loss": round(total / (done - since), 4)}
            log.write(json.dumps({**line, "cpu_seconds": round(spent, 1)}) + "\n")
            log.flush()
            total, since = 0.0, done
            if done % every == 0:
                _keep(net, model, optimizers, done, spent)
                print(net.name, line, f"{done * net.rows * LENGTH / spent:.0f} tokens a CPU second", flush=True)


def next_token(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the next token in nats, twice: what is trained and what is shown."""
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
    return loss, loss.detach()


def save_weights(model: nn.Module, file: Path) -> None:
    """A model's weights in float32; tied ones once."""
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    partial = file.with_suffix(".part")
    save_file(state, partial)
    partial.rename(file)


def _optimizers(net: Net, model: nn.Module) -> list[torch.optim.Optimizer]:
    inner = {n for n, p in model.named_parameters() if net.muon and p.ndim == 2 and "embed" not in n}
    rest = [(n, p) for n, p in model.named_parameters() if n not in inner]
    groups = [
        {"params": [p for _, p in rest if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for _, p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=net.rate, betas=(0.9, 0.98), fused=True)]
    if inner:
        matrices = [p for n, p in model.named_parameters() if n in inner]
        made.append(torch.optim.Muon(matrices, lr=net.rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    return made


def _schedule(step: int, steps: int) -> float:
    """The share of the rate: up in a twentieth of the steps, then a cosine down to a tenth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / (steps - warm))


def _keep(net: Net, model: nn.Module, optimizers: list[Any], step: int, seconds: float) -> None:
    partial = net.folder / "state.part"
    moments = [optimizer.state_dict() for optimizer in optimizers]
    state = {"model": model.state_dict(), "optimizers": moments, "step": step, "seconds": seconds}
    torch.save(state, partial)
    partial.rename(net.folder / "state.pt")


def _resume(net: Net, model: nn.Module, optimizers: list[Any]) -> tuple[int, float]:
    file = net.folder / "state.pt"
    if not file.exists():
        (net.folder / "log.jsonl").unlink(missing_ok=True)
        return 0, 0.0
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, moments in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(moments)
    lines = (net.folder / "log.jsonl").read_text(encoding="utf8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= state["step"]]
    (net.folder / "log.jsonl").write_text("".join(kept), encoding="utf8")
    return state["step"], state["seconds"]
