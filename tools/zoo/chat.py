"""Teach ladder-3m-no-chat to chat and to refuse, by LoRA: a base and what was tuned on it, as one small folder.

    python tools/zoo/chat.py

Everything it learns is from the chats and refusals that its base never saw. `tools/zoo/reports/ladder-3m-chat.json`
has the skills before and after, and what became of the other sources.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import skills
import torch
from mixture import LENGTH, SEED, SHARES, SIBLINGS, Documents
from report import REPORTS, REQUESTS

import monochord as mc
from monochord.adapt import LoRA
from monochord.models.shipped import SHIPPED
from monochord.objectives import NextToken

BASE, NAME = "ladder-3m-no-chat", "ladder-3m-chat"
STEPS, ROWS, RATE, RANK = 400, 8, 4e-3, 16


def main() -> None:
    torch.set_num_threads(1)
    model = mc.load(BASE)
    before = _measure(model)
    tuned = LoRA(sites="blocks.**.weight", rank=RANK).attach(model, seed=0)
    history = mc.fit(tuned, list(batches()), NextToken(), steps=STEPS, lr=RATE, schedule="cosine", warmup=0.05)
    tuned.save(SHIPPED / NAME)
    answers = skills.generate(model.eval(), [skills.asked(request) for request in REQUESTS], 40)
    report = {
        "name": NAME,
        "base": BASE,
        "trained_numbers": tuned.n_trainable,
        "steps": STEPS,
        "rows": STEPS * ROWS,
        "loss": [round(loss, 4) for loss in history.losses[:: STEPS // 20]],
        "shipped_bytes": sum(file.stat().st_size for file in (SHIPPED / NAME).iterdir()),
        "before": before,
        "after": _measure(model),
        "samples": dict(zip(REQUESTS, answers, strict=True)),
    }
    (REPORTS / f"{NAME}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf8")


def batches() -> Iterator[dict[str, torch.Tensor]]:
    """Rows of whole chats and refusals, in the mixture's shares, filled up with padding."""
    names = SIBLINGS["no-chat"]
    shares = np.array([SHARES[name] for name in names])
    sources, rng = [Documents(name) for name in names], np.random.default_rng(SEED)
    for _ in range(STEPS):
        rows = torch.full((ROWS, LENGTH), 1)
        for row in rows:
            used = 0
            while True:
                source = sources[int(rng.choice(len(names), p=shares / shares.sum()))]
                if used + source.next_length() > LENGTH:
                    break
                ids = source.take(LENGTH, running=False)
                row[used : used + len(ids)] = torch.tensor(ids)
                used += len(ids)
        yield {"input_ids": rows, "attention_mask": (rows != 1).long()}


def _measure(model: torch.nn.Module) -> dict[str, object]:
    model.eval()
    held = {source: loss["nats"] for source, loss in skills.losses(skills.of_model(model)).items()}
    scores = {name: round(value, 4) for name, value in skills.scores(model).items() if "refused" in name}
    return {"held_out": held, "skills": scores}


if __name__ == "__main__":
    main()
