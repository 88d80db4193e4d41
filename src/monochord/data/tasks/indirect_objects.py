"""Indirect objects: of two people, who got the thing? The one who was named once.

From "Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small", November 1, 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import Problems, single_tokens, source
from monochord.data.tasks.words import NAMES, OBJECTS, PLACES

FRAMES = (
    "When {first} and {second} went to the {place}, {giver} gave a {thing} to",
    "After {first} and {second} went to the {place}, {giver} gave a {thing} to",
    "Then, {first} and {second} had a long day at the {place}. {giver} handed a {thing} to",
    "While {first} and {second} were at the {place}, {giver} showed a {thing} to",
)
ORDERS = ("ABB", "BAB")  # of the two names and the giver; A is the indirect object


@dataclass(frozen=True)
class IndirectObjects:
    """`When A and B went to the park, B gave a ring to` is continued by A, the indirect object.

    `orders` of names are "ABB" and "BAB". The counterfactual has three other people in their places (ABC), so
    nothing points to an answer; `wrong` is B, the subject. Places: `object` (A), `subject` (B, named first) and
    `giver` (B again). Columns `order` and `frame` say how a prompt was made. With a `tokenizer` all names are
    single tokens of it, and counterfactuals are aligned; five `names` at least must be.
    """

    orders: Sequence[str] = ORDERS
    names: Sequence[str] = NAMES
    tokenizer: Any = None

    def __post_init__(self) -> None:
        for order in self.orders:
            if order not in ORDERS:
                raise DataError(f"unknown order {order!r}: use {' or '.join(ORDERS)}")

    @property
    def chance(self) -> float:
        return 1 / 2

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        names = np.array(single_tokens(self.tokenizer, self.names, needed=5), object)
        people = names[np.argsort(rng.random((n, len(names))), axis=1)[:, :5]]
        frames = rng.integers(len(FRAMES), size=n)
        orders = np.array(self.orders, object)[rng.integers(len(self.orders), size=n)]
        places, things = (np.array(words, object)[rng.integers(len(words), size=n)] for words in (PLACES, OBJECTS))
        swapped = orders == "BAB"
        first, second = np.where(swapped, people[:, 1], people[:, 0]), np.where(swapped, people[:, 0], people[:, 1])
        prompts, others, spans = [], [], []
        for i in range(n):
            frame, rest = FRAMES[frames[i]], {"place": places[i], "thing": things[i]}
            prompts.append(frame.format(first=first[i], second=second[i], giver=people[i, 1], **rest))
            others.append(frame.format(first=people[i, 2], second=people[i, 3], giver=people[i, 4], **rest))
            spans.append(_places(prompts[-1], people[i, 0], people[i, 1]))
        return Problems(
            {
                "prompt": prompts,
                "response": [" " + name for name in people[:, 0]],
                "wrong": [" " + name for name in people[:, 1]],
                "counterfactual": others,
                "order": orders.tolist(),
                "frame": frames,
                **dict(zip(("at_object", "at_subject", "at_giver"), np.array(spans).transpose(1, 0, 2), strict=True)),
            }
        )


def _places(prompt: str, receiver: str, giver: str) -> list[tuple[int, int]]:
    found = []
    for name, find in ((receiver, _word), (giver, _word), (giver, _last_word)):
        begin = find(prompt, name)
        found.append((begin, begin + len(name)))
    return found


def _word(prompt: str, name: str) -> int:
    """Where a name stands as a word: 'Tom' is not in 'Tomas'."""
    return f" {prompt} ".replace(",", " ").replace(".", " ").index(f" {name} ")


def _last_word(prompt: str, name: str) -> int:
    return f" {prompt} ".replace(",", " ").replace(".", " ").rindex(f" {name} ")


ENTRIES = [source(IndirectObjects, "indirect-objects", "who of two people was given the thing")]
