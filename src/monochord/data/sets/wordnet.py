"""Facts of WordNet 3.0: what is a kind of what, what is an instance of what, and what is the opposite of what.

From "WordNet: A Lexical Database for English", November 1995.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split
from monochord.data.splitting import by_group

SYNSETS = 117_659
RELATIONS = {"hypernym": ("@", 75_850), "instance": ("@i", 8_577), "antonym": ("!", 7_979)}


@dataclass(frozen=True)
class Synset:
    """Words of one meaning; `pointers` are (symbol, synset, source word, target word), words from 1, or 0 for all."""

    words: tuple[str, ...]
    pointers: tuple[tuple[str, str, int, int], ...]
    gloss: str


def convert(package: Path, folder: Path) -> None:
    """The pairs of each relation as one file of (subject, object, definition of the subject)."""
    synsets: dict[str, Synset] = {}
    for name, code in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        synsets |= dict(parse(package / f"usr/share/wordnet/data.{name}", code))
    check(len(synsets), SYNSETS, "synsets")
    for relation, (symbol, count) in RELATIONS.items():
        rows = []
        for key, synset in synsets.items():
            for kind, target, source_word, target_word in synset.pointers:
                if kind == symbol and (symbol != "@" or key[0] == target[0] == "n"):
                    subject = synset.words[max(0, source_word - 1)]
                    rows.append((subject, synsets[target].words[max(0, target_word - 1)], synset.gloss))
        check(len(rows), count, f"pairs of {relation}")
        (folder / f"{relation}.json").write_text(json.dumps(rows), encoding="utf8")


def parse(file: Path, code: str) -> Iterator[tuple[str, Synset]]:
    """Key (part of speech and offset) and content of every synset of a `data` file."""
    for line in file.read_text(encoding="latin1").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition("|")
        offset, _, _, count, *rest = fields.split()
        n = 2 * int(count, 16)
        words = tuple(word.replace("_", " ").partition("(")[0] for word in rest[:n:2])
        pointers = []
        for i in range(int(rest[n])):
            symbol, target, pos, words_meant = rest[n + 1 + 4 * i : n + 5 + 4 * i]
            pointers.append((symbol, pos + target, int(words_meant[:2], 16), int(words_meant[2:], 16)))
        yield code + offset, Synset(words, tuple(pointers), gloss.strip())


def read(folder: Path, *, relation: str = "hypernym", seed: int = 0) -> Read:
    """`subject`, `relation`, `object` and the subject's `definition`; pairs of one subject are in one split.

    `relation` is "hypernym" (dog, domestic animal), "instance" (Paris, national capital) or "antonym" (hot, cold, and
    the other way round).
    """
    if relation not in RELATIONS:
        raise DataError(f"wordnet has no relation {relation!r}: use {', '.join(RELATIONS)}")
    rows = json.loads((folder / f"{relation}.json").read_text(encoding="utf8"))
    check(len(rows), RELATIONS[relation][1], f"pairs of {relation}")
    subjects, objects, definitions = (list(column) for column in zip(*rows, strict=True))
    columns = {"subject": subjects, "relation": [relation] * len(rows), "object": objects, "definition": definitions}
    whole, notes = Split(columns), ["the first word stands for a set of synonyms; rare and technical words abound"]
    groups = subjects
    if relation == "antonym":
        groups = ["/".join(sorted((a, b))) for a, b in zip(subjects, objects, strict=True)]
        notes.append("all but five pairs are there in both directions")
    return {name: whole.take(part) for name, part in by_group(groups, seed).items()}, tuple(notes)


ENTRIES = [
    Source(
        name="wordnet",
        kind="relations",
        title="WordNet 3.0: kinds, instances and opposites of words",
        licence="WordNet licence (free, with its notice)",
        package=Package(
            "debian",
            "wordnet-base",
            "1:3.0-37",
            sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
            size=6_467_132,
            members=("usr/share/wordnet/data.*", "*/copyright"),
        ),
        convert=convert,
        read=read,
    )
]
