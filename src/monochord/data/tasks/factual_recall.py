"""Factual recall: prompts on countries that a language model may or may not know how to finish.

In the form of "Locating and Editing Factual Associations in GPT", February 10, 2022: subject, relation, object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.sets import countries
from monochord.data.tasks.problem import Problems, place, source

TEMPLATES = {
    "capital": ("The capital of {name} is", "{name} has its capital in", "The capital city of {name} is called"),
    "region": ("{name} is a country in", "On the map, {name} is in", "{name} lies on the continent of"),
    "demonym": ("The people of {name} are called", "Someone from {name} is", "The citizens of {name} are"),
}


@dataclass(frozen=True)
class FactualRecall:
    """A prompt on a country (`subject`) in a `relation`, "capital", "region" or "demonym", and the object.

    The counterfactual is the same prompt on another country, whose object differs and is the `wrong` answer.
    `subjects` restricts the countries to those named. Facts are those of the data set "countries", true or not.
    Columns `subject`, `relation` and `template`; place: `subject`.
    """

    relations: Sequence[str] = ("capital",)
    subjects: Sequence[str] = ()

    def __post_init__(self) -> None:
        for relation in self.relations:
            if relation not in TEMPLATES:
                raise DataError(f"unknown relation {relation!r}: use {', '.join(TEMPLATES)}")

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        from monochord.data import data

        facts = data("countries")["all"]
        known = [i for i, name in enumerate(facts["name"]) if not self.subjects or name in self.subjects]
        columns: dict[str, list[str]] = {
            name: [] for name in ("prompt", "response", "counterfactual", "wrong", "subject", "relation")
        }
        templates = rng.integers(3, size=n)
        for template in templates:
            relation = self.relations[int(rng.integers(len(self.relations)))]
            objects = facts[relation]
            usable = [i for i in known if objects[i]]
            if len({objects[i] for i in usable}) < 2:
                raise DataError(f"the {len(usable)} subjects do not differ in {relation}: name more of them")
            while True:
                one, other = (usable[i] for i in rng.integers(len(usable), size=2))
                if objects[one] != objects[other]:
                    break
            wording = TEMPLATES[relation][template]
            columns["prompt"].append(wording.format(name=facts["name"][one]))
            columns["counterfactual"].append(wording.format(name=facts["name"][other]))
            columns["response"].append(f" {objects[one]}")
            columns["wrong"].append(f" {objects[other]}")
            columns["subject"].append(facts["name"][one])
            columns["relation"].append(relation)
        spans = place(columns["prompt"], columns["subject"])
        return Problems(
            {**columns, "counterfactual_response": columns["wrong"], "template": templates, "at_subject": spans}
        )


ENTRIES = [
    source(
        FactualRecall,
        "factual-recall",
        "capitals, regions and peoples of countries",
        n=500,
        package=countries.ENTRIES[0].package,
        notes=("answers are often several tokens, and counterfactuals seldom aligned: see `tokens(strict=False)`",),
    )
]
