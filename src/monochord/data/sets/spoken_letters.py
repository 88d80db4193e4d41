"""Letters and syllables spoken in twenty languages and variants, from the game KLettres."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.audio import load_clips, read_sound, save_clips
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split
from monochord.data.splitting import by_class

HOME = "usr/share/klettres"
KINDS = {"alpha": ("letter", 588), "syllab": ("syllable", 1_248)}
LANGUAGES = tuple("ar cs da de en en_GB es fr he hu it lt ml nb nds nl pt_BR ru tn uk".split())


def convert(package: Path, folder: Path) -> None:
    """Every sound at 16 kHz, and a list of what is said."""
    files = sorted((package / HOME).rglob("*.ogg"))
    rows = []
    for file in files:
        language, kind, _ = file.relative_to(package / HOME).parts
        rows.append({"language": language, "kind": KINDS[kind][0], "text": file.stem})
    for kind, count in KINDS.values():
        check(sum(row["kind"] == kind for row in rows), count, f"sounds of a {kind}")
    save_clips(folder, map(read_sound, files))
    (folder / "sounds.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf8")


def read(folder: Path, *, kind: str | None = None, seed: int = 0) -> Read:
    """Sounds (`Clips` at 16 kHz) with their language as label; `text` is the letter or syllable.

    `kind` is "letter", "syllable" or None for both. In each language 10 % are held out to validate and to test.
    """
    kinds = [name for name, _ in KINDS.values()]
    if kind is not None and kind not in kinds:
        raise DataError(f"spoken-letters has no kind {kind!r}: use {' or '.join(kinds)}")
    rows, clips = json.loads((folder / "sounds.json").read_text(encoding="utf8")), load_clips(folder)
    check(len(rows), sum(count for _, count in KINDS.values()), "sounds listed")
    check(len(clips), len(rows), "sounds")
    chosen = np.array([i for i, row in enumerate(rows) if kind in (None, row["kind"])])
    present = sorted({rows[i]["language"] for i in chosen})
    if kind != "syllable":
        check(len(present), len(LANGUAGES), "languages")
    labels = np.array([LANGUAGES.index(rows[i]["language"]) for i in chosen], np.int64)
    splits = {}
    for part, numbers in by_class(labels, seed).items():
        columns = {name: [rows[i][name] for i in chosen[numbers]] for name in ("text", "kind", "language")}
        splits[part] = Split({"audio": clips.take(chosen[numbers]), "label": labels[numbers], **columns})
    notes = (
        "one take of a letter a language, mostly by one speaker a language",
        "names of files are not always letters",
    )
    return splits, notes


ENTRIES = [
    Source(
        name="spoken-letters",
        kind="audio-classification",
        title="588 letters and 1,248 syllables spoken in 20 languages and variants",
        licence="GPL-2.0-or-later",
        package=Package(
            "debian",
            "klettres-data",
            "4:22.12.3-1",
            sha256="1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8",
            size=39_529_084,
            members=(f"{HOME}/*.ogg", "*/copyright"),
        ),
        convert=convert,
        read=read,
        label_names=LANGUAGES,
    )
]
