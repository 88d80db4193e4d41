"""Each task of text against a solver that reads the prompt alone."""

import re

import numpy as np
import pytest

from monochord.data import DataError, data
from monochord.data.tasks.factual_recall import FactualRecall
from monochord.data.tasks.greater_than import GreaterThan
from monochord.data.tasks.indirect_objects import IndirectObjects
from monochord.data.tasks.multiplication import Multiplication
from monochord.data.tasks.word_functions import FUNCTIONS, OF_LISTS, WordFunctions
from monochord.data.tasks.words import COLOURS, NAMES


def rng():
    return np.random.default_rng(0)


def parts(split, name):
    return [prompt[begin:end] for prompt, (begin, end) in zip(split["prompt"], split[f"at_{name}"], strict=True)]


def test_indirect_objects_are_named_once():
    problems = IndirectObjects().draw(300, rng())
    for prompt, response, wrong, other in zip(
        *(problems[c] for c in ("prompt", "response", "wrong", "counterfactual")), strict=True
    ):
        named = [word for word in re.findall(r"\w+", prompt) if word in NAMES]
        assert sorted(map(named.count, set(named))) == [1, 2]
        assert named.count(response.strip()) == 1 and named.count(wrong.strip()) == 2
        changed = [word for word in re.findall(r"\w+", other) if word in NAMES]
        assert len(set(changed)) == 3 and not set(changed) & set(named)
        strip = lambda text: re.sub("|".join(sorted(NAMES, key=len, reverse=True)), "_", text)
        assert strip(prompt) == strip(other)
    giver, subject, receiver = (parts(problems, name) for name in ("giver", "subject", "object"))
    assert giver == subject == [w.strip() for w in problems["wrong"]]
    assert receiver == [w.strip() for w in problems["response"]]
    assert (problems["at_giver"][:, 0] > problems["at_subject"][:, 0]).all()
    first = problems["at_object"][:, 0] < problems["at_subject"][:, 0]
    assert first.tolist() == [order == "ABB" for order in problems["order"]] and 0.3 < first.mean() < 0.7
    with pytest.raises(DataError, match="unknown order 'AAA'"):
        IndirectObjects(orders=("AAA",))


@pytest.mark.material("smollm2")
def test_a_real_model_finds_indirect_objects_and_nothing_in_the_counterfactual():
    import torch

    from monochord import load, processor

    model, made = load("smollm2"), processor("smollm2")
    tokens = data("indirect-objects", n=40, tokenizer=made)["train"].tokens(made)
    found = {}
    for name, ids in (("clean", tokens.input_ids), ("counterfactual", tokens.counterfactual_ids)):
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=tokens.attention_mask).logits
        logits = logits[torch.arange(len(tokens)), tokens.last]
        right, wrong = (logits.gather(1, answer[:, None]) for answer in (tokens.answers, tokens.wrong))
        found[name] = (right > wrong).float().mean().item()
    assert found["clean"] > 0.95 and 0.2 < found["counterfactual"] < 0.8


def colour_of(prompt):
    last = prompt.rpartition("\nQ: ")[2]
    table = {thing: colour for colour, thing in re.findall(r"an? (\w+) (\w+)", last)}
    return table[re.search(r"[Tt]he (\w+)(?: is|\?\nA:)$", last).group(1)]


@pytest.mark.parametrize(("things", "shots"), [(2, 0), (5, 0), (3, 2)])
def test_coloured_objects_have_the_colour_that_was_told(things, shots):
    problems = data("coloured-objects", n=100, things=things, shots=shots)["train"]
    assert [" " + colour_of(prompt) for prompt in problems["prompt"]] == problems["response"]
    assert [" " + colour_of(prompt) for prompt in problems["counterfactual"]] == problems["counterfactual_response"]
    for one, other in zip(problems["prompt"], problems["counterfactual"], strict=True):
        assert sum(a != b for a, b in zip(one.split(), other.split(), strict=True)) == 1
        *examples, _ = one.split("\nQ: ")
        assert len(examples) == shots
        for example in examples:
            question, answer = example.rsplit(" ", 1)
            assert colour_of(question) == answer
    assert parts(problems, "thing") == parts(problems, "query")
    assert [" " + word for word in parts(problems, "colour")] == problems["response"]
    assert {response.strip() for response in problems["response"]} <= set(COLOURS)


def box_holds(prompt):
    boxes = {box: thing for thing, box in re.findall(r"[Tt]he (\w+) is in Box (\w)", prompt)}
    for one, two in re.findall(r"Exchange what is in Box (\w) and Box (\w)", prompt):
        boxes[one], boxes[two] = boxes[two], boxes[one]
    return boxes[re.search(r"Box (\w) contains the$", prompt).group(1)]


@pytest.mark.parametrize("moves", [0, 3])
def test_entities_are_where_they_were_put(moves):
    problems = data("entity-tracking", n=100, boxes=7, moves=moves)["train"]
    assert [" " + box_holds(prompt) for prompt in problems["prompt"]] == problems["response"]
    assert [" " + box_holds(prompt) for prompt in problems["counterfactual"]] == problems["wrong"]
    for one, other in zip(problems["prompt"], problems["counterfactual"], strict=True):
        assert len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1
    assert [" " + word for word in parts(problems, "thing")] == problems["response"]
    assert (parts(problems, "box") == parts(problems, "query")) == (moves == 0)


def value(digits):
    return int("".join(digits.split()[::-1]))


@pytest.mark.parametrize("chain", [False, True])
def test_products_are_right_and_so_is_every_step(chain):
    problems = Multiplication(digits=4, by=3, chain=chain).draw(200, rng())
    for prompt, response, other, said in zip(
        *(problems[c] for c in ("prompt", "response", "counterfactual", "counterfactual_response")), strict=True
    ):
        for text, answer in ((prompt, response), (other, said)):
            a, b = map(value, text.removesuffix(" =").split(" * "))
            thought, _, last = answer.rpartition("####")
            assert value(last) == a * b and len(last.split()) == 7
            assert bool(thought) == chain
            if chain:
                sums = re.findall(r"\( ([\d ]+) \)", thought)
                terms = [value(term) for term in re.sub(r"\( [\d ]+ \)", "", thought).split("+")]
                assert [value(s) for s in sums] == np.cumsum(terms)[1:].tolist() and sum(terms) == a * b
        assert sum(x != y for x, y in zip(prompt, other, strict=True)) == 1
        assert len(re.findall(r"\d", prompt)) == 7 and "0" not in prompt.split()[3] and prompt[-3] != "0"
    changed = [one != two for one, two in zip(parts(problems, "changed"), problems["counterfactual"], strict=True)]
    assert all(changed)
    for prompt, other, (begin, _) in zip(
        problems["prompt"], problems["counterfactual"], problems["at_changed"], strict=True
    ):
        assert prompt[begin] != other[begin]
    with pytest.raises(DataError, match="use 1 to 9"):
        Multiplication(digits=0)


@pytest.mark.parametrize("digits", [1, 2])
def test_years_go_up(digits):
    problems = GreaterThan(digits).draw(200, rng())
    for prompt, right, wrong in zip(*(problems[c] for c in ("prompt", "response", "wrong")), strict=True):
        begin, end = re.search(r"year (\d{4}) to the year (\d+)$", prompt).groups()
        assert int(end + right) == int(begin) + 1 and int(end + wrong) == int(begin) - 1 and begin.startswith(end)
    assert list(map(int, parts(problems, "begin"))) == problems["begin"].tolist()


def test_greater_than_names_all_right_tokens():
    from monochord import processor
    from monochord.data.tasks.greater_than import candidates

    made = processor("ladder-1m")  # knows single digits only
    problems = GreaterThan(1).draw(20, rng())
    tokens, right = candidates(problems, made)
    assert made.batch_decode(tokens[:, None]) == list("0123456789")
    assert right.sum(1).tolist() == (9 - problems["begin"]).tolist()
    assert right.float().argmax(1).tolist() == list(map(int, problems["response"]))
    with pytest.raises(DataError, match="use digits=1"):
        candidates(GreaterThan(2).draw(3, rng()), made)


def test_facts_are_those_of_the_countries():
    facts = data("countries")["all"]
    table = dict(zip(facts["name"], facts["capital"], strict=True))
    problems = data("factual-recall", n=100)["train"]
    assert [table[name] for name in problems["subject"]] == [response[1:] for response in problems["response"]]
    assert parts(problems, "subject") == problems["subject"]
    for prompt, name, other, wrong in zip(
        *(problems[c] for c in ("prompt", "subject", "counterfactual", "wrong")), strict=True
    ):
        (swapped,) = [n for n in table if prompt.replace(name, n) == other]
        assert " " + table[swapped] == wrong
    some = FactualRecall(("region", "demonym"), subjects=("France", "Peru", "Japan")).draw(40, rng())
    assert set(some["subject"]) == {"France", "Peru", "Japan"} and set(some["relation"]) == {"region", "demonym"}
    with pytest.raises(DataError, match="do not differ in region"):
        FactualRecall(("region",), subjects=("France", "Spain")).draw(1, rng())
    with pytest.raises(DataError, match="unknown relation 'king'"):
        FactualRecall(("king",))


RULES = {
    "copy": lambda x: x,
    "first": lambda x: x.split()[0],
    "last": lambda x: x.split()[1],
    "swap": lambda x: " ".join(x.split()[::-1]),
    "twice": lambda x: f"{x} {x}",
    "capital": str.capitalize,
    "upper": str.upper,
    "plural": lambda x: x + "s",
    "next-number": lambda x: str(int(x) + 1),
    "next-letter": lambda x: chr(ord(x) + 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_word_functions_follow_their_rule_and_counterfactuals_do_not(name):
    problems = WordFunctions(shots=5, functions=(name,)).draw(20, rng())
    rule = RULES.get(name) or dict(OF_LISTS[name]).get
    for prompt, response, other in zip(*(problems[c] for c in ("prompt", "response", "counterfactual")), strict=True):
        *shown, last = prompt.split("\n")
        assert len(shown) == 5 and rule(last.removesuffix(" ->")) == response[1:]
        assert all(rule(line.split(" -> ")[0]) == line.split(" -> ")[1] for line in shown)
        *mixed, same = other.split("\n")
        assert same == last
        assert all(rule(line.split(" -> ")[0]) != line.split(" -> ")[1] for line in mixed)
    assert parts(problems, "query") == [p.rsplit("\n", 1)[1].removesuffix(" ->") for p in problems["prompt"]]
