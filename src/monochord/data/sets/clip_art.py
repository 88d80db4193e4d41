"""Open Clip Art: colour drawings with several keywords each, for classification with many labels at once.

The PNG files of release 0.18 without 1,221 that are links to another and 16 of more than 25 megapixels; titles and
keywords are those of the SVG files they were drawn from.
"""

from __future__ import annotations

import html
import json
import re
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from monochord.core.packages import Package
from monochord.data.catalog import Labelled, Source, check
from monochord.data.dataset import DataError, Split
from monochord.data.pictures import save_pictures, squared

IN_PACKAGE, PICTURES, TITLED, WITH_KEYWORDS = 6_900, 6_884, 6_826, 6_766
LARGEST = 25_000_000  # pixels: the 16 pictures above it take gigabytes to decode
HOME = "usr/share/openclipart"
NOT_CONTENT = {"architetto francesco rollandin", "hash", "lemon_theme_icon", "magick", "special", "unsorted"}
RARE = 5  # a title that more pictures share names their collection


def convert(packages: tuple[Path, ...], folder: Path) -> None:
    """All pictures in one array, and a list of their folders, files, titles and keywords."""
    png, svg = packages[0] / HOME / "png", packages[1] / HOME / "svg"
    found = sorted(png.rglob("*.png"))
    check(len(found), IN_PACKAGE, "pictures")
    files = [file for file in found if _pixels(file) <= LARGEST]
    check(len(files), PICTURES, "pictures of a usable size")
    drawings = {file.stem: file for file in svg.rglob("*.svg")}  # for those whose own drawing is a link to another
    rows = []
    for file in files:
        path = file.relative_to(png)
        own = (svg / path).with_suffix(".svg")
        title, keywords = _described(own if own.exists() else drawings[file.stem])
        rows.append({"folder": path.parts[0], "file": path.stem, "title": title, "keywords": keywords})
    check(sum(bool(row["title"]) for row in rows), TITLED, "titles")
    check(sum(bool(row["keywords"]) for row in rows), WITH_KEYWORDS, "pictures with keywords")
    save_pictures(folder / "pictures.npy", map(squared, files), len(files))
    (folder / "pictures.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf8")


def _pixels(png: Path) -> int:
    """Width times height, from the header."""
    with open(png, "rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return int(width * height)


def _described(svg: Path) -> tuple[str, list[str]]:
    """Title and keywords in the metadata of an SVG file."""
    text = svg.read_text(encoding="utf8", errors="replace")
    title = re.search(r"<dc:title[^>]*>(.*?)</dc:title>", text)
    subject = re.search(r"<dc:subject>.*?</dc:subject>", text, re.S)
    words = re.findall(r"<rdf:li>(.*?)</rdf:li>", subject[0]) if subject else []
    plain = [html.unescape(word).lower().strip() for word in words]
    return html.unescape(title[1]).strip() if title else "", sorted({word for word in plain if word})


def read(folder: Path, *, per_title: int = 20, min_images: int = 30, seed: int = 0) -> Labelled:
    """Pictures (n, 64, 64, 3) on white with `labels` (n, keywords): the keywords of at least `min_images` pictures.

    Of pictures whose titles differ in numbers only, which are often near-duplicates, at most `per_title` are taken,
    and all in one split (about 80, 10 and 10 %, by a hash of the title and `seed`). `text` is the title or, where a
    whole collection has one title, the words of the file's name.
    """
    if per_title < 1 or min_images < 1:
        raise DataError(f"clip-art: per_title={per_title} and min_images={min_images} must be at least 1")
    rows = json.loads((folder / "pictures.json").read_text(encoding="utf8"))
    images = np.load(folder / "pictures.npy", mmap_mode="r")
    check(len(rows), PICTURES, "pictures listed")
    check(len(images), PICTURES, "pictures")
    groups = [_plain(row["title"]) or _plain(row["file"]) for row in rows]
    members = Counter(groups)
    taken: Counter[str] = Counter()
    chosen = []
    for i, group in enumerate(groups):
        taken[group] += 1
        if taken[group] <= per_title:
            chosen.append(i)
    times = Counter(word for i in chosen for word in rows[i]["keywords"])
    names = sorted(word for word, n in times.items() if n >= min_images and word not in NOT_CONTENT)
    if len(names) < 2:
        raise DataError(f"clip-art: {len(names)} keywords have {min_images} pictures, lower min_images")
    column = {word: place for place, word in enumerate(names)}
    kept = [i for i in chosen if not column.keys().isdisjoint(rows[i]["keywords"])]
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for i in kept:
        place = zlib.crc32(f"{seed}:{groups[i]}".encode()) % 10
        parts["validation" if place == 0 else "test" if place == 1 else "train"].append(i)
    splits = {}
    for part, numbers in parts.items():
        labels = np.zeros((len(numbers), len(names)), np.uint8)
        for row, i in enumerate(numbers):
            labels[row, [column[word] for word in rows[i]["keywords"] if word in column]] = 1
        named = [rows[i]["title"] and members[groups[i]] <= RARE for i in numbers]
        texts = [rows[i]["title"] if own else _plain(rows[i]["file"]) for i, own in zip(numbers, named, strict=True)]
        splits[part] = Split(
            {
                "image": images[numbers],
                "labels": labels,
                "text": texts,
                "keywords": [", ".join(rows[i]["keywords"]) for i in numbers],
                "folder": [rows[i]["folder"] for i in numbers],
            }
        )
    notes = (
        f"{len(kept)} of {PICTURES} pictures: {PICTURES - len(chosen)} more of one title and {len(chosen) - len(kept)} "
        "without any of the keywords are left out",
        "keywords are the artists': what is not labelled may still be there; names of collections are no labels",
    )
    return splits, notes, tuple(names)


def _plain(title: str) -> str:
    return re.sub(r"[\d\W_]+", " ", title.lower()).strip()


def _package(form: str, sha256: str, size: int) -> Package:
    members = (f"{HOME}/{form}/*.{form}", "*/copyright")
    return Package("debian", f"openclipart-{form}", "1:0.18+dfsg-19", sha256=sha256, size=size, members=members)


ENTRIES = [
    Source(
        name="clip-art",
        kind="image-multilabel",
        title="Open Clip Art: drawings, 64 by 64, with titles and several keywords each",
        licence="public domain",
        package=(
            _package("png", "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02", 130_910_028),
            _package("svg", "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5", 24_919_068),
        ),
        convert=convert,
        read=read,
    )
]
