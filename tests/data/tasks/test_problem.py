"""What all synthetic tasks have in common: splits, seeds, tokens, places."""

import numpy as np
import pytest

import monochord as mc
from monochord.data import DataError, data, entries
from monochord.data.tasks.problem import Problems, place, single_tokens
from monochord.data.tasks.words import COLOURS, NAMES, NOUNS

TASKS = [
    name
    for name, entry in entries().items()
    if entry.read.__module__ == "monochord.data.tasks.problem" and entry.package is None
]
TEXTS = ["indirect-objects", "coloured-objects", "entity-tracking", "word-functions", "greater-than"]


def keys_of(split):
    return split.keys()


@pytest.fixture(scope="module")
def tokenizer():
    return mc.processor("ladder-1m")


def test_all_tasks_are_there():
    assert {"induction", "associative-recall", "modular-arithmetic", "sparse-parity", *TEXTS} <= set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_same_seed_same_problems_and_no_prompt_twice(name):
    one, again, other = (data(name, n=50, seed=seed) for seed in (3, 3, 4))
    assert {split: len(one[split]) for split in one.splits} == {"train": 50, "validation": 10, "test": 10}
    keys = [key for split in one.splits.values() for key in keys_of(split)]
    assert len(set(keys)) == len(keys) == 70
    for split in one.splits:
        for column in one[split].columns:
            assert np.array_equal(np.asarray(one[split][column]), np.asarray(again[split][column]))
    assert one["train"].keys() != other["train"].keys()


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_not_the_wrong_ones_and_counterfactuals_differ(name):
    split = data(name, n=50)["train"]
    for right, wrong in (("response", "wrong"), ("answer", "wrong"), ("answer", "counterfactual_answer")):
        if right in split and wrong in split:
            assert all(a != b for a, b in zip(split[right], split[wrong], strict=True))
    for clean, changed in (
        ("prompt", "counterfactual"),
        ("input_ids", "counterfactual_ids"),
        ("x", "counterfactual_x"),
    ):
        if changed in split:
            assert all(
                np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(split[clean], split[changed], strict=True)
            )


@pytest.mark.material("smollm2")
@pytest.mark.parametrize("model", ["ladder-1m", "smollm2"])
@pytest.mark.parametrize("name", TEXTS)
def test_texts_become_tokens(name, model):
    tokenizer = mc.processor(model)
    options = {
        "greater-than": {"digits": 1},
        "word-functions": {"functions": ("copy", "first"), "tokenizer": tokenizer},
        "indirect-objects": {"names": (*NAMES, "Israel", "Sam", "Sal", "Mal", "Jud"), "tokenizer": tokenizer},
        "coloured-objects": {"colours": (*COLOURS, "big", "new", "good", "dark"), "tokenizer": tokenizer},
    }
    split = data(name, n=30, **options.get(name, {"tokenizer": tokenizer}))["train"]
    tokens = split.tokens(tokenizer)
    assert len(tokens) == 30
    for row, (prompt, response) in enumerate(zip(split["prompt"], split["response"], strict=True)):
        kept = tokens.input_ids[row, : tokens.last[row] + 1]
        assert tokenizer.decode(kept.tolist()) == prompt
        assert tokenizer.decode([tokens.answers[row].item()]) == response
        assert tokens.attention_mask[row].sum() == tokens.last[row] + 1
        for part, at in tokens.positions.items():
            begin, end = split[f"at_{part}"][row]
            said = tokenizer.decode([tokens.input_ids[row, at[row]].item()]).strip()
            assert prompt[begin:end].endswith(said) and said
    assert tokens.counterfactual_ids.shape == tokens.input_ids.shape


def test_several_tokens_are_refused_or_left_out(tokenizer):
    words = Problems({"prompt": ["My", "My"], "response": [" house", " hippopotamus"]})
    with pytest.raises(DataError, match=r"1 of 2 .*hippopotamus.*strict=False"):
        words.tokens(tokenizer)
    kept = words.tokens(tokenizer, strict=False)
    assert kept.rows.tolist() == [0] and tokenizer.decode(kept.answers.tolist()) == " house"
    unequal = Problems({"prompt": ["A cat"], "response": [" is"], "counterfactual": ["A hippopotamus"]})
    with pytest.raises(DataError, match="aligned"):
        unequal.tokens(tokenizer, strict=False)
    with pytest.raises(DataError, match="need a tokenizer"):
        words.tokens()


def test_single_tokens_are_single(tokenizer):
    kept = single_tokens(tokenizer, [*NOUNS, "hippopotamus"])
    assert 20 < len(kept) < len(NOUNS) + 1 and "hippopotamus" not in kept
    assert all(len(tokenizer(" " + word)["input_ids"]) == 1 for word in kept)
    with pytest.raises(DataError, match="only 0 of 1"):
        single_tokens(tokenizer, ["hippopotamus"])


def test_a_small_world_says_how_many_problems_it_has():
    with pytest.raises(DataError, match="only 9 found"):
        data("modular-arithmetic", modulus=3, n=10)
    with pytest.raises(DataError, match="n=4"):
        data("induction", n=4)
    with pytest.raises(DataError, match="no option 'lenght'"):
        data("induction", lenght=4)


def test_place_finds_first_and_last():
    assert place(["a b a"], ["a"]).tolist() == [[0, 1]] and place(["a b a"], ["a"], last=True).tolist() == [[4, 5]]


def test_take_keeps_the_kind():
    split = data("induction", n=20)["train"]
    assert isinstance(split.take([3, 1]), Problems) and np.array_equal(split.take([3])["answer"], split["answer"][3:4])
    assert isinstance(data("induction", n=20).limit(train=5)["train"], Problems)
