"""The Collaborative International Dictionary of English: headwords and their definitions.

Webster's of 1913 with additions from WordNet, as the Debian package `dict-gcide` carries it.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import Split

ENTRIES_IN_FILE = 124_838
_HEAD = re.compile(r"^(?P<word>\S[^\\\n]*?) \\(?P<sound>[^\\\n]+)\\,? ?(?P<rest>.*)$")
_BRACKETS = re.compile(
    r"^[^\[\]]{0,300}\](?= )|\[[^\[\]]*\]|--[A-Z][\w. ]*\.(?= |$)"
)  # etymologies, marks, sources of quotations


def convert(package: Path, folder: Path) -> None:
    """Every entry as word, part of speech and plain definition."""
    with gzip.open(package / "usr/share/dictd/gcide.dict.dz", "rt", encoding="utf8", errors="replace") as file:
        entries = parse(file.read())
    check(len(entries), ENTRIES_IN_FILE, "entries")
    (folder / "entries.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf8")


def parse(text: str) -> list[tuple[str, str, str]]:
    """(word, part of speech, definition) of every entry with a definition, quotations and etymologies left out."""
    found: list[tuple[str, str, list[str]]] = []
    for line in text.split("\n"):
        if head := _HEAD.match(line):
            kind = re.match(r"((?:[a-z]+\. ?){1,3})", head["rest"])
            found.append((head["word"], kind[1].strip() if kind else "", []))
        elif found and line.startswith("   ") and not line.startswith(" " * 12):
            found[-1][2].append(line)
    return [(word, kind, plain) for word, kind, lines in found if len(plain := _plain(lines)) > 8]


def _plain(lines: list[str]) -> str:
    text = " ".join(" ".join(lines).split())
    for _ in range(2):  # brackets are nested at most once
        text = _BRACKETS.sub("", text)
    return re.sub(r" +([.,;:])", r"\1", " ".join(re.sub(r"[{}]", "", text).split()))


def read(folder: Path) -> Read:
    """Words with their definitions; what is held out is chosen by a hash of the word."""
    parts: dict[str, list[tuple[str, str, str]]] = {"train": [], "validation": [], "test": []}
    for entry in json.loads((folder / "entries.json").read_text(encoding="utf8")):
        place = zlib.crc32(entry[0].encode()) % 20
        parts["validation" if place == 0 else "test" if place == 1 else "train"].append(entry)
    splits = {}
    for name, rows in parts.items():
        words, kinds, definitions = (list(column) for column in zip(*rows, strict=True))
        texts = [f"{word}: {text}" for word, text in zip(words, definitions, strict=True)]
        splits[name] = Split({"text": texts, "word": words, "part_of_speech": kinds, "definition": definitions})
    return splits, ("quotations and most etymologies are left out; the language is that of 1913",)


ENTRIES = [
    Source(
        name="dictionary",
        kind="causal-lm",
        title="the Collaborative International Dictionary of English",
        licence="GPL-3.0-or-later",
        package=Package(
            "debian",
            "dict-gcide",
            "0.48.5+nmu2",
            sha256="7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
            size=14_800_692,
            members=("usr/share/dictd/gcide.dict.dz",),
        ),
        convert=convert,
        read=read,
    )
]
