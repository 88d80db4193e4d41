"""Ship a trained classifier as int8 rows, then measure what shipped: `reports/NAME.json` and `NAME-log.jsonl`.

    python tools/zoo/classified.py             # the baselines alone, reports/{picture,sound}-baselines.json

Every figure is of the test splits. `accuracy` is that of the stored net, `accuracy_before_storing` of the float one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classify import Net, Part, history
from safetensors.torch import load_file
from torch import Tensor, nn

from monochord.models.classifiers import load_classifier
from monochord.models.shipped import SHIPPED, read_weights, save_shipped

REPORTS = Path(__file__).parent / "reports"
EVERY = 50  # steps of a line of the log


def ship_and_measure(net: Net, tests: Mapping[str, tuple[str, Part]], **more: Any) -> None:
    """Store the net under `models/shipped` and write the report of what was stored.

    `tests` are splits to measure by a title of theirs, each with the name of the head that it is for; `more` goes
    into the report.
    """
    torch.set_num_threads(1)
    labels = {name: list(part.names) for name, part in net.parts().items()}
    model: Any = net.build()
    weights = load_file(net.weights)
    folder = SHIPPED / net.name
    save_shipped(model.config, {net.steps: weights}, folder, seed=0, steps=[net.steps], labels=labels)
    log = _log(net)
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / f"{net.name}-log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf8")
    stored = read_weights(folder / f"step-{net.steps}.safetensors")
    change = max(float((stored[n] - w).norm() / w.norm().clamp(min=1e-12)) for n, w in weights.items() if w.ndim > 1)
    heads = {name: load_classifier(folder, None, labels=name).eval() for name in labels}
    model.load_state_dict(weights)
    model.eval()
    write(
        net.name,
        {
            "name": net.name,
            "parameters": {name: sum(value.numel() for value in head.parameters()) for name, head in heads.items()},
            "seed": 0,
            "steps": [net.steps],
            "rows_in_a_step": {name: part.rows for name, part in net.parts().items()},
            "items_in_training": {name: len(part.labels) for name, part in net.parts().items()},
            "training_minutes": round(log[-1]["cpu_seconds"] / 60, 1),
            "training_note": "CPU time of one thread" + (", bfloat16" if net.bfloat16 else ""),
            "shipped_bytes": sum(file.stat().st_size for file in folder.iterdir()),
            "largest_change_by_storing": round(change, 5),
            "test": {
                title: _measured(heads[name], model, _columns(labels, name), part, net.input)
                for title, (name, part) in tests.items()
            },
            **more,
        },
    )


def outputs(model: nn.Module, part: Part, input: str) -> Tensor:
    """Logits of all items, unchanged ones, (items, classes)."""
    said, items = [], np.arange(len(part.labels))
    with torch.inference_mode():
        for start in range(0, len(items), 250):
            said.append(model(**{input: part.inputs(items[start : start + 250], None)}).logits)
    return torch.cat(said)


def score(logits: Tensor, labels: np.ndarray) -> dict[str, float]:
    """Accuracy beside that of the most frequent class; with several labels mean average precision beside chance."""
    if labels.ndim == 2:
        return precision(logits.numpy(), labels)
    right = float((logits.argmax(1).numpy() == labels).mean())
    return {"accuracy": round(right, 4), "chance": round(float(np.bincount(labels).max() / len(labels)), 4)}


def precision(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean average precision over the labels that occur, and their mean share: what random scores give."""
    from sklearn.metrics import average_precision_score

    there = labels.any(0)
    found = average_precision_score(labels[:, there], scores[:, there], average="macro")
    return {"mean_average_precision": round(float(found), 4), "chance": round(float(labels[:, there].mean()), 4)}


def write(name: str, report: dict[str, Any]) -> None:
    """A report, whole or not at all."""
    partial = REPORTS / f".{name}.part"
    partial.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    partial.rename(REPORTS / f"{name}.json")


def _measured(head: nn.Module, whole: nn.Module, columns: slice, part: Part, input: str) -> dict[str, Any]:
    logits = outputs(head, part, input)
    before = score(outputs(whole, part, input)[:, columns], part.labels)
    found: dict[str, Any] = {"items": len(part.labels), **score(logits, part.labels)}
    first = next(iter(before))
    found[f"{first}_before_storing"] = before[first]
    if part.labels.ndim == 1:
        right = logits.argmax(1).numpy() == part.labels
        shares = {name: right[part.labels == i] for i, name in enumerate(part.names)}
        found["by_class"] = {name: round(float(own.mean()), 3) for name, own in shares.items() if len(own)}
    return found


def _columns(labels: Mapping[str, list[str]], name: str) -> slice:
    first = sum(len(labels[before]) for before in list(labels)[: list(labels).index(name)])
    return slice(first, first + len(labels[name]))


def _log(net: Net) -> list[dict[str, Any]]:
    told = history(net)
    clock = dict(told["monitors"]["cpu_seconds"])
    lines = []
    for end in sorted(clock):
        last = told["steps"][max(0, end - EVERY) : end]
        means = {k: round(float(np.mean([r[k] for r in last])), 4) for k in last[-1] if k not in ("step", "lr_factor")}
        lines.append({"step": end, **means, "cpu_seconds": clock[end]})
    return lines
