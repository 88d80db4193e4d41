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
    """`On the table there is a red ball, a blue cup and a green book. The cup is` is continued by blue.

    With `shots` > 0 the last sentence is a question, after as many examples on other things: `Q: On the table ...
    What colour is the cup?` and `A: blue`. `things` are listed, in different colours. The counterfactual asks for
    another of them, which is all that differs, and its colour is the `wrong` answer. Places: `thing` and `colour` of
    the right one in the last list, and `query`, the thing asked for. Words of `nouns` and `colours` that begin with a
    vowel are left out (a, an), and with a `tokenizer` those that are not single tokens of it.
    """

    things: int = 3
    shots: int = 0
    nouns: Sequence[str] = OBJECTS
    colours: Sequence[str] = COLOURS
    tokenizer: Any = None

    def __post_init__(self) -> None:
        if not 2 <= self.things <= 8 or not 0 <= self.shots <= 8:
            raise DataError(f"things={self.things}, shots={self.shots}: use 2 to 8 things and 0 to 8 shots")

    @property
    def chance(self) -> float:
        return 1 / self.things  # of naming some colour that was listed

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        words = (
            single_tokens(self.tokenizer, [word for word in given if word[0] not in "aeiou"], needed=self.things)
            for given in (self.nouns, self.colours)
        )
        things, colours = (np.array(found, object) for found in words)
        shape = n, self.shots + 1
        listed = things[np.argsort(rng.random((*shape, len(things))), axis=2)[..., : self.things]]
        painted = colours[np.argsort(rng.random((*shape, len(colours))), axis=2)[..., : self.things]]
        asked = np.argsort(rng.random((*shape, self.things)), axis=2)[..., :2]
        columns: dict[str, list[str]] = {name: [] for name in ("prompt", "counterfactual", "response", "wrong")}
        spans = []
        for i in range(n):
            before = ""
            for k in range(self.shots):
                one = asked[i, k, 0]
                before += self._asked(_listed(listed[i, k], painted[i, k])[0], listed[i, k, one])[0]
                before += f" {painted[i, k, one]}\n"
            text, places = _listed(listed[i, -1], painted[i, -1])
            right, other = asked[i, -1]
            prompt, query = self._asked(text, listed[i, -1, right])
            columns["prompt"].append(before + prompt)
            columns["counterfactual"].append(before + self._asked(text, listed[i, -1, other])[0])
            columns["response"].append(f" {painted[i, -1, right]}")
            columns["wrong"].append(f" {painted[i, -1, other]}")
            lead = len(before) + len("Q: ") * bool(self.shots)
            place = [(begin + lead, end + lead) for begin, end in places[right]]
            spans.append([*place, (len(before) + query[0], len(before) + query[1])])
        at = np.array(spans, np.int64).transpose(1, 0, 2)
        return Problems(
            {
                **columns,
                "counterfactual_response": columns["wrong"],
                **dict(zip(("at_colour", "at_thing", "at_query"), at, strict=True)),
            }
        )

    def _asked(self, text: str, thing: str) -> tuple[str, tuple[int, int]]:
        """The prompt on one listed thing, and the characters of the thing where it is asked for."""
        start = f"Q: {text} What colour is the " if self.shots else f"{text} The "
        end = "?\nA:" if self.shots else " is"
        return start + thing + end, (len(start), len(start) + len(thing))


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
