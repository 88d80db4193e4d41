"""Answers that people or judges preferred: 300 pairs as for DPO, 300 thumbs up or down as for KTO.

Formats from "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", May 29, 2023, and "KTO:
Model Alignment as Prospect Theoretic Optimization", February 2, 2024; as shipped with LLaMA-Factory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split
from monochord.data.sets.alpaca import PACKAGE
from monochord.data.splitting import by_chance, by_class

COUNT = 300


def _load(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / f"llamafactory-0.9.5/data/{name}").read_text(encoding="utf8"))
    check(len(rows), COUNT, f"rows of {name}")
    return rows


def _dialogue(turns: list[tuple[str, str]]) -> str:
    """The turns before the answer: the only one as it is, several with who speaks."""
    if len(turns) == 1:
        return turns[0][1]
    return "\n\n".join(f"{who}: {text}" for who, text in turns)


def read_pairs(folder: Path, *, seed: int = 0) -> Read:
    """`prompt` (earlier turns with "user:" and "assistant:" before them), `chosen` and `rejected`."""
    rows = _load(folder, "dpo_en_demo.json")
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    columns = {
        "prompt": [_dialogue([(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]) for row in rows],
        "chosen": [row["chosen"]["value"] for row in rows],
        "rejected": [row["rejected"]["value"] for row in rows],
    }
    check(sum(a != b for a, b in zip(columns["chosen"], columns["rejected"], strict=True)), COUNT, "differing answers")
    whole = Split(columns)
    longer = np.mean([len(a) > len(b) for a, b in zip(columns["chosen"], columns["rejected"], strict=True)])
    notes = (f"the chosen answer is the longer one in {longer:.0%} of the pairs", "answers of language models")
    return {name: whole.take(part) for name, part in by_chance(COUNT, seed).items()}, notes


def read_feedback(folder: Path, *, seed: int = 0) -> Read:
    """`prompt`, `response` and its `label`: 1 for a good answer, 0 for a bad one."""
    rows = _load(folder, "kto_en_demo.json")
    labels = np.array([int(row["label"]) for row in rows], np.int64)
    turns = [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in rows]
    check(sum(dialogue[-1][0] == "assistant" for dialogue in turns), COUNT, "answers")
    responses = [dialogue[-1][1] for dialogue in turns]
    whole = Split({"prompt": [_dialogue(dialogue[:-1]) for dialogue in turns], "response": responses, "label": labels})
    splits = {name: whole.take(part) for name, part in by_class(labels, seed).items()}
    return splits, ("some answers play a part (a pirate, an ape), which is what was rated",)


ENTRIES = [
    Source(
        name="preference-pairs",
        kind="preference",
        title="300 prompts with a preferred and a rejected answer (DPO)",
        licence="Apache-2.0 as stated by the package",
        package=PACKAGE,
        read=read_pairs,
    ),
    Source(
        name="feedback",
        kind="feedback",
        title="300 answers that were found good or bad (KTO)",
        licence="Apache-2.0 as stated by the package",
        package=PACKAGE,
        read=read_feedback,
        label_names=("bad", "good"),
    ),
]
