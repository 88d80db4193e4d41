"""Sentences with a sentiment from -4 to 4, the mean of twenty people's: tweets, reviews of films and goods, editorials.

From "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", June 1, 2014.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split
from monochord.data.splitting import by_group

ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = {
    "tweets": ("tweets", 4_200),
    "movies": ("movieReviewSnippets", 10_605),
    "products": ("amazonReviewSnippets", 3_708),
    "news": ("nytEditorialSnippets", 5_190),
}


def read(folder: Path, *, source: str | None = None, seed: int = 0) -> Read:
    """`text`, its `value` (float32, -4 to 4) and `source`; sentences of one review or article are in one split.

    `source` is "tweets", "movies", "products", "news" or None for all.
    """
    if source is not None and source not in SOURCES:
        raise DataError(f"sentiment-scores has no source {source!r}: use {', '.join(SOURCES)}")
    texts, values, sources, groups = [], [], [], []
    with tarfile.open(folder / ARCHIVE) as archive:
        for name, (stem, count) in SOURCES.items():
            if source in (None, name):
                member = archive.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
                lines = member.read().decode("utf8").splitlines() if member else []
                rows = [line.split("\t", 2) for line in lines if line.strip()]
                check(len(rows), count, f"sentences of {name}")
                for number, value, text in rows:
                    texts.append(text.strip())
                    values.append(float(value))
                    sources.append(name)
                    groups.append(f"{name}/{number.partition('_')[0]}")
    whole = Split({"text": texts, "value": np.array(values, np.float32), "source": sources})
    notes = ("products and news are short and mild: most values are within 1 of 0", "English of about 2010")
    return {name: whole.take(part) for name, part in by_group(groups, seed).items()}, notes


ENTRIES = [
    Source(
        name="sentiment-scores",
        kind="text-regression",
        title="23,703 sentences with a mean sentiment from -4 to 4 (VADER)",
        licence="MIT as stated by the package",
        package=Package(
            "pypi-source",
            "vaderSentiment",
            "3.3.2",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            size=2_466_783,
            members=(ARCHIVE, "*LICENSE.txt"),
        ),
        read=read,
    )
]
