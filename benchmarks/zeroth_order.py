"""A zeroth-order step against two plain forwards of the same batch, and against the usual four passes over
the noise.

python benchmarks/zeroth_order.py --model minilm gpt2 --repeats 5

Repetitions alternate and medians are compared; peak memory is that of a process of its own, above a process
that runs the two forwards alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

BATCHES = {"large": (8, 128), "small": (1, 16)}
BARS = {("gaussian", "large"): 1.55, ("gaussian", "small"): 5.5, ("sign", "large"): 1.25, ("sign", "small"): 2.7}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=["minilm", "gpt2"], default=["minilm", "gpt2"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print(json.dumps(peak(*arguments.memory)))
        return
    rows = [row for model in arguments.model for row in measure(model, arguments.repeats)]
    memory = {model: peaks(model) for model in arguments.model}
    if arguments.json:
        print(json.dumps({"threads": arguments.threads, "steps": rows, "peak_mb": memory}))
        return
    print(f"{'model':8}{'batch':8}{'forwards ms':>12}{'gaussian':>10}{'sign':>8}{'four passes':>13}")
    for row in rows:
        print(f"{row['model']:8}{row['batch']:8}{row['forwards_ms']:12.1f}", end="")
        print(f"{row['gaussian']:10.2f}{row['sign']:8.2f}{row['naive']:13.2f}")
    print("bars".ljust(28) + "".join(f"{kind} {size} {bar}; " for (kind, size), bar in BARS.items()))
    for model, found in memory.items():
        print(f"{model}: peak MB {found['forwards']:.0f} with two forwards, {found['gaussian']:.0f} gaussian, ", end="")
        print(f"{found['sign']:.0f} sign, largest parameter {found['largest']:.0f}")


def measure(name: str, repeats: int) -> list[dict]:
    import torch

    from monochord.core.zeroth_order import ZerothOrder

    model, objective = build(name)
    rows = []
    for size, shape in BATCHES.items():
        batch = {"input_ids": torch.randint(0, 30000, shape, generator=torch.Generator().manual_seed(0))}

        def forwards(batch: dict = batch) -> None:
            with torch.inference_mode():
                objective(model, batch)
                objective(model, batch)

        work: dict[str, Callable[[], object]] = {
            "forwards": forwards,
            "naive": lambda batch=batch: naive(model, batch, objective),
        }
        for noise in ("gaussian", "sign"):
            update = ZerothOrder(lr=1e-9, noise=noise)
            update.setup(model)
            work[noise] = lambda update=update, batch=batch: update.step(model, batch, objective)
        inner = 1 if size == "large" else 5
        seconds: dict[str, list[float]] = {key: [] for key in work}
        for key in work:
            work[key]()
        for _ in range(repeats):
            for key, run in work.items():
                start = time.perf_counter()
                for _ in range(inner):
                    run()
                seconds[key].append((time.perf_counter() - start) / inner)
        median = {key: statistics.median(values) for key, values in seconds.items()}
        row = {"model": name, "batch": size, "forwards_ms": round(1000 * median["forwards"], 2)}
        rows.append(row | {key: round(median[key] / median["forwards"], 3) for key in ("gaussian", "sign", "naive")})
    return rows


def naive(model, batch, objective, eps: float = 1e-3, lr: float = 1e-9) -> None:
    """Four whole-tensor passes over exact normal noise, as commonly written."""
    import torch

    def move(distance: float) -> None:
        torch.manual_seed(7)
        for parameter in model.parameters():
            parameter.data.add_(torch.normal(0, 1, parameter.shape) * distance)

    with torch.inference_mode():
        move(eps)
        up = objective(model, batch).total.item()
        move(-2 * eps)
        down = objective(model, batch).total.item()
        move(eps)
        move(-lr * (up - down) / (2 * eps))


def build(name: str):
    import torch
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    from monochord.core.objective import Loss, Objective

    class MeanOutput(Objective):
        """The cheapest scalar, so that the forward is what is compared."""

        def loss(self, model, batch, step):
            return Loss(model(**batch).logits[:, -1].float().logsumexp(-1).mean())

    torch.manual_seed(0)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config()).eval(), MeanOutput()
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertForMaskedLM(BertConfig(**shape)).eval(), MeanOutput()


def peaks(name: str) -> dict[str, float]:
    found = {}
    for mode in ("forwards", "gaussian", "sign"):
        command = [sys.executable, __file__, "--memory", name, mode]
        found |= json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def peak(name: str, mode: str) -> dict[str, float]:
    import torch

    from monochord.core.zeroth_order import ZerothOrder

    model, objective = build(name)
    batch = {"input_ids": torch.randint(0, 30000, BATCHES["small"])}
    Path("/proc/self/clear_refs").write_text("5")
    if mode == "forwards":
        with torch.inference_mode():
            objective(model, batch)
            objective(model, batch)
    else:
        update = ZerothOrder(lr=1e-9, noise=mode)
        update.setup(model)
        update.step(model, batch, objective)
    status = Path("/proc/self/status").read_text()
    largest = max(parameter.nbytes for parameter in model.parameters()) / 2**20
    return {mode: int(status.split("VmHWM:")[1].split()[0]) / 1024, "largest": largest}


if __name__ == "__main__":
    main()
