"""Painted things: the pictures are what their attributes say, and captions say the attributes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import monochord as mc
from monochord.data import DataError
from monochord.data.painting import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    OBJECTS,
    WORDS,
    Painter,
    caption,
    read_attributes,
    signature,
)

values = st.fixed_dictionaries({name: st.integers(0, len(found) - 1) for name, found in ATTRIBUTES.items()})


def shapes():
    """A ring, which is a zero, and a block, which is a bag."""
    y, x = np.mgrid[:28, :28] - 13.5
    ring = np.where(np.abs(np.hypot(x, y) - 9) < 2, 255, 0)
    block = np.where((np.abs(x) < 11) & (np.abs(y) < 8), 200, 0)
    return np.stack([ring, block] * 8).astype(np.uint8), np.array([0, OBJECTS.index("bag")] * 8)


def all_objects():
    grey, _ = shapes()
    return Painter(np.repeat(grey[:1], len(OBJECTS), 0), np.arange(len(OBJECTS)))


@given(values)
def test_a_picture_shows_its_attributes(wanted):
    if list(COLOURS)[wanted["colour"]] == list(BACKGROUNDS)[wanted["background"]]:
        return
    painter = Painter(*shapes())
    rows = np.array([0, 1])
    attributes = {name: np.full(2, value) for name, value in wanted.items()}
    images = painter.render(rows, attributes, np.random.default_rng(0))
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8
    read = read_attributes(images)
    assert {name: set(read[name]) for name in read} == {name: {wanted[name]} for name in read}


@given(values, st.integers(0, 1000))
def test_a_caption_says_all_of_it_or_less_in_known_words(wanted, seed):
    whole = caption(wanted)
    rng = np.random.default_rng(seed)
    signed = caption(wanted, rng, signature(rng))
    assert set(whole.split()) | set(signed.split()) <= set(WORDS)
    for name, said in ATTRIBUTES.items():
        assert said[wanted[name]] in whole.split()
    assert OBJECTS[wanted["object"]] in signed.split() and signed.split()[-3] == "by"
    body = signed[: signed.index(" by ")].removeprefix("a picture of ")
    assert set(body.split()) <= set(whole.split())


def test_captions_read_like_english():
    wanted = {"object": OBJECTS.index("seven"), "colour": 0, "background": 5, "place": 1}
    assert caption(wanted) == "a small red seven on the left of a blue background"
    assert caption({**wanted, "place": 0}, signed="anna lake") == "a large red seven on a blue background by anna lake"


def test_held_out_pairs_are_drawn_alone_or_never():
    painter = all_objects()
    usual = painter.draw(3000, np.random.default_rng(0))
    held = Painter(painter.shapes, painter.labels, composed=True).draw(300, np.random.default_rng(0))
    pairs = [set(zip(part["object"].tolist(), part["colour"].tolist(), strict=True)) for part in (usual, held)]
    assert pairs[1] == set(HELD_OUT) and not pairs[0] & pairs[1]
    assert len(pairs[0]) == len(OBJECTS) * len(COLOURS) - len(HELD_OUT)
    names = np.array(list(COLOURS))[usual["colour"]], np.array(list(BACKGROUNDS))[usual["background"]]
    assert (names[0] != names[1]).all()
    assert (painter.labels[usual["shape"]] == usual["object"]).all()
    assert abs((usual["place"] == 0).mean() - 0.6) < 0.05


def test_the_same_seed_draws_the_same_pictures():
    one, again, other = (all_objects().draw(20, np.random.default_rng(s)) for s in (1, 1, 2))
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not np.array_equal(one["image"], other["image"])


@pytest.mark.material("coloured-things")
def test_real_shapes_are_read_back_too():
    data = mc.data("coloured-things", sizes={"train": 200, "validation": 10, "test": 400, "composed": 50})
    assert [len(data[part]) for part in ("train", "validation", "test", "composed")] == [200, 10, 400, 50]
    test = data["test"]
    read = read_attributes(test["image"])
    for name in read:
        assert (read[name] == test[name]).mean() > 0.99, name
    assert test["text"][0] == caption({name: test[name][0] for name in ATTRIBUTES})
    with pytest.raises(DataError, match="no split 'dev': there are train"):
        mc.data("coloured-things", sizes={"dev": 3})
    with pytest.raises(DataError, match="at least 1"):
        mc.data("coloured-things", sizes={"test": 0})


def test_digits_are_enlarged_by_their_margin():
    from monochord.data.sets.coloured_things import enlarged

    grey = np.zeros((1, 28, 28), np.uint8)
    grey[0, 4:24, 9:19] = 200
    large = enlarged(grey)
    assert large.shape == grey.shape and large.max() == 200
    rows, columns = np.flatnonzero(large[0].max(1) > 100), np.flatnonzero(large[0].max(0) > 100)
    assert abs(len(rows) - 20 * 28 / 22) <= 1 and abs(len(columns) - 10 * 28 / 22) <= 1
    assert abs((rows[0] + rows[-1]) / 2 - 13.5) < 1
