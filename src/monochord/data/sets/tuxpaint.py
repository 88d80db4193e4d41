"""Tux Paint's stamps: photographs and drawings with a caption in 77 languages, spoken in a dozen of them.

Pictures, captions and speech are about the same things, so all three can be aligned; splits agree between the two
entries.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from monochord.core.packages import Package
from monochord.data.audio import load_clips, read_sound, save_clips
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split
from monochord.data.pictures import save_pictures, squared
from monochord.data.splitting import by_group

HOME = "usr/share/tuxpaint/stamps"
CAPTIONED, PICTURES = 952, 785
SPOKEN = {
    "be": 694,
    "bg": 917,
    "ca": 918,
    "da": 322,
    "el": 681,
    "en": 66,
    "es": 890,
    "fr": 928,
    "lt": 88,
    "ml": 6,
    "nl": 67,
    "ro": 920,
    "ru": 920,
}


def convert(package: Path, folder: Path) -> None:
    """Captions by language of every stamp, and the pictures of those that have one as PNG."""
    rows = _captions(package)
    pictured = [row for row in rows if (package / HOME / f"{row['name']}.png").exists()]
    check(len(pictured), PICTURES, "pictures with a caption")
    files = (package / HOME / f"{row['name']}.png" for row in pictured)
    save_pictures(folder / "pictures.npy", map(squared, files), len(pictured))
    (folder / "captions.json").write_text(json.dumps(pictured, ensure_ascii=False), encoding="utf8")


def convert_speech(package: Path, folder: Path) -> None:
    """Every spoken caption at 16 kHz, and a list of language, stamp and caption."""
    caption = {row["name"]: row["captions"] for row in _captions(package)}
    rows, files = [], []
    for file in sorted((package / HOME).rglob("*_desc*.ogg")):
        found = re.fullmatch(r"(.*)_desc(?:_(\w+))?\.ogg", file.relative_to(package / HOME).as_posix())
        if found is None:  # one file has its suffix twice
            continue
        name, language = found[1], found[2] or "en"
        rows.append({"name": name, "language": language, "text": caption.get(name, {}).get(language, "")})
        files.append(file)
    _check_speech(rows)
    save_clips(folder, map(read_sound, files))
    (folder / "speech.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf8")


def _captions(package: Path) -> list[dict[str, Any]]:
    """Name (the path without suffix) and captions by language: English is the first line, then `fr.utf8=...`."""
    home, rows = package / HOME, []
    for file in sorted(home.rglob("*.txt")):
        first, *others = file.read_text(encoding="utf8").split("\n")
        pairs = re.findall(r"^([\w@]+)\.utf8=(.*)$", "\n".join(others), re.M)
        captions = {"en": first, **dict(pairs)}
        name = file.relative_to(home).with_suffix("").as_posix()
        rows.append({"name": name, "captions": {code: text.strip() for code, text in captions.items() if text.strip()}})
    check(len(rows), CAPTIONED, "captioned stamps")
    return rows


def read(folder: Path, *, language: str = "en", also: tuple[str, ...] = ()) -> Read:
    """Pictures (n, 64, 64, 3) on white with `text`, the caption in `language`; a column `text_fr` for "fr" in `also`.

    `topic` is the folder ("animals"), `name` what the same stamp has in "tuxpaint-speech". Pictures without a caption
    in one of the languages are left out, as the card says.
    """
    rows = json.loads((folder / "captions.json").read_text(encoding="utf8"))
    images = np.load(folder / "pictures.npy", mmap_mode="r")
    check(len(rows), PICTURES, "captions")
    check(len(images), PICTURES, "pictures")
    also = (also,) if isinstance(also, str) else tuple(also)
    known = Counter(code for row in rows for code in row["captions"])
    for code in (language, *also):
        if code not in known:
            raise DataError(f"tuxpaint has no captions in {code!r}: use {', '.join(sorted(known))}")
    kept = np.array([i for i, row in enumerate(rows) if all(code in row["captions"] for code in (language, *also))])
    splits = {}
    for part, numbers in by_group([rows[i]["name"] for i in kept]).items():
        chosen = kept[numbers]
        columns: dict[str, Any] = {"image": images[chosen], "text": [rows[i]["captions"][language] for i in chosen]}
        for code in also:
            columns[f"text_{code}"] = [rows[i]["captions"][code] for i in chosen]
        columns["topic"] = [rows[i]["name"].partition("/")[0] for i in chosen]
        columns["name"] = [rows[i]["name"] for i in chosen]
        splits[part] = Split(columns)
    notes = (
        f"{len(kept)} of {PICTURES} pictures have a caption in {' and '.join((language, *also))}",
        f"{CAPTIONED - PICTURES} captioned stamps that are SVG only have no picture here, but may be spoken",
        "coins, bank notes and traffic signs of several countries resemble each other",
    )
    return splits, notes


def read_speech(folder: Path, *, language: str | None = None) -> Read:
    """Sounds (`Clips` at 16 kHz) with their language as label and the caption that is read out as `text`.

    `language` is None for all. `text` is empty where there is a recording and no caption. The stamps of the test
    split are those of "tuxpaint".
    """
    if language is not None and language not in SPOKEN:
        raise DataError(f"tuxpaint-speech has no language {language!r}: use {', '.join(SPOKEN)}")
    rows, clips = json.loads((folder / "speech.json").read_text(encoding="utf8")), load_clips(folder)
    _check_speech(rows)
    check(len(clips), len(rows), "sounds")
    kept = np.array([i for i, row in enumerate(rows) if language in (None, row["language"])])
    splits, codes = {}, list(SPOKEN)
    for part, numbers in by_group([rows[i]["name"] for i in kept]).items():
        chosen = kept[numbers]
        columns: dict[str, Any] = {"audio": clips.take(chosen), "text": [rows[i]["text"] for i in chosen]}
        columns["label"] = np.array([codes.index(rows[i]["language"]) for i in chosen], np.int64)
        columns["name"] = [rows[i]["name"] for i in chosen]
        splits[part] = Split(columns)
    notes = (
        f"{sum(not rows[i]['text'] for i in kept)} recordings have no caption in their language",
        "mostly one speaker a language; some read a short name where the caption is a sentence",
    )
    return splits, notes


def _check_speech(rows: list[dict[str, str]]) -> None:
    found = Counter(row["language"] for row in rows)
    for language, count in SPOKEN.items():
        check(found.pop(language, 0), count, f"recordings in {language}")
    check(len(found), 0, "other languages")


PACKAGE = Package(
    "debian",
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    size=160_880_444,
    members=(f"{HOME}/*.png", f"{HOME}/*.txt", f"{HOME}/*.ogg", "*/copyright"),
)
ENTRIES = [
    Source(
        name="tuxpaint",
        kind="image-text",
        title="785 photographs and drawings, 64 by 64, with captions in 77 languages",
        licence="GPL-2.0-or-later",
        package=PACKAGE,
        convert=convert,
        read=read,
    ),
    Source(
        name="tuxpaint-speech",
        kind="speech",
        title="7,417 spoken captions of Tux Paint's pictures in 13 languages",
        licence="GPL-2.0-or-later",
        package=PACKAGE,
        convert=convert_speech,
        read=read_speech,
        label_names=tuple(SPOKEN),
    ),
]
