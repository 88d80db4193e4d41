"""The six novels of Jane Austen, as the R package `janeaustenr` carries them: English prose to model."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split

NOVELS = {
    "SENSE AND SENSIBILITY": "Sense and Sensibility",
    "PRIDE AND PREJUDICE": "Pride and Prejudice",
    "MANSFIELD PARK": "Mansfield Park",
    "EMMA": "Emma",
    "NORTHANGER ABBEY": "Northanger Abbey",
    "PERSUASION": "Persuasion",
}
PARAGRAPHS = 20  # a text


def convert(package: Path, folder: Path) -> None:
    """The lines of every novel, by its title."""
    found: dict[str, list[str]] = {}
    for lines in _string_vectors(package / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"):
        opening = " ".join(lines[:5]).upper()
        title = next((title for mark, title in NOVELS.items() if mark in opening), None)
        if title is not None and len(lines) > 1000:
            found[title] = lines
    check(len(found), len(NOVELS), "novels")
    (folder / "novels.json").write_text(json.dumps(found), encoding="utf8")


def _string_vectors(file: Path) -> Iterator[list[str]]:
    """The strings of every record of an R data base: a length, then zlib around R's serialisation."""
    data, at = file.read_bytes(), 0
    while at < len(data):
        unpacking = zlib.decompressobj()
        record = unpacking.decompress(data[at + 4 :])
        at = len(data) - len(unpacking.unused_data)
        strings, place = [], 0
        while place < len(record) - 8:
            flags, size = struct.unpack(">Ii", record[place : place + 8])
            if flags & 255 == 9 and 0 <= size < 2000:  # type 9 is a character string
                strings.append(record[place + 8 : place + 8 + size].decode("latin1"))
                place += 8 + size
            else:
                place += 1
        yield strings


def read(folder: Path) -> Read:
    """Passages of 20 paragraphs; Persuasion is held out, half to validate and half to test."""
    novels = json.loads((folder / "novels.json").read_text(encoding="utf8"))
    texts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    titles: dict[str, list[str]] = {name: [] for name in texts}
    for title, lines in novels.items():
        paragraphs = [" ".join(p.split()) for p in "\n".join(lines).split("\n\n")]
        paragraphs = [p for p in paragraphs if p]
        passages = ["\n".join(paragraphs[i : i + PARAGRAPHS]) for i in range(0, len(paragraphs), PARAGRAPHS)]
        half = len(passages) // 2
        parts = (
            {"validation": passages[:half], "test": passages[half:]} if title == "Persuasion" else {"train": passages}
        )
        for part, chosen in parts.items():
            texts[part] += chosen
            titles[part] += [title] * len(chosen)
    splits = {name: Split({"text": texts[name], "novel": titles[name]}) for name in texts}
    return splits, ("the novel Persuasion is held out whole", f"passages of {PARAGRAPHS} paragraphs, in order")


ENTRIES = [
    Source(
        name="austen",
        kind="causal-lm",
        title="the six novels of Jane Austen",
        licence="MIT; the novels are in the public domain",
        package=Package(
            "debian",
            "r-cran-janeaustenr",
            "1.0.0-1",
            sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
            size=1_626_392,
            members=("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",),
        ),
        convert=convert,
        read=read,
    )
]
