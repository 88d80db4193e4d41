"""The real text of the mixture: reviews, novels, two Bibles, a dictionary, each with a part held out.

The packages are pinned here, and not read through the catalog's entries, so that the mixture stays the same when
those entries learn to read more.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import monochord as mc
from monochord.core.packages import Package, ensure

AUSTEN = Package(
    "debian",
    "r-cran-janeaustenr",
    "1.0.0-1",
    sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    size=1_626_392,
    members=("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",),
)
KING_JAMES = Package(
    "debian",
    "sword-text-kjv",
    "14.3-1",
    sha256="9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57",
    size=2_800_476,
    members=("usr/share/sword/modules/texts/ztext/*",),
)
REINA_VALERA = Package(
    "debian",
    "sword-text-sparv",
    "2.60-1",
    sha256="5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf",
    size=2_722_332,
    members=("usr/share/sword/modules/texts/ztext/*",),
)
DICTIONARY = Package(
    "debian",
    "dict-gcide",
    "0.48.5+nmu2",
    sha256="7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
    size=14_800_692,
    members=("usr/share/dictd/gcide.dict.dz",),
)


@dataclass(frozen=True)
class Texts:
    """Documents to train on and documents held out."""

    train: list[str]
    held_out: list[str]


def reviews() -> Texts:
    """Movie reviews: the training and the test split of the catalog's set."""
    data = mc.data("movie-text")
    return Texts(list(data["train"]["text"]), list(data["test"]["text"]))


def austen() -> Texts:
    """Six novels in passages of about 1,500 characters; the last twentieth of each is held out."""
    return _tails([_passages(novel) for novel in _novels()])


def king_james() -> Texts:
    """The Bible in English in passages; the last twentieth is held out."""
    return _tails([_passages(_verses(KING_JAMES))])


def reina_valera() -> Texts:
    """The Bible in Spanish, in the same way."""
    return _tails([_passages(_verses(REINA_VALERA))])


def dictionary() -> Texts:
    """`word: meaning` for every plain headword of GCIDE; each twentieth is held out."""
    entries = [f"{word}: {meaning}" for word, meaning in definitions()]
    return Texts([e for i, e in enumerate(entries) if i % 20], entries[::20])


def definitions() -> list[tuple[str, str]]:
    """Headwords of letters only with the first sense of their first entry, in the dictionary's order."""
    with gzip.open(ensure(DICTIONARY) / "usr/share/dictd/gcide.dict.dz") as stream:
        text = stream.read().decode("utf8", errors="replace")
    found: dict[str, str] = {}
    for entry in text.split("\n\n"):
        head = re.match(r"([A-Za-z]{3,}) \\", entry)
        if not head or head.group(1).lower() in found:
            continue
        _, numbered, senses = entry.partition("\n   1. ")
        if not numbered:  # a single sense: it begins where lines begin to be indented
            senses = entry.partition("\n   ")[2]
        sense = " ".join(re.split(r"\[1913|\[Obs|\[WordNet|\[PJC|--|\n   2\. ", senses)[0].split())
        meaning = re.match(r"([A-Z][^\".]{20,200}\.)", sense)
        if meaning and re.fullmatch(r"[A-Za-z ,;:'.()-]+", meaning.group(1)) and "See" not in meaning.group(1):
            found[head.group(1).lower()] = meaning.group(1)
    return list(found.items())


TEXTS: dict[str, Callable[[], Texts]] = {
    "reviews": reviews,
    "austen": austen,
    "king-james": king_james,
    "reina-valera": reina_valera,
    "dictionary": dictionary,
}


def _tails(books: list[list[str]]) -> Texts:
    texts = Texts([], [])
    for book in books:
        cut = len(book) - max(1, len(book) // 20)
        texts.train.extend(book[:cut])
        texts.held_out.extend(book[cut:])
    return texts


def _passages(pieces: list[str], length: int = 1500) -> list[str]:
    """Pieces put together until they have so many characters."""
    passages, current = [], ""
    for piece in pieces:
        current += piece
        if len(current) >= length:
            passages.append(current.strip())
            current = ""
    return [*passages, current.strip()] if current.strip() else passages


def _verses(package: Package) -> list[str]:
    """The verses of a SWORD zText module without their markup, each with a space behind."""
    folder = ensure(package) / "usr/share/sword/modules/texts/ztext"
    verses = []
    for testament in ("ot", "nt"):
        (index,) = folder.glob(f"*/{testament}.bzs")
        blocks_at, verses_at, packed = (index.with_suffix(end).read_bytes() for end in (".bzs", ".bzv", ".bzz"))
        blocks = [
            zlib.decompress(packed[at : at + size]) if size else b"" for at, size, _ in _records("<III", blocks_at)
        ]
        for block, at, size in _records("<IIH", verses_at):
            marked = blocks[block][at : at + size].decode("utf8")
            marked = re.sub(r"<(title|note)\b.*?</\1>", "", marked, flags=re.S)
            plain = " ".join(re.sub(r"<[^>]+>", "", marked).replace("¶", "").split())
            if plain:
                verses.append(plain + " ")
    return verses


def _records(form: str, raw: bytes) -> list[tuple[int, ...]]:
    return list(struct.iter_unpack(form, raw))


def _novels() -> list[list[str]]:
    """The lines of each novel in R's data base: length, zlib stream; a string is type 9, length, bytes."""
    raw = (ensure(AUSTEN) / AUSTEN.members[0]).read_bytes()
    novels, at = [], 0
    while at < len(raw):
        stream = zlib.decompressobj()
        values = stream.decompress(raw[at + 4 :])
        at = len(raw) - len(stream.unused_data)
        lines, place = [], 0
        while place < len(values) - 8:
            flags, size = struct.unpack(">Ii", values[place : place + 8])
            if flags & 255 == 9 and 0 <= size < 2000:
                line = values[place + 8 : place + 8 + size].decode("latin1")
                lines.append(line + "\n" if line else "\n")
                place += 8 + size
            else:
                place += 1
        if len(lines) > 1000:
            novels.append(lines)
    return novels
