"""Novels, verses and the dictionary: what the loaders promise beyond counts."""

import struct
import zlib

import pytest

from monochord.data import DataError, data
from monochord.data.sets.bible import read_module
from monochord.data.sets.dictionary import parse


def test_verses_pair_by_reference():
    pairs = data("parallel-verses")["train"]
    rows = {pairs["reference"][i]: (pairs["text"][i], pairs["other"][i]) for i in range(len(pairs))}
    assert rows["Matt.5.3"] == (
        "Blessed are the poor in spirit: for theirs is the kingdom of heaven.",
        "“Blessed are the poor in spirit, for theirs is the Kingdom of Heaven.",
    )
    chapters = [{r.rpartition(".")[0] for r in split["reference"]} for split in data("parallel-verses").splits.values()]
    assert not chapters[0] & chapters[1] and not chapters[1] & chapters[2]
    spanish = data("parallel-verses", pair="translation")
    assert sum(map(len, spanish.splits.values())) == 31_084
    with pytest.raises(DataError, match="no pair 'german': use paraphrase or translation"):
        data("parallel-verses", pair="german")


def test_no_markup_is_left_in_the_bible():
    for edition in ("kjv", "web", "rv1909"):
        text = " ".join(" ".join(split["text"]) for split in data("bible", edition=edition).splits.values())
        assert not set("<>{}") & set(text) and len(text) > 3_000_000


def test_a_module_is_read_by_its_headings(tmp_path):
    entries = [
        "",
        '<chapter osisID="Gen.1" sID="x"/> ',
        "In <w l='1'>the</w><note>a</note> beginning",
        "",
        "third <title>t</title>",
    ]
    block = "".join(entries).encode()
    for testament in ("ot", "nt"):
        chosen = entries if testament == "ot" else []
        at, index = 0, b""
        for entry in chosen:
            index += struct.pack("<IIH", 0, at, len(entry.encode()))
            at += len(entry.encode())
        packed = zlib.compress(block)
        (tmp_path / f"{testament}.bzv").write_bytes(index)
        (tmp_path / f"{testament}.bzz").write_bytes(packed)
        (tmp_path / f"{testament}.bzs").write_bytes(struct.pack("<III", 0, len(packed), len(block)))
    assert list(read_module(tmp_path)) == [("Gen.1.1", "In the beginning"), ("Gen.1.3", "third")]


def test_persuasion_is_held_out():
    novels = data("austen")
    assert set(novels["train"]["novel"]) == {
        "Sense and Sensibility", "Pride and Prejudice", "Mansfield Park", "Emma", "Northanger Abbey",
    }  # fmt: skip
    assert set(novels["test"]["novel"]) == set(novels["validation"]["novel"]) == {"Persuasion"}
    assert any("It is a truth universally acknowledged" in text for text in novels["train"]["text"])


def test_definitions_lose_marks_quotations_and_etymologies():
    entry = """Arrive \\Ar*rive"\\, v. i. [imp. & p. p. {Arrived}; p. pr. & vb.
   n. {Arriving}.] [OE. ariven to arrive.]
   1. To come to the {shore} or bank. "Arrived in Padua." --Shak.
      [1913 Webster]

            [[AE]neas] sailing with a fleet from Sicily, arrived
            . . . and landed.                     --Holland.
      [1913 Webster]
"""
    ((word, kind, text),) = parse(entry)
    assert (word, kind) == ("Arrive", "v. i.")
    assert text.startswith("1. To come to the shore or bank.") and "Sicily" not in text and "Webster" not in text
    words = [set(split["word"]) for split in data("dictionary").splits.values()]
    assert not words[0] & words[1] and not words[0] & words[2]
