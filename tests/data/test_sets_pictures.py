"""Emoji, clip art and MNIST against what is known of them; how pictures become small squares."""

import io

import numpy as np
import pytest
from PIL import Image

from monochord.data import DataError, data
from monochord.data.pictures import save_pictures, squared


def png(picture):
    file = io.BytesIO()
    picture.save(file, "png")
    return file


def test_pictures_are_scaled_centred_and_set_on_white():
    wide = squared(png(Image.new("RGBA", (40, 20), (255, 0, 0, 255))), side=8)
    assert wide.shape == (8, 8, 3) and wide.dtype == np.uint8
    assert (wide[2:6] == (255, 0, 0)).all() and (wide[:2] == 255).all() and (wide[6:] == 255).all()
    clear = squared(png(Image.new("RGBA", (20, 20), (0, 0, 0, 0))), side=8)
    assert (clear == 255).all()
    half = squared(png(Image.new("RGBA", (20, 20), (0, 0, 0, 128))), side=8)
    assert np.abs(half.astype(int) - 127).max() <= 1
    assert (squared(png(Image.new("L", (4, 4), 9)), side=8) == 9).all()


def test_transparent_pixels_do_not_bleed_into_the_edges():
    picture = np.zeros((64, 64, 4), np.uint8)  # green where nothing shows
    picture[..., 1], picture[:, :30, 1] = 255, 0
    picture[:, :30, 0], picture[:, :30, 3] = 255, 255
    small = squared(png(Image.fromarray(picture)), side=16).astype(int)
    assert (small[..., 1] <= small[..., 0] + 1).all()  # red over white never turns green


def test_a_set_of_pictures_is_one_file_to_map(tmp_path):
    pictures = [np.full((4, 4, 3), i, np.uint8) for i in range(3)]
    save_pictures(tmp_path / "a.npy", iter(pictures), 3, side=4)
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), np.stack(pictures))


@pytest.mark.material("mnist")
def test_mnist_has_seventy_thousand_digits():
    dataset = data("mnist", validation=0)
    assert dataset["train"]["image"].shape == (60_000, 28, 28) and dataset["test"]["image"].shape == (10_000, 28, 28)
    assert dataset["train"]["label"][:5].tolist() == [5, 0, 4, 1, 9]
    assert isinstance(dataset["train"]["image"], np.memmap)
    held_out = data("mnist")["validation"]
    assert np.array_equal(held_out["image"], dataset["train"]["image"][55_000:])
    with pytest.raises(DataError, match="validation=60000, use 0 to 59999"):
        data("mnist", validation=60_000)


@pytest.mark.material("emoji")
def test_emoji_are_the_same_in_both_styles():
    google, twitter = data("emoji"), data("emoji", style="twitter")
    assert len(google) == len(twitter) == 1911
    assert len({name for split in google.splits.values() for name in split["subcategory"]}) == 99
    for name, split in google.splits.items():
        other = twitter[name]
        assert split["image"].shape == (len(split), 64, 64, 3)
        assert split["emoji"] == other["emoji"] and np.array_equal(split["label"], other["label"])
        assert (split["image"] != other["image"]).any(axis=(1, 2, 3)).all()
    rows = {row: i for i, row in enumerate(google["train"]["text"])}
    assert "elephant" in google["train"]["keywords"][rows["elephant"]]
    with pytest.raises(DataError, match="no style 'apple': use google or twitter"):
        data("emoji", style="apple")


@pytest.mark.material("emoji")
def test_skin_tones_stay_with_their_emoji():
    plain, toned = data("emoji", seed=3), data("emoji", seed=3, skin_tones=True)
    assert len(toned) == 3786
    for name, split in plain.splits.items():
        assert set(toned[name]["text"]) == set(split["text"])
    assert not set(toned["train"]["emoji"]) & set(toned["test"]["emoji"])


@pytest.mark.material("clip-art")
def test_clip_art_labels_are_its_keywords_and_titles_stay_together():
    dataset = data("clip-art")
    totals = sum(split["labels"].sum(axis=0, dtype=int) for split in dataset.splits.values())
    assert totals.min() >= 30 and dataset.n_classes == 71
    assert {"animal", "flag", "food"} <= set(dataset.label_names) and "hash" not in dataset.label_names
    for split in dataset.splits.values():
        assert split["image"].shape == (len(split), 64, 64, 3) and split["labels"].any(axis=1).all()
        for row in range(0, len(split), 50):
            words = set(split["keywords"][row].split(", "))
            assert {dataset.label_names[i] for i in np.flatnonzero(split["labels"][row])} == words & set(
                dataset.label_names
            )
    fewer = data("clip-art", per_title=2, min_images=50)
    assert len(fewer) < len(dataset) and fewer.n_classes < dataset.n_classes
    with pytest.raises(DataError, match="0 keywords have 5000 pictures"):
        data("clip-art", min_images=5000)
