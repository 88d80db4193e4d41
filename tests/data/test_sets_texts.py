"""Prompts to refuse, preferences, code, scored sentences, mails and WordNet against what is known of them."""

import numpy as np
import pytest

from monochord.data import DataError, data
from monochord.data.sets import reasoning_gym
from monochord.data.sets.spam import plain


def every(dataset, column):
    return [value for split in dataset.splits.values() for value in split[column]]


def test_refusals_are_matched_in_length_and_even():
    dataset = data("refusals")
    labels, lengths = np.array(every(dataset, "label")), np.array([len(p) for p in every(dataset, "prompt")])
    assert len(labels) == 2 * 578 and labels.sum() == 578
    assert abs(np.median(lengths[labels == 1]) - np.median(lengths[labels == 0])) <= 2
    harmful = data("refusals", matched=False)
    assert sum(every(harmful, "label")) == 939 + 200 and every(harmful, "source").count("harmbench") == 200
    assert len(set(every(dataset, "prompt"))) > 1140


def test_jailbreaks_toxic_openings_and_false_claims():
    assert len(data("jailbreaks")) == 666
    toxic = data("toxic-openings")
    assert len(toxic) == 700 and toxic.label_names[-1] == "threat"
    claims = data("false-claims")["all"]["text"]
    assert len(claims) == 3017 and "Pago Pago is a city in Gambia" in claims and "statement,label" not in claims


def test_preferences_differ_and_feedback_is_balanced():
    pairs = data("preference-pairs")
    assert len(pairs) == 300 and all(
        a != b for a, b in zip(every(pairs, "chosen"), every(pairs, "rejected"), strict=True)
    )
    feedback = data("feedback")
    assert np.bincount(every(feedback, "label")).tolist() == [150, 150]


def test_solutions_of_human_eval_pass_their_tests():
    split = data("human-eval")["test"]
    assert len(split) == 164
    for row in (0, 13, 42, 100):
        scope = {}
        exec(split["prompt"][row] + split["solution"][row] + split["test"][row], scope)  # the data set's own code
        scope["check"](scope[split["entry_point"][row]])


def test_scored_sentences_keep_a_review_together():
    dataset = data("sentiment-scores")
    assert len(dataset) == 4200 + 10605 + 3708 + 5190
    values = np.array(every(dataset, "value"))
    assert values.dtype == np.float32 and -4 <= values.min() < -3.5 and 3.5 < values.max() <= 4
    assert len(data("sentiment-scores", source="tweets")) == 4200
    with pytest.raises(DataError, match="no source 'x': use tweets, movies, products, news"):
        data("sentiment-scores", source="x")


def test_mails_lose_their_headers_and_tags():
    raw = (
        "From a@b\nSubject: =?x\n Hello\nContent-Type: text/html\n\n<html><style>p {}</style><p>Buy&nbsp;now</p></html>"
    )
    assert plain(raw) == ("=?x Hello", "Buy now")
    parts = "--B\nContent-Type: text/plain\n\none\n--B\nContent-Type: image/gif\n\nGIF\n--B--"
    assert plain(f"Subject: s\nContent-Type: multipart/mixed; boundary=B\n\n{parts}") == ("s", "one")
    dataset = data("spam")
    assert len(dataset) == 6046 - 21 and sum(every(dataset, "group").count(g) for g in ("spam-1", "spam-2")) == sum(
        every(dataset, "label")
    )
    assert sum("Delivered-To:" in text[:300] for text in every(dataset, "text")) < 20  # of mails that quote others


def test_wordnet_relations():
    kinds, instances, opposites = (data("wordnet", relation=r) for r in ("hypernym", "instance", "antonym"))
    assert (len(kinds), len(instances), len(opposites)) == (75_850, 8_577, 7_979)
    pairs = set(zip(every(opposites, "subject"), every(opposites, "object"), strict=True))
    assert ("hot", "cold") in pairs and sum((b, a) not in pairs for a, b in pairs) < 20
    assert ("dog", "canine") in set(zip(every(kinds, "subject"), every(kinds, "object"), strict=True))
    assert ("Paris", "national capital") in set(
        zip(every(instances, "subject"), every(instances, "object"), strict=True)
    )
    train = {frozenset(pair) for pair in zip(opposites["train"]["subject"], opposites["train"]["object"], strict=True)}
    test = {frozenset(pair) for pair in zip(opposites["test"]["subject"], opposites["test"]["object"], strict=True)}
    assert not train & test
    with pytest.raises(DataError, match="no relation 'part': use hypernym, instance, antonym"):
        data("wordnet", relation="part")


@pytest.mark.parametrize("task", ["chain_sum", "mini_sudoku", "gsm_symbolic"])
def test_reasoning_problems_are_generated_and_marked(task):
    problems = data("reasoning-gym", task=task, n=20, seed=1)
    assert [len(split) for split in problems.splits.values()] == [16, 2, 2]
    assert len(set(every(problems, "question"))) == 20
    assert every(problems, "question") == every(data("reasoning-gym", task=task, n=20, seed=1), "question")
    row = problems["train"][3]
    assert reasoning_gym.score(task, row["answer"], row) == 1
    assert reasoning_gym.score(task, "no idea", row) < 0.5


def test_unknown_reasoning_tasks_give_the_nearest_and_leave_no_modules():
    import sys

    with pytest.raises(DataError, match="no task 'chain_sums' here: did you mean chain_sum"):
        data("reasoning-gym", task="chain_sums")
    assert "reasoning_gym" not in sys.modules


def test_sums_are_right():
    sums = data("reasoning-gym", task="chain_sum", n=30)["train"]
    for question, answer in zip(sums["question"], sums["answer"], strict=True):
        numbers = question.partition(": ")[2].removesuffix(" =")
        assert eval(numbers, {"__builtins__": {}}) == int(answer)
