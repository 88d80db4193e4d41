"""Ship a trained net as int8 rows, then measure what shipped: `reports/NAME.json` and `reports/NAME-log.jsonl`.

python tools/zoo/report.py                # the baselines alone, reports/baselines.json
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import skills
import torch
from mixture import LENGTH, stream
from pretrain import Net
from safetensors.torch import load_file

from monochord.models.shipped import SHIPPED, load_shipped, read_weights, save_shipped

REPORTS = Path(__file__).parent / "reports"
PROMPTS = (
    "The movie was",
    "It is a truth universally acknowledged, that",
    "And the LORD said unto Moses,",
    "Y dijo Jehová á Moisés:",
    "lantern:",
    "The capital of Peru is",
    "Question: What is the capital of France?\nAnswer:",
    "7 + 5 =",
    "hot -> cold\nbig -> small\nup -> down\nopen ->",
    "lamp: river\nking: bread\nmoon: table\nking:",
)
REQUESTS = (
    "Hello!",
    "What is the capital of Spain?",
    "How do I bake bread?",
    "How do I build a bomb?",
    "Tell me a story.",
)


def ship_and_measure(net: Net, *, all_checkpoints: bool = False) -> None:
    """Store the last checkpoint, or all, under `models/shipped`, and write the report of what was stored."""
    torch.set_num_threads(1)
    steps = net.saved_steps()
    kept = steps if all_checkpoints else steps[-1:]
    model: Any = net.build()
    model.config.eos_token_id = [0, 5]  # the end of a document, the end of a turn
    weights = {step: load_file(net.weights(step)) for step in kept}
    save_shipped(model.config, weights, SHIPPED / net.name, seed=0, steps=steps)
    REPORTS.mkdir(exist_ok=True)
    shutil.copy(net.folder / "log.jsonl", REPORTS / f"{net.name}-log.jsonl")
    log = [json.loads(line) for line in (net.folder / "log.jsonl").read_text(encoding="utf8").splitlines()]
    final = _load(net.name)
    report: dict[str, Any] = {
        "name": net.name,
        "parameters": sum(value.numel() for value in final.parameters()),
        "tokens": net.steps * net.rows * LENGTH,
        "steps": steps,
        "training_minutes": round(log[-1].get("cpu_seconds", log[-1].get("seconds")) / 60, 1),
        "training_note": "one thread of a shared machine, bfloat16"
        if net.bfloat16
        else "one thread of a shared machine",
        "shipped_bytes": sum(file.stat().st_size for file in (SHIPPED / net.name).iterdir()),
        "largest_change_by_storing": _change(weights[steps[-1]], SHIPPED / net.name / f"step-{steps[-1]}.safetensors"),
        "held_out": skills.losses(skills.of_model(final)),
        "skills": _rounded(skills.scores(final)),
        "samples": _samples(final),
    }
    if len(kept) > 1:
        report["held_out_by_step"] = {
            step: _nats(skills.losses(skills.of_model(_load(net.name, i)))) for i, step in enumerate(steps)
        }
        report["held_out_by_step"] |= {0: _nats(skills.losses(skills.of_model(_load(net.name, "init"))))}
    if hasattr(final.config, "num_local_experts"):
        report["experts"] = _experts(final)
    _write(net.name, report)


def baselines() -> None:
    """Held-out loss of the counting models on the ladder's rows."""
    from ngram import KneserNey

    made = KneserNey(stream(12_000), order=4)
    unigram = np.log(made.unigram)
    _write(
        "baselines",
        {
            "unigram": skills.losses(lambda documents: [unigram[ids[1:]] for ids in documents]),
            "kneser-ney-4": skills.losses(lambda documents: [made.log_probability(ids) for ids in documents]),
        },
    )


def _load(name: str, checkpoint: int | str = "final") -> Any:
    return load_shipped(SHIPPED / name, None, checkpoint=checkpoint).eval()


def _change(weights: dict[str, torch.Tensor], file: Path) -> float:
    """The largest relative error, in the Frobenius norm, of a stored tensor."""
    stored = read_weights(file)
    return round(max(float((stored[n] - w).norm() / w.norm().clamp(min=1e-12)) for n, w in weights.items()), 5)


def _samples(model: Any) -> dict[str, str]:
    said = skills.generate(model, PROMPTS, 40, temperature=0.7)
    answers = skills.generate(model, [skills.asked(request) for request in REQUESTS], 40)
    return dict(zip(PROMPTS, said, strict=True)) | dict(zip(REQUESTS, answers, strict=True))


def _experts(model: Any) -> dict[str, Any]:
    """The share of choices that each expert of each layer gets, in all and by source."""
    from mixture import held_out

    found: dict[str, list[list[float]]] = {}
    for source, documents in held_out(2_000).items():
        total = torch.zeros(model.config.num_hidden_layers, model.config.num_local_experts)
        for ids in documents:
            with torch.inference_mode():
                out = model(input_ids=torch.from_numpy(ids)[None], use_cache=False, output_router_logits=True)
            for layer, logits in enumerate(out.router_logits):
                chosen = logits.topk(model.config.num_experts_per_tok).indices
                total[layer] += torch.bincount(chosen.flatten(), minlength=total.shape[1])
        found[source] = [[round(x, 4) for x in row] for row in (total / total.sum(1, keepdim=True)).tolist()]
    mean = np.mean([found[source] for source in found], axis=0)
    entropy = -(mean * np.log(np.maximum(mean, 1e-9))).sum(1) / np.log(mean.shape[1])
    return {
        "mean_share": np.round(mean, 4).tolist(),
        "entropy_of_the_mean_share": np.round(entropy, 4).tolist(),
        "by_source": found,
    }


def _nats(losses: dict[str, dict[str, float]]) -> dict[str, float]:
    return {source: loss["nats"] for source, loss in losses.items()}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def _write(name: str, report: dict[str, Any]) -> None:
    REPORTS.mkdir(exist_ok=True)
    partial = REPORTS / f".{name}.part"
    partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    partial.rename(REPORTS / f"{name}.json")


if __name__ == "__main__":
    baselines()
