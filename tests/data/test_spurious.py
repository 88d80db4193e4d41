"""Cues agree with the class as often as asked, look alike within a class, and leave the thing as it is."""

import numpy as np
import pytest

from monochord.data import DataError, Dataset, Split
from monochord.data.spurious import CUES, SIDE, hues, spurious_images, textures, with_cues

NAMES = tuple("abcde")


def things(n=1000):
    rng = np.random.default_rng(0)
    image = np.zeros((n, 28, 28), np.uint8)
    image[:, 8:20, 8:20] = rng.integers(150, 255, (n, 12, 12))
    return Split({"image": image, "label": rng.integers(0, 5, n)})


def test_cues_agree_at_their_rates_and_are_not_there_without_one():
    split = things()
    found = with_cues(split, 5, {"texture": 0.9, "border": 0.2})
    agree = {cue: (found[cue] == split["label"]).mean() for cue in CUES}
    assert abs(agree["texture"] - 0.9) < 0.04 and abs(agree["border"] - 0.2) < 0.04
    assert np.array_equal(np.unique(found["border"]), np.arange(5))
    plain = with_cues(split, 5, {})
    assert (plain["texture"] == -1).all() and len(np.unique(plain["image"][:, :6])) == 1


def test_pictures_are_in_colour_and_keep_the_thing():
    split = things(20)
    found = with_cues(split, 5, {"texture": 0.9, "border": 0.9})["image"]
    assert found.shape == (20, SIDE, SIDE, 3) and found.dtype == np.uint8
    assert np.array_equal(found[:, 10:22, 10:22, 0], split["image"][:, 8:20, 8:20])
    assert (found[:, 2:-2, 2:-2] == found[:, 2:-2, 2:-2, :1]).all()  # the border alone is coloured
    edge = found[:, 0].astype(int)
    assert (edge == edge[:, :1]).all() and (np.ptp(edge[:, 0], axis=1) > 0).all()


def test_borders_and_textures_tell_their_class():
    found = with_cues(things(200), 5, {"border": 0.5, "texture": 0.5})
    colour = found["image"][:, 0, 0].astype(float)
    centres = np.stack([colour[found["border"] == c].mean(0) for c in range(5)])
    nearest = np.linalg.norm(colour[:, None] - centres, axis=2).argmin(1)
    assert (nearest == found["border"]).mean() > 0.95
    wave = textures(np.repeat(np.arange(10), 4), 10, np.random.default_rng(0))
    strength = np.abs(np.fft.rfft2(wave)).reshape(40, -1)
    peaks = strength.argmax(1).reshape(10, 4)
    assert len(np.unique(peaks[:, 0])) == 10 and wave.min() >= -1 and wave.max() <= 1
    assert len(np.unique(hues(10), axis=0)) == 10


def test_the_seed_decides():
    one, again, other = (with_cues(things(50), 5, {"border": 0.5, "texture": 0.5}, seed=s)["image"] for s in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def base():
    return Dataset("things", "image-classification", {"train": things(300), "test": things(100)}, NAMES)


def test_a_set_for_pretraining_fine_tuning_and_what_comes_after():
    sizes = {"pretraining": 200, "train": 50, "validation": 50, "test": 60}
    data = spurious_images(base(), pretraining={"texture": 0.95}, finetuning={"border": 0.9}, sizes=sizes)
    assert {name: len(split) for name, split in data.splits.items()} == {**sizes, "ood": 60}
    assert (data["pretraining"]["border"] == -1).all() and (data["train"]["texture"] == -1).all()
    assert np.array_equal(data["test"]["label"], data["ood"]["label"])
    assert all(abs((data["ood"][cue] == data["ood"]["label"]).mean() - 0.2) < 0.2 for cue in CUES)
    assert "texture agrees with the class in 95%" in data.card()


def test_errors_teach():
    with pytest.raises(DataError, match=r"shade=0\.5: give rates from 0 to 1 of texture and border"):
        with_cues(things(5), 5, {"shade": 0.5})
    with pytest.raises(DataError, match="texture=2"):
        with_cues(things(5), 5, {"texture": 2})
    with pytest.raises(DataError, match="at most 28 a side"):
        with_cues(Split({"image": np.zeros((2, 30, 30)), "label": np.zeros(2)}), 5, {})
    with pytest.raises(DataError, match="too few"):
        spurious_images(base(), pretraining={}, finetuning={})
