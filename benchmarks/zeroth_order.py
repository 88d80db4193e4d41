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

from timing import Report

BATCHES = {"large": (8, 128), "small": (1, 16)}
BARS = {("gaussian", "large"): 1.55, ("gaussian", "small"): 5.5, ("sign", "large"): 1.25, ("sign", "small"): 2.7}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=["minilm", "gpt2"], default=["minilm", "gpt2"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print(json.dumps(peak(*arguments.memory)))
        return
    report = Report(__file__)
    for model in arguments.model:
        for size, found in measure(model, arguments.repeats).items():
            for noise in ("gaussian", "sign"):
                shown = {noise: found[noise], "four passes": found["naive"]}
                title = f"zeroth-order step, {noise} noise, {model}, {size} batch"
                report.add(title, "time of two forwards", shown, BARS[noise, size], ours=noise)
        memory = peaks(model)
        for noise in ("gaussian", "sign"):
            shown = {noise: memory[noise], "two forwards": memory["forwards"]}
            bar = round(memory["forwards"] + memory["largest"], 2)
            report.add(f"peak of a step, {noise} noise, {model}", "MiB", shown, bar, ours=noise)
    report.save()


def measure(name: str, repeats: int) -> dict[str, dict[str, float]]:
    """Of each batch size: every way's median time over that of the two forwards."""
    import torch

    from monochord.core.zeroth_order import ZerothOrder

    model, objective = build(name)
    found = {}
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
        found[size] = {key: median[key] / median["forwards"] for key in ("gaussian", "sign", "naive")}
    return found


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
