"""Prompts of a telephone exchange in five languages, spoken for Asterisk: sentences, digits, letters, their names.

One speaker a language (the same for English and Spanish), 8 kHz; resampled to 16 kHz, nothing is above 4 kHz.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.audio import load_clips, read_sound, save_clips
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split
from monochord.data.splitting import by_group

VOICES = {
    "en": ("en_US_f_Allison", 568),
    "es": ("es_MX_f_Allison", 527),
    "fr": ("fr_CA_f_June", 561),
    "it": ("it_IT_m_Carlo", 599),
    "ru": ("ru_RU_f_IvrvoiceRU", 576),
}
SILENCES = 10  # of each voice, left out
GROUPS = ("prompts", "digits", "letters", "phonetic", "dictate", "followme")


def convert(packages: tuple[Path, ...], folder: Path) -> None:
    """Every prompt at 16 kHz, and a list of their languages, groups and names."""
    rows, files = [], []
    for (language, (voice, count)), package in zip(VOICES.items(), packages, strict=True):
        home = package / "usr/share/asterisk/sounds" / voice
        found = sorted(home.rglob("*.wav"))
        check(len(found), count, f"sounds of {voice}")
        for file in found:
            path = file.relative_to(home)
            group = path.parts[0] if len(path.parts) > 1 else "prompts"
            if group != "silence":
                rows.append({"language": language, "group": group, "name": path.stem})
                files.append(file)
    check(save_clips(folder, map(read_sound, files)), _count(), "sounds")
    (folder / "sounds.json").write_text(json.dumps(rows), encoding="utf8")


def _count() -> int:
    return sum(count - SILENCES for _, count in VOICES.values())


def read(folder: Path, *, group: str | None = None, seed: int = 0) -> Read:
    """Sounds (`Clips` at 16 kHz) with their language as label; a name is in one split only, in all languages.

    `text` is the name of the prompt ("vm-goodbye", "7", "ascii63"), not a transcript. `group` is "prompts", "digits",
    "letters", "phonetic", "dictate", "followme" or None for all.
    """
    if group is not None and group not in GROUPS:
        raise DataError(f"spoken-prompts has no group {group!r}: use {', '.join(GROUPS)}")
    rows, clips = json.loads((folder / "sounds.json").read_text(encoding="utf8")), load_clips(folder)
    check(len(rows), _count(), "sounds listed")
    check(len(clips), len(rows), "sounds")
    chosen = np.array([i for i, row in enumerate(rows) if group in (None, row["group"])])
    splits, codes = {}, list(VOICES)
    for part, numbers in by_group([f"{rows[i]['group']}/{rows[i]['name']}" for i in chosen], seed).items():
        kept = chosen[numbers]
        label = np.array([codes.index(rows[i]["language"]) for i in kept], np.int64)
        texts, groups = ([rows[i][name] for i in kept] for name in ("name", "group"))
        splits[part] = Split({"audio": clips.take(kept), "label": label, "text": texts, "group": groups})
    return splits, ("one speaker a language, the same for English and Spanish", "the band ends at 4 kHz")


def _voice(language: str, sha256: str, size: int) -> Package:
    name = f"asterisk-core-sounds-{language}-wav"
    return Package("debian", name, "1.6.1-1", sha256=sha256, size=size, members=("*.wav", "*/copyright"))


ENTRIES = [
    Source(
        name="spoken-prompts",
        kind="audio-classification",
        title="2,781 spoken prompts, digits and letters in five languages",
        licence="CC-BY-SA-3.0",
        package=(
            _voice("en", "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d", 18_272_864),
            _voice("es", "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903", 23_767_256),
            _voice("fr", "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e", 18_516_060),
            _voice("it", "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb", 18_262_124),
            _voice("ru", "ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201", 18_788_860),
        ),
        convert=convert,
        read=read,
        label_names=tuple(VOICES),
    )
]
