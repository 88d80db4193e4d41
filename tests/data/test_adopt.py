import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from monochord.data import Batches, DataError, data

ROWS = [{"text": f"text {i}", "label": "good" if i % 2 else "bad"} for i in range(40)]


def test_rows_are_cut_into_splits_and_labels_numbered():
    dataset = data(ROWS)
    assert (dataset.task, dataset.label_names) == ("text-classification", ("bad", "good"))
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 32, "validation": 4, "test": 4}
    texts = [text for split in dataset.splits.values() for text in split["text"]]
    assert sorted(texts) == sorted(row["text"] for row in ROWS)
    for split in dataset.splits.values():
        for text, label in zip(split["text"], split["label"], strict=True):
            assert label == int(text.split()[1]) % 2
    assert data(ROWS)["test"]["text"] == dataset["test"]["text"] != data(ROWS, seed=1)["test"]["text"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
def test_files_give_the_same_as_rows(tmp_path, kind):
    file = tmp_path / f"my-{kind}.{kind}"
    if kind in ("csv", "tsv"):
        comma = {"csv": ",", "tsv": "\t"}[kind]
        lines = [f"text{comma}label", *(f'"{row["text"]}"{comma}{row["label"]}' for row in ROWS)]
        file.write_text("\n".join(lines))
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, ROWS)))
    else:
        file.write_text(json.dumps(ROWS))
    for given in (file, str(file)):
        dataset = data(given)
        assert dataset.name == f"my-{kind}"
        assert dataset["train"]["text"] == data(ROWS)["train"]["text"]


def test_given_splits_are_kept_and_a_missing_validation_split_is_cut():
    dataset = data({"train": ROWS, "test": ROWS[:6]})
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 36, "validation": 4, "test": 6}
    assert dataset["test"]["text"] == [row["text"] for row in ROWS[:6]]


def test_columns_and_datasets_of_hugging_face():
    from datasets import Dataset, DatasetDict

    columns = {"sentence": [row["text"] for row in ROWS], "target": [i % 2 for i in range(40)]}
    for given in (columns, Dataset.from_dict(columns), DatasetDict({"train": Dataset.from_dict(columns)})):
        dataset = data(given)
        assert dataset["train"]["text"] == data(ROWS)["train"]["text"]
        assert dataset["train"]["label"].tolist() == data(ROWS)["train"]["label"].tolist()


def test_images_become_one_array():
    images = list(np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8))
    dataset = data({"img": images, "label": [i % 2 for i in range(40)]})
    assert dataset.task == "image-classification"
    assert dataset["train"]["image"].shape == (32, 4, 4)
    with pytest.raises(DataError, match="must be uint8 and of one shape"):
        data({"img": [*images[:-1], images[0][:2]], "label": [i % 2 for i in range(40)]})


def test_instructions_become_prompts_and_responses():
    rows = [{"instruction": "Add", "input": "1 2", "output": "3"}, {"instruction": "Hi", "input": "", "output": "Ho"}]
    dataset = data(rows)
    assert dataset.task == "causal-lm"
    assert dataset["train"]["prompt"] == ["Add\n\n1 2", "Hi"]


def test_ready_batches_stay_as_they_are():
    rows = [{"input_ids": torch.full((3,), i), "labels": i % 2} for i in range(8)]
    loader = DataLoader(rows, batch_size=4, shuffle=True)
    dataset = data(loader)
    assert dataset.task == "batches"
    batches = Batches(dataset["train"], steps=5)
    drawn = [batch["input_ids"] for batch in batches]
    assert [ids.shape for ids in drawn] == [(4, 3)] * 5
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[0], batches[4]["input_ids"])
    assert sorted(torch.cat(drawn[:2])[:, 0].tolist()) == list(range(8))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "data: no rows"),
        ({"train": ROWS, "test": []}, "data: no rows"),
        ({"text": [], "label": []}, "the split 'train' is empty"),
        ([{"text": "a", "label": 1}] * 30, "all labels are '1', at least 2 classes are needed"),
        ([{"text": "a"}, {"label": 1}], "row 1 has not the columns of the first, text"),
        ([{"words": "a"}], "no column to learn from among words"),
        ({"image": [np.zeros((2, 2), np.uint8)]}, "the split 'train' has no labels, only image"),
        ({"text": ["a", "b"], "label": [1]}, "columns need one length"),
        ({"test": ROWS}, "no split 'train' among test"),
        (3, "int is no data set"),
        ("gone.csv", "gone.csv: No such file"),
    ],
)
def test_bad_data_gets_one_clear_line(given, said):
    with pytest.raises(DataError, match=said) as caught:
        data(given)
    assert "\n" not in str(caught.value)


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(DataError, match=r"a\.jsonl: not a good jsonl file"):
        data(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.xml: unknown kind of file, use one of \.csv"):
        data(tmp_path / "a.xml")
