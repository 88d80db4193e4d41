"""Emoji, drawn by Google (Noto) and by Twitter (Twemoji): small colour pictures with names, keywords and categories.

The same 1,911 emoji in two styles, so that a model of one can be tried on the other: a shift of domain with
everything else equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split
from monochord.data.pictures import save_pictures, squared

STYLES = ("google", "twitter")
EMOJI, PICTURES = 1_911, 3_786
CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Component",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)


def convert(packages: tuple[Path, ...], folder: Path) -> None:
    """All pictures of each style in one array, and one list that says what they show."""
    *styles, words = packages
    keywords = json.loads((words / "package/dist/emoji-en-US.json").read_text(encoding="utf8"))
    listed = json.loads((styles[0] / "package/emoji.json").read_text(encoding="utf8"))
    check(len(listed), EMOJI, "emoji")
    rows = [row for number, emoji in enumerate(listed) for row in _rows(emoji, number, keywords)]
    check(len(rows), PICTURES, "pictures")
    for style, package in zip(STYLES, styles, strict=True):
        home = package / f"package/img/{style}/64"
        check(sum(1 for _ in home.glob("*.png")), PICTURES, f"pictures of {style}")
        save_pictures(folder / f"{style}.npy", (squared(home / row["image"]) for row in rows), len(rows))
    (folder / "emoji.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf8")


def _rows(emoji: dict[str, Any], number: int, keywords: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """The emoji and its variants of skin tone."""
    character = _character(emoji["unified"])
    words = keywords.get(character) or keywords.get(character.replace("\ufe0f", "")) or []
    known = {
        "number": number,
        "text": (emoji["name"] or emoji["short_name"].replace("_", " ")).lower(),
        "category": emoji["category"],
        "subcategory": emoji["subcategory"],
        "keywords": ", ".join(word.replace("_", " ").strip(" \ufe0f\u20e3") for word in words),
    }
    yield {"emoji": character, "image": emoji["image"], "tone": "", **known}
    for tone, variant in emoji.get("skin_variations", {}).items():
        yield {"emoji": _character(variant["unified"]), "image": variant["image"], "tone": tone, **known}


def _character(code: str) -> str:
    return "".join(chr(int(part, 16)) for part in code.split("-"))


def read(folder: Path, *, style: str = "google", skin_tones: bool = False, seed: int = 0) -> Read:
    """Pictures (n, 64, 64, 3) on white, their categories as labels; the two styles have the same splits.

    `text` is the name, `keywords` are separated by commas and may be none, `emoji` is the character. With
    `skin_tones` the variants of people go with their emoji. In each category 10 % are held out to validate and
    10 % to test, by `seed`.
    """
    if style not in STYLES:
        raise DataError(f"emoji has no style {style!r}: use {' or '.join(STYLES)}")
    rows = json.loads((folder / "emoji.json").read_text(encoding="utf8"))
    images = np.load(folder / f"{style}.npy", mmap_mode="r")
    check(len(rows), PICTURES, "pictures listed")
    check(len(images), PICTURES, f"pictures of {style}")
    part_of = _parts([row for row in rows if not row["tone"]], seed)
    splits = {}
    for part in ("train", "validation", "test"):
        chosen = [i for i, row in enumerate(rows) if part_of[row["number"]] == part and (skin_tones or not row["tone"])]
        columns: dict[str, Any] = {"image": images[chosen]}
        columns["label"] = np.array([CATEGORIES.index(rows[i]["category"]) for i in chosen], np.int64)
        for name in ("text", "keywords", "subcategory", "emoji"):
            columns[name] = [rows[i][name] for i in chosen]
        splits[part] = Split(columns)
    notes = (
        f"drawn by {style}; flags, clocks, hearts and families differ little among themselves",
        "the category Component has 5 pictures only (hair and such)",
    )
    return splits, notes


def _parts(emoji: list[dict[str, Any]], seed: int) -> dict[int, str]:
    """The split of each emoji, by its number; every category is in every split."""
    generator, part_of = np.random.default_rng(seed), {}
    for category in CATEGORIES:
        numbers = generator.permutation([row["number"] for row in emoji if row["category"] == category])
        tenth = max(1, round(len(numbers) / 10))
        for place, number in enumerate(numbers.tolist()):
            part_of[number] = "validation" if place < tenth else "test" if place < 2 * tenth else "train"
    return part_of


def _drawings(style: str, sha256: str, size: int) -> Package:
    members = ("package/emoji.json", f"package/img/{style}/64/*.png", "package/LICENSE")
    return Package("npm", f"emoji-datasource-{style}", "16.0.0", sha256=sha256, size=size, members=members)


ENTRIES = [
    Source(
        name="emoji",
        kind="image-classification",
        title="1,911 emoji in two drawing styles, 64 by 64, with names, keywords and categories",
        licence="MIT; drawings Apache-2.0 (Noto) and CC-BY-4.0 (Twemoji)",
        package=(
            _drawings("google", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438", 74_344_091),
            _drawings("twitter", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877", 61_683_754),
            Package(
                "npm",
                "emojilib",
                "4.0.3",
                sha256="7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
                size=53_353,
                members=("package/dist/emoji-en-US.json", "package/LICENSE"),
            ),
        ),
        convert=convert,
        read=read,
        label_names=CATEGORIES,
    )
]
