"""The Bible in English twice and in Spanish: prose to model, verses to pair as paraphrases and translations.

The King James Version (1769 text), the World English Bible and the Reina-Valera of 1909, as SWORD modules: blocks
of verses compressed with zlib and an index of where each entry is. Headings carry the references (`Gen.1`); verses
follow them in order.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split

EDITIONS = {"kjv": ("engKJV2006eb", 31_102), "web": ("engWEB2015eb", 37_472), "rv1909": ("spaRV1909eb", 31_084)}
PAIRS = {"paraphrase": ("kjv", "web", 31_095), "translation": ("kjv", "rv1909", 31_084)}
SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
_LEFT_OUT = re.compile(r"<note\b.*?</note>|<title\b.*?</title>|<div [^>]*type=\"glossary\".*", re.S)
_CHAPTER = re.compile(r'<chapter [^>]*osisID="([\w.]+)"')


def convert(packages: tuple[Path, ...], folder: Path) -> None:
    """Every edition as one JSON file from reference to verse."""
    for (edition, (module, count)), package in zip(EDITIONS.items(), packages, strict=True):
        verses = dict(read_module(package / f"usr/share/sword/modules/texts/ztext/{module}"))
        check(len(verses), count, f"verses of {edition}")
        (folder / f"{edition}.json").write_text(json.dumps(verses, ensure_ascii=False), encoding="utf8")


def read_module(folder: Path) -> Iterator[tuple[str, str]]:
    """Reference and plain text of every verse of a SWORD module with compressed blocks of books."""
    chapter, number = "", 0
    for testament in ("ot", "nt"):
        starts = (folder / f"{testament}.bzs").read_bytes()
        packed = (folder / f"{testament}.bzz").read_bytes()
        blocks = [zlib.decompress(packed[at : at + size]) for at, size, _ in struct.iter_unpack("<III", starts)]
        for block, at, size in struct.iter_unpack("<IIH", (folder / f"{testament}.bzv").read_bytes()):
            entry = blocks[block][at : at + size].decode("utf8") if size else ""
            if found := _CHAPTER.search(entry):
                chapter, number = found[1], 0
                entry = entry.rpartition("/>")[2] if entry.rstrip().endswith("/>") else ""
                if not entry.strip():
                    continue
            number += 1
            text = " ".join(re.sub(r"<[^>]*>", "", _LEFT_OUT.sub(" ", entry)).split())
            text = re.sub(r" ([,.;:?!”’])", r"\1", text)
            if text and chapter:
                yield f"{chapter}.{number}", text


def read(folder: Path, *, edition: str = "kjv") -> Read:
    """Chapters in order as texts; the books' last chapters are held out."""
    if edition not in EDITIONS:
        raise DataError(f"bible has no edition {edition!r}: use {', '.join(EDITIONS)}")
    chapters: dict[str, list[str]] = {}
    for reference, text in _verses(folder, edition).items():
        chapters.setdefault(reference.rpartition(".")[0], []).append(text)
    last = {name.partition(".")[0]: name for name in chapters}
    held = [name for name in chapters if last[name.partition(".")[0]] == name]
    parts = {"train": [name for name in chapters if name not in held], "validation": held[::2], "test": held[1::2]}
    splits = {part: Split({"text": [" ".join(chapters[name]) for name in names]}) for part, names in parts.items()}
    return splits, (f"{edition}: a text a chapter; the last chapter of every book is held out",)


def read_pairs(folder: Path, *, pair: str = "paraphrase") -> Read:
    """Verses with the same reference in two editions, split by chapter so that no neighbours part."""
    if pair not in PAIRS:
        raise DataError(f"parallel-verses has no pair {pair!r}: use {' or '.join(PAIRS)}")
    first, second, expected = PAIRS[pair]
    one, other = _verses(folder, first), _verses(folder, second)
    shared = [reference for reference in one if reference in other]
    check(len(shared), expected, f"verses in both {first} and {second}")
    parts: dict[str, list[str]] = {name: [] for name in SHARES}
    for reference in shared:
        place = zlib.crc32(reference.rpartition(".")[0].encode()) / 2**32
        part = "train" if place < SHARES["train"] else "validation" if place < 0.95 else "test"
        parts[part].append(reference)
    columns = {
        name: Split({"text": [one[r] for r in part], "other": [other[r] for r in part], "reference": part})
        for name, part in parts.items()
    }
    return columns, (f"{first} beside {second}, by reference; some verses are numbered differently in a few chapters",)


def _verses(folder: Path, edition: str) -> dict[str, str]:
    return json.loads((folder / f"{edition}.json").read_text(encoding="utf8"))


PACKAGES = tuple(
    Package("debian", name, version, sha256=sha256, size=size, members=("usr/share/sword/*",))
    for name, version, sha256, size in (
        ("sword-text-kjv", "14.3-1", "9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57", 2_800_476),
        ("sword-text-web", "426.0-1", "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1", 3_956_428),
        ("sword-text-sparv", "2.60-1", "5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf", 2_722_332),
    )
)
_entry = partial(Source, licence="public domain", package=PACKAGES, convert=convert)
ENTRIES = [
    _entry(name="bible", kind="causal-lm", title="the Bible in English (two) and Spanish", read=read),
    _entry(name="parallel-verses", kind="pairs", title="verses in two editions", read=read_pairs),
]
