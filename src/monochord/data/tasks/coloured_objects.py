"""Coloured objects: things in colours are listed, one thing's colour is asked for.

A task of "Beyond the Imitation Game: Quantifying and extrapolating the capabilities of language models",
June 9, 2022, in the form of "Circuit Component Reuse Across Tasks in Transformer Language Models", October 12, 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import Problems, single_tokens, source
from monochord.data.tasks.words import COLOURS, OBJECTS


@dataclass(frozen=True)
class ColouredObjects:
    """`On the table there is a red ball, a blue cup and a green book. ... The cup is` is continued by blue.

    `things` are listed, in different colours. The counterfactual asks for another of them, which is all that
    differs, and its colour is the `wrong` answer. Places: `thing` and `colour` of the right one in the list, and
    `query`, the thing in the last sentence. Words of `nouns` and `colours` that
    begin with a vowel are left out (a, an), and with a `tokenizer` those that are not single tokens of it.
    """

    things: int = 3
    nouns: Sequence[str] = OBJECTS
    colours: Sequence[str] = COLOURS
    tokenizer: Any = None

    def __post_init__(self) -> None:
        if not 2 <= self.things <= 8:
            raise DataError(f"things={self.things}: use 2 to 8")

    @property
    def chance(self) -> float:
        return 1 / self.things  # of naming some colour that was listed

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        words = (
            single_tokens(self.tokenizer, [word for word in given if word[0] not in "aeiou"], needed=self.things)
            for given in (self.nouns, self.colours)
        )
        things, colours = (np.array(found, object) for found in words)
        listed = things[np.argsort(rng.random((n, len(things))), axis=1)[:, : self.things]]
        painted = colours[np.argsort(rng.random((n, len(colours))), axis=1)[:, : self.things]]
        asked = np.argsort(rng.random((n, self.things)), axis=1)[:, :2]
        columns: dict[str, list[str]] = {name: [] for name in ("prompt", "counterfactual")}
        spans = []
        for i in range(n):
            start, places = _listed(listed[i], painted[i])
            right, other = asked[i]
            columns["prompt"].append(f"{start} The {listed[i, right]} is")
            columns["counterfactual"].append(f"{start} The {listed[i, other]} is")
            query = (len(start) + 5, len(start) + 5 + len(listed[i, right]))
            spans.append([*places[right], query])
        rows = np.arange(n)
        answers, wrong = ([" " + word for word in painted[rows, asked[:, k]]] for k in (0, 1))
        at = np.array(spans, np.int64).transpose(1, 0, 2)
        return Problems(
            {
                **columns,
                "response": answers,
                "wrong": wrong,
                "counterfactual_response": wrong,
                **dict(zip(("at_colour", "at_thing", "at_query"), at, strict=True)),
            }
        )


def _listed(things: Sequence[str], colours: Sequence[str]) -> tuple[str, list[list[tuple[int, int]]]]:
    """The sentence, and the characters of each colour and thing in it."""
    text, places = "On the table there is", []
    for i, (thing, colour) in enumerate(zip(things, colours, strict=True)):
        text += " a " if i == 0 else " and a " if i == len(things) - 1 else ", a "
        begin = len(text)
        text += f"{colour} {thing}"
        places.append([(begin, begin + len(colour)), (begin + len(colour) + 1, len(text))])
    return text + ".", places


ENTRIES = [source(ColouredObjects, "coloured-objects", "the colour of one of several things")]
