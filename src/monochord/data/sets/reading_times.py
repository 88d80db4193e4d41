"""How long people look at words, and how fast they know them: what a language model's surprise is compared with.

Eye movements: a sample of "OneStop: A 360-Participant English Eye Tracking Dataset with Different Reading Regimes",
2025, as shipped with Scanpath Studio: three readers, twelve paragraphs. Lexical decision and naming: "Item effects in
recognition memory for words", January 2010, as the R package afex carries it. Checked: 3,922 rows of words, whose dwell
time goes with surprisal (r 0.17) and length (0.25) where they were looked at; 13,222 trials.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split

WORDS, TRIALS = 3_922, 13_222
COLUMNS = {
    "word": "IA_LABEL",
    "reader": "participant_id",
    "paragraph": "unique_paragraph_id",
    "position": "IA_ID",
    "dwell": "IA_DWELL_TIME",
    "first_pass": "IA_FIRST_RUN_DWELL_TIME",
    "first_fixation": "IA_FIRST_FIXATION_DURATION",
    "go_past": "IA_REGRESSION_PATH_DURATION",
    "fixations": "IA_FIXATION_COUNT",
    "skipped": "IA_SKIP",
    "length": "word_length",
    "surprisal": "gpt2_surprisal",
    "frequency": "subtlex_frequency",
    "part_of_speech": "universal_pos",
}
TEXTS = {"word", "reader", "paragraph", "part_of_speech"}


def convert_eyes(package: Path, folder: Path) -> None:
    """The chosen columns as one array each."""
    with open(package / "scanpath_studio/sample_data/ia.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    check(len(rows), WORDS, "words")
    columns: dict[str, Any] = {}
    for ours, theirs in COLUMNS.items():
        values = [row[theirs] for row in rows]
        columns[ours] = np.array(values) if ours in TEXTS else np.array([_number(value) for value in values])
    np.savez(folder / "words.npz", **columns)


def read_eyes(folder: Path) -> Read:
    """A row a word that a reader passed, in the order of the paragraph; times in milliseconds, 0 where it wasn't seen.

    `surprisal` is GPT-2's in bits, `frequency` minus the binary logarithm of SUBTLEX's, infinite for unknown words.
    """
    with np.load(folder / "words.npz") as file:
        columns = dict(file)
    check(len(columns["word"]), WORDS, "words")
    notes = (
        "three readers of twelve paragraphs: test on whole paragraphs",
        f"{int((columns['dwell'] == 0).sum())} words were never looked at; `skipped` ones were not at first pass",
    )
    return {"all": Split(columns)}, notes


def convert_decisions(package: Path, folder: Path) -> None:
    """The trials' columns as one array each."""
    from monochord.data.rdata import read_frame

    columns = read_frame(package / "usr/lib/R/site-library/afex/data", "fhch2010")
    check(len(columns["rt"]), TRIALS, "trials")
    columns["length"] = [int(length) for length in columns["length"]]
    np.savez(folder / "trials.npz", **{name: np.array(values) for name, values in columns.items()})  # type: ignore[arg-type]


def read_decisions(folder: Path) -> Read:
    """A row a trial: the `item` shown, whether it is a word, its frequency and density, and `rt` in seconds.

    `task` is "naming" (read it aloud) or "lexdec" (is it a word?), `correct` whether the answer was right.
    """
    with np.load(folder / "trials.npz") as file:
        columns = {name: file[name] for name in file.files if name != "log_rt"}
    check(len(columns["rt"]), TRIALS, "trials")
    notes = ("45 people, each in one of the two tasks", "frequency and density are high or low, of nonwords too")
    return {"all": Split(columns)}, notes


def _number(text: str) -> float:
    return float("nan") if text in (".", "") else float(text)


ENTRIES = [
    Source(
        name="reading-times",
        kind="table",
        title="Eye movements of three readers over twelve paragraphs, word by word, with GPT-2's surprisal",
        licence="MIT (Scanpath Studio), CC-BY-4.0 (OneStop)",
        package=Package(
            "pypi",
            "scanpath-studio",
            "0.25.0",
            sha256="ade9ef9bd5c80770f3df0d710bb4bc35f30af0823aee37d7b2153f08419d2d25",
            size=2_161_300,
            members=("scanpath_studio/sample_data/ia.csv", "*LICENSE", "*NOTICE"),
        ),
        convert=convert_eyes,
        read=read_eyes,
    ),
    Source(
        name="lexical-decision",
        kind="table",
        title="13,222 trials of naming and of deciding whether a string is a word, with response times",
        licence="GPL-2.0-or-later",
        package=Package(
            "debian",
            "r-cran-afex",
            "1.2-1-1",
            sha256="85496956fde6a131b827796a02b9a9429a134eb44adf944a6b5e2ed97bac1f59",
            size=3_579_640,
            members=("usr/lib/R/site-library/afex/data/*", "*copyright"),
        ),
        convert=convert_decisions,
        read=read_decisions,
    ),
]
