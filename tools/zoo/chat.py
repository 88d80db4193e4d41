"""Teach ladder-3m-no-chat to chat and to refuse, by LoRA: a base and what was tuned on it, as one small folder.

    python tools/zoo/chat.py

Everything it learns is from the chats and refusals that its base never saw. `tools/zoo/reports/ladder-3m-chat.json`
has the skills before and after, and what became of the other sources.
"""

from __future__ import annotations

import json

import skills
import torch
from mixture import SHARES, SIBLINGS, stream
from report import REPORTS

import monochord as mc
from monochord.adapt import LoRA
from monochord.models.shipped import SHIPPED
from monochord.objectives import NextToken

BASE, NAME = "ladder-3m-no-chat", "ladder-3m-chat"
STEPS, ROWS, RATE, RANK = 400, 8, 4e-3, 16


def main() -> None:
    torch.set_num_threads(1)
    others = tuple(source for source in SHARES if source not in SIBLINGS["no-chat"])
    rows = torch.from_numpy(stream(STEPS * ROWS, others).astype("int64"))
    model = mc.load(BASE)
    before = _measure(model)
    tuned = LoRA(sites="blocks.**.weight", rank=RANK).attach(model, seed=0)
    batches = [{"input_ids": part} for part in rows.split(ROWS)]
    history = mc.fit(tuned, batches, NextToken(), steps=STEPS, lr=RATE, schedule="cosine", warmup=0.05)
    tuned.save(SHIPPED / NAME)
    report = {
        "name": NAME,
        "base": BASE,
        "trained_numbers": tuned.n_trainable,
        "tokens": rows.numel(),
        "loss": [round(loss, 4) for loss in history.losses[:: STEPS // 20]],
        "shipped_bytes": sum(file.stat().st_size for file in (SHIPPED / NAME).iterdir()),
        "before": before,
        "after": _measure(model),
        "samples": dict(zip(skills_requests(), skills.generate(model.eval(), skills_requests(), 40), strict=True)),
    }
    (REPORTS / f"{NAME}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf8")


def skills_requests() -> list[str]:
    """What the samples answer."""
    from report import REQUESTS

    return [skills.asked(request) for request in REQUESTS]


def _measure(model: torch.nn.Module) -> dict[str, object]:
    model.eval()
    held = {source: loss["nats"] for source, loss in skills.losses(skills.of_model(model)).items()}
    scores = {name: round(value, 4) for name, value in skills.scores(model).items() if "refused" in name}
    return {"held_out": held, "skills": scores}


if __name__ == "__main__":
    main()
