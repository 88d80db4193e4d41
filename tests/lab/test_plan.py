"""From what is asked to what is run: tasks, entrants, rates, seeds, and what makes a trial another one."""

from dataclasses import dataclass

import pytest
import torch
from lab import tiny

from monochord.adapt import LoRA
from monochord.core.tuner import Tuner
from monochord.data import DataError, data
from monochord.lab import plan
from monochord.lab.again import again

ROWS = [{"text": f"word {i}", "label": i % 2} for i in range(40)]


def problem(model="minilm", given=None, task=None, steps=None, **overrides):
    return plan.problem(model, given, task, steps, None, overrides)


@pytest.mark.parametrize(
    ("model", "kind", "title"),
    [
        ("minilm", "text-classification", "minilm on movie-reviews(source='rotten-tomatoes')"),
        ("dinov2-s", "image-classification", "dinov2-s on fashion-mnist"),
        ("glassllm", "causal-lm", "glassllm on alpaca"),
    ],
)
def test_data_that_fits_the_model_is_the_default(model, kind, title):
    found = problem(model)
    assert (found.settings.kind, found.title) == (kind, title)


def test_given_data_decides_the_task():
    assert problem(given="fashion-mnist").settings.kind == "image-classification"
    assert problem(given="movie-reviews(source='imdb')").settings.data == "movie-reviews(source='imdb')"
    own = problem(given=ROWS)
    assert own.settings.kind == "text-classification"
    assert own.settings.data.startswith("object:") and own.settings.max_words is None
    assert problem(given=[{"prompt": "a", "response": "b"}] * 30).settings.kind == "causal-lm"
    with pytest.raises(DataError, match="is for facts"):
        problem(given="countries")


def test_a_users_model_decides_by_its_configuration():
    assert problem(tiny.model()).settings.kind == "text-classification"
    assert problem(tiny.language_model()).settings.kind == "causal-lm"


def test_numbers_given_replace_the_defaults():
    found = problem(steps=7, batch_size=3, max_length=None)
    assert (found.steps, found.settings.batch_size) == (7, 3)
    assert found.settings.max_length == 32


def test_contents_make_the_name_of_own_data_and_models():
    first = problem(tiny.model(), ROWS).settings
    assert problem(tiny.model(), list(ROWS)).settings == first
    assert problem(tiny.model(), [*ROWS[:-1], {"text": "other", "label": 1}]).settings.data != first.data
    other = tiny.model()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1
    assert problem(other, ROWS).settings.model != first.model


def test_fingerprints_see_labels_splits_and_batches():
    base = plan.dataset_fingerprint(data(ROWS))
    flipped = [{**row, "label": 1 - row["label"]} for row in ROWS]
    assert plan.dataset_fingerprint(data(flipped)) != base
    batches = tiny.batches(2)
    before = plan.dataset_fingerprint(data(batches))
    batches[1]["labels"][0] += 1
    assert plan.dataset_fingerprint(data(batches)) != before


def test_entrants_have_names_and_specs():
    found = plan.entrants(["lora", " lora(rank=4)", LoRA(rank=2)], None)
    assert [entrant.name for entrant in found] == ["lora", "lora(rank=4)", "lora(rank=2)"]
    assert [entrant.given for entrant in found] == [False, False, True]
    assert found[2].spec.startswith("lora(rank=2)#")
    assert [e.name for e in plan.entrants("lora(rank=4, alpha=8),dora", None)] == ["lora(rank=4, alpha=8)", "dora"]
    assert [e.name for e in plan.entrants(LoRA(), None)] == ["lora"]
    assert [e.name for e in plan.entrants(None, None)] == list(plan.DEFAULT_METHODS)


def test_a_resized_entrant_says_so():
    (entrant,) = plan.entrants({"mine": LoRA(rank=2)}, None)
    resized = plan.resized(entrant, "rank", 5)
    assert resized.name == "mine(rank=5)" and resized.tuner == LoRA(rank=5)
    assert resized.spec != entrant.spec


@dataclass(frozen=True)
class Rated(LoRA):
    """A method that knows its rate."""

    default_lr = 0.03


@dataclass(frozen=True)
class Unrated(Tuner):
    """A method that does not."""


def test_rates_are_given_own_or_common():
    assert plan.rates_for("x", LoRA(), [1e-2, 1e-4, 1e-2]) == (1e-4, 1e-2)
    assert plan.rates_for("x", LoRA(), {"x": 0.5}) == (0.5,)
    assert plan.rates_for("y", Unrated(), {"x": 0.5}) == plan.COMMON_RATES
    assert plan.rates_for("x", Rated(), None) == (0.01, 0.03, 0.09)
    assert plan.rates_for("x", Rated() | LoRA(), None) == (0.01, 0.03, 0.09)
    assert len(plan.COMMON_RATES) == 3


def test_the_code_of_a_method_is_part_of_its_trials():
    assert plan.code_hash(LoRA()) == plan.code_hash(LoRA(rank=3))
    assert plan.code_hash(LoRA()) != plan.code_hash(Rated())


def test_how_to_ask_again():
    usual = {"seeds": 3, "match": "steps", "retention": True, "steps": None}
    assert again("minilm", None, None, usual) == {
        "python": "import monochord as mc\n\nmc.compare()",
        "command": "monochord compare",
    }
    asked = {**usual, "seeds": [5, 6], "steps": 9, "learning_rates": [0.001], "retention": False}
    told = again("minilm", "a b.csv", ["lora(rank=4)", "full"], asked)
    assert told["command"] == (
        "monochord compare --data 'a b.csv' --methods 'lora(rank=4),full' --steps 9 --seeds 5,6 --rates 0.001 "
        "--no-retention"
    )
    own = again(tiny.model(), ROWS[:1], [LoRA()], usual)
    assert set(own) == {"python"}
    assert own["python"].startswith("import monochord as mc\n\nmc.compare(bertmodel, ")
