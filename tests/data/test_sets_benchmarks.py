"""Benchmarks of language models: counts, gold answers, and that a prompt carries its options."""

import numpy as np
import pytest

from monochord.data import DataError, data, entries
from monochord.data.sets.benchmarks import CHOICES, PACKAGE, options_of

ROWS = {  # counted in the package's files
    "mmlu": 2850, "commonsense-qa": 1220, "openbook-qa": 500, "piqa": 1500, "siqa": 1954, "logiqa": 1000,
    "medqa": 1273, "medmcqa": 4183, "bbq": 1012, "disambiguation-qa": 258, "asdiv": 2305, "nq-open": 3569,
    "truthful-qa": 817, "narrative-qa": 3000, "pubmed-qa": 500, "privacy-policy": 10923, "causal-judgment": 190,
    "boolq": 12697, "stereoset": 4229, "crows-pairs": 1018, "wino": 761, "toxicity": 993, "xsum": 1000,
    "factual-summaries": 371, "hellaswag": 3000,
}  # fmt: skip


def test_all_subsets_have_their_rows():
    assert {name for name, entry in entries().items() if entry.package == PACKAGE} == set(ROWS)
    for name, rows in ROWS.items():
        assert len(data(name)) == rows


def test_options_are_parsed_by_their_letters():
    assert options_of("\nA. a bank\nB. an\nold A. house\nC. 3.5") == ("ABC", ("a bank", "an\nold A. house", "3.5"))
    assert options_of('A. one\nB. two\n"') == ("AB", ("one", "two"))
    assert options_of("C. three\nD. four")[0] == "CD"


@pytest.mark.parametrize("name", [subset.name for subset in CHOICES])
def test_the_gold_option_is_the_response(name):
    split = data(name)["test"]
    for row in range(0, len(split), 37):
        item = split[row]
        letter, gold = "ABCDEFGHIJ"[item["answer"]], item["options"][item["answer"]]
        assert item["response"] == f"{letter}. {gold}" and f"\n{item['response']}" in item["prompt"]
        assert item["prompt"].startswith(item["passage"] or item["question"])
    assert set(np.bincount(split["answer"]) > len(split) / 30) == {True} or name == "disambiguation-qa"


def test_known_answers():
    commonsense = data("commonsense-qa")["test"]
    assert commonsense[0]["response"] == "A. bank"
    questions = data("asdiv")
    row = next(
        (s, i) for s in questions.splits.values() for i, q in enumerate(s["passage"]) if q.startswith("Seven red")
    )
    assert row[0][row[1]]["answer"] == "9 apples"
    france = data("nq-open")["test"]
    assert france["answer"][0] == "Meghan Trainor" and france["answers"][2][0] == france["answer"][2]


@pytest.mark.parametrize("name", ["asdiv", "boolq", "privacy-policy"])
def test_rows_with_one_passage_stay_together(name):
    splits = data(name).splits
    passages = [set(split["passage"]) for split in splits.values()]
    assert not passages[0] & passages[1] and not passages[0] & passages[2] and not passages[1] & passages[2]
    assert data(name, seed=1)["test"]["passage"] != splits["test"]["passage"]


def test_boolq_labels_are_those_of_its_authors():
    splits = data("boolq").splits
    assert sum(int(split["label"].sum()) for split in splits.values()) == 7907


def test_stereotypes_and_scores():
    stereotypes = data("stereoset")["test"]
    assert stereotypes["bias_type"].count("gender") == 497
    pairs = data("crows-pairs")["test"]
    assert all(a != b and "[MASK]" not in a + b for a, b in zip(pairs["text"], pairs["other"], strict=True))
    toxic = data("toxicity")["train"]
    assert toxic["value"].dtype == np.float32 and toxic["insult"].min() >= 0 and toxic["value"].max() <= 1
    assert np.array_equal(toxic["value"], toxic["toxicity"])


def test_what_decides_the_subset_is_no_option():
    with pytest.raises(DataError, match="mmlu has no option 'subset': there are none"):
        data("mmlu", subset="x")
    with pytest.raises(DataError, match="asdiv has no option 'x': there are seed"):
        data("asdiv", x=1)
