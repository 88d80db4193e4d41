"""Each task of token ids against a solver that reads the ids alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monochord.data import DataError, data
from monochord.data.tasks.associative_recall import AssociativeRecall
from monochord.data.tasks.boolean_functions import KINDS, BooleanFunctions
from monochord.data.tasks.induction import Induction
from monochord.data.tasks.modular_arithmetic import OPERATIONS, ModularArithmetic


def rng():
    return np.random.default_rng(0)


def follows_earlier(ids):
    """What came after the last id where it stood before; the place of the latest such."""
    at = max(np.flatnonzero(ids[:-1] == ids[-1]))
    return at, ids[at + 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(2, 4), st.integers(0, 50))
def test_induction_repeats(length, repeats, first):
    task = Induction(length=length, vocabulary=40, first=first, repeats=repeats)
    problems = task.draw(8, rng())
    for row in range(8):
        ids, changed = problems["input_ids"][row], problems["counterfactual_ids"][row]
        at, answer = follows_earlier(ids)
        assert (
            answer == problems["answer"][row] and follows_earlier(changed)[1] == problems["counterfactual_answer"][row]
        )
        assert at == problems["at_match"][row] and at + 1 == problems["at_source"][row]
        assert ((ids != changed) == (ids == problems["answer"][row])).all()
        assert len(set(ids)) == length and ids.min() >= first and ids.max() < first + 40
        assert problems["wrong"][row] in ids and problems["wrong"][row] != problems["answer"][row]
        assert problems["counterfactual_answer"][row] not in ids


def test_induction_refuses_what_has_no_room():
    with pytest.raises(DataError, match="use 2 to 9"):
        Induction(length=10, vocabulary=10)
    with pytest.raises(DataError, match="repeats=1"):
        Induction(repeats=1)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 16), st.integers(1, 2), st.integers(0, 9))
def test_associative_recall_looks_up(pairs, queries, first):
    problems = AssociativeRecall(pairs=pairs, queries=queries, keys=20, values=30, first=first).draw(8, rng())
    for row in range(8):
        for ids, answer in (("input_ids", "answer"), ("counterfactual_ids", "counterfactual_answer")):
            shown = problems[ids][row]
            table = dict(zip(shown[: 2 * pairs : 2], shown[1 : 2 * pairs : 2], strict=True))
            assert len(table) == pairs == len(set(table.values()))
            asked = shown[2 * pairs :]
            assert [table[key] for key in asked[::2]] == [*asked[1::2], problems[answer][row]]
        key, value = problems["at_key"][row], problems["at_value"][row]
        assert problems["input_ids"][row, key] == problems["input_ids"][row, -1] and value == key + 1
        assert problems["input_ids"][row, value] == problems["answer"][row]
        assert (problems["input_ids"][row] != problems["counterfactual_ids"][row]).sum() == 2
        assert problems["wrong"][row] == problems["counterfactual_answer"][row]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_modular_arithmetic(operation):
    problems = data("modular-arithmetic", n=100, modulus=23, operation=operation)["train"]
    for ids, answer in (("input_ids", "answer"), ("counterfactual_ids", "counterfactual_answer")):
        for (a, sign, b, equals), c in zip(problems[ids].tolist(), problems[answer].tolist(), strict=True):
            assert (sign, equals) == (23, 24)
            left, right = {"add": (a + b, c), "subtract": (a, b + c), "multiply": (a * b, c), "divide": (a, b * c)}[
                operation
            ]
            assert left % 23 == right % 23 and 0 <= c < 23
    assert (problems["input_ids"] != problems["counterfactual_ids"]).sum(1).tolist() == [1] * 100
    with pytest.raises(DataError, match="odd prime"):
        ModularArithmetic(modulus=15)


@pytest.mark.parametrize("kind", KINDS)
def test_boolean_functions_hold_on_every_example(kind):
    problems = BooleanFunctions(kind, bits=6, shots=10).draw(200, rng())
    rules = {"conjunction": all, "disjunction": any, "dictator": any, "parity": lambda b: sum(b) % 2}
    rule = rules.get(kind, lambda b: sum(b) > len(b) / 2)
    for row in range(200):
        ids = problems["input_ids"][row]
        examples = ids[:80].reshape(10, 8)
        subset = problems["subset"][row]
        assert subset.sum() == 1 if kind == "dictator" else subset.sum() >= 2
        said = [2 + int(rule(bits[subset].tolist())) for bits in (*examples[:, :6], ids[80:])]
        assert said == [*examples[:, 6], problems["answer"][row]] and set(examples[:, 7]) == {4}
        assert len(ids) == 86 and problems["at_query"][row] == 80
    changed = problems["input_ids"] != problems["counterfactual_ids"]
    assert set(np.flatnonzero(changed.any(0))) == {8 * k + 6 for k in range(10)} and changed.sum() == 2000
    assert 0.35 < (problems["answer"] == 3).mean() < 0.65
    with pytest.raises(DataError, match="unknown kind 'xor'"):
        BooleanFunctions("xor")


def test_a_memoriser_is_at_chance():
    """What is stated as chance is what naming some seen id gives."""
    task = Induction(length=10)
    problems = task.draw(5000, rng())
    guess = problems["input_ids"][np.arange(5000), rng().integers(10, size=5000)]
    assert abs((guess == problems["answer"]).mean() - task.chance) < 0.02
