"""Entity tracking: what is in which box, also after things were moved.

From "Fine-Tuning Enhances Existing Mechanisms: A Case Study on Entity Tracking", February 22, 2024; with moves, from
"Entity Tracking in Language Models", May 3, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import Problems, single_tokens, source
from monochord.data.tasks.words import NOUNS

LABELS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"  # without I, which is a word


@dataclass(frozen=True)
class EntityTracking:
    """`The ring is in Box F, the map is in Box A. Box F contains the` is continued by ring.

    `boxes` boxes each hold one thing. Each of `moves` sentences exchanges the contents of two boxes. The
    counterfactual asks for another box, which is all that differs; what is in that one is the `wrong` answer.
    Places: `thing` and `box` of the right thing where it is first told, and `query`, the box in the last sentence.
    With a `tokenizer` the things are single tokens of it.
    """

    boxes: int = 5
    moves: int = 0
    tokenizer: Any = None

    def __post_init__(self) -> None:
        if not 2 <= self.boxes <= len(LABELS) or self.moves < 0:
            raise DataError(f"boxes={self.boxes}, moves={self.moves}: use 2 to {len(LABELS)} boxes and 0 or more moves")

    @property
    def chance(self) -> float:
        return 1 / self.boxes  # of naming some thing that was told

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        words = np.array(single_tokens(self.tokenizer, NOUNS, needed=self.boxes), object)
        things = words[np.argsort(rng.random((n, len(words))), axis=1)[:, : self.boxes]]
        letters = np.array(single_tokens(self.tokenizer, LABELS, needed=self.boxes), object)
        labels = letters[np.argsort(rng.random((n, len(letters))), axis=1)[:, : self.boxes]]
        holds = np.tile(np.arange(self.boxes), (n, 1))  # box -> thing
        asked = np.argsort(rng.random((n, self.boxes)), axis=1)[:, :2]
        exchanged = np.argsort(rng.random((n, self.moves, self.boxes)), axis=2)[:, :, :2]
        rows = np.arange(n)
        for step in range(self.moves):
            one, two = exchanged[:, step].T
            holds[rows, one], holds[rows, two] = holds[rows, two], holds[rows, one]
        right, wrong = (things[rows, holds[rows, asked[:, k]]] for k in (0, 1))
        prompts, others, spans = [], [], []
        for i in range(n):
            text, places = "", []
            for k, (thing, label) in enumerate(zip(things[i], labels[i], strict=True)):
                text += ", the " if k else "The "
                begin = len(text)
                text += f"{thing} is in Box {label}"
                places.append([(begin, begin + len(thing)), (len(text) - 1, len(text))])
            text += "."
            for one, two in exchanged[i]:
                text += f" Exchange what is in Box {labels[i, one]} and Box {labels[i, two]}."
            begin = len(text) + 5
            prompts.append(f"{text} Box {labels[i, asked[i, 0]]} contains the")
            others.append(f"{text} Box {labels[i, asked[i, 1]]} contains the")
            spans.append([*places[holds[i, asked[i, 0]]], (begin, begin + 1)])
        at = np.array(spans, np.int64).transpose(1, 0, 2)
        return Problems(
            {
                "prompt": prompts,
                "response": [" " + thing for thing in right],
                "wrong": [" " + thing for thing in wrong],
                "counterfactual": others,
                "counterfactual_response": [" " + thing for thing in wrong],
                **dict(zip(("at_thing", "at_box", "at_query"), at, strict=True)),
            }
        )


ENTRIES = [source(EntityTracking, "entity-tracking", "which thing is in which box")]
