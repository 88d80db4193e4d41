import numpy as np
import pytest

from monochord.data import DataError, Dataset, Split

SPLIT = Split({"text": list("abcdef"), "label": np.array([0, 0, 0, 1, 1, 0])})


def test_columns_rows_and_parts():
    assert len(SPLIT) == 6 and SPLIT.columns == ("text", "label") and "text" in SPLIT
    assert SPLIT[3] == {"text": "d", "label": 1}
    part = SPLIT.take([4, 0])
    assert part["text"] == ["e", "a"] and part["label"].tolist() == [1, 0]
    with pytest.raises(DataError, match="no column 'image': there are text, label"):
        SPLIT["image"]


def test_the_first_rows_take_the_classes_in_turn():
    assert SPLIT.first(4)["text"] == ["a", "b", "d", "e"]
    assert SPLIT.first(6)["text"] == list("abcdef")
    assert Split({"text": list("abc")}).first(2)["text"] == ["a", "b"]
    with pytest.raises(DataError, match="7 rows asked of a split of 6: take 1 to 6"):
        SPLIT.first(7)


def test_limits_never_ask_for_more_than_there_is():
    dataset = Dataset("d", "text-classification", {"train": SPLIT, "test": SPLIT}, ("no", "yes"))
    limited = dataset.limit(train=2, test=100)
    assert [len(split) for split in limited.splits.values()] == [2, 6]
    with pytest.raises(DataError, match="d: no split 'dev', there are train, test"):
        dataset.limit(dev=1)


def test_the_card_counts_the_classes():
    dataset = Dataset("d", "text-classification", {"train": SPLIT}, ("no", "yes"), notes=("made up",))
    card = dataset.card()
    assert "train     6 rows (text, label), no 4, yes 2" in card
    assert "licence   unstated" in card and "note      made up" in card
