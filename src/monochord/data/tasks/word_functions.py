"""In-context functions of words: a few examples of input and output, then an input whose output is asked for.

Of the kind of "What Can Transformers Learn In-Context? A Case Study of Simple Function Classes", August 1, 2022,
with words in place of vectors, as in "Function Vectors in Large Language Models", October 23, 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import Problems, single_tokens, source
from monochord.data.tasks.words import NOUNS, OPPOSITES, SPANISH

Pair = tuple[str, str]
Function = Callable[[Sequence[str]], Pair]

OF_WORDS: dict[str, Function] = {  # from two different words to (input, output)
    "copy": lambda words: (words[0], words[0]),
    "first": lambda words: (f"{words[0]} {words[1]}", words[0]),
    "last": lambda words: (f"{words[0]} {words[1]}", words[1]),
    "swap": lambda words: (f"{words[0]} {words[1]}", f"{words[1]} {words[0]}"),
    "twice": lambda words: (words[0], f"{words[0]} {words[0]}"),
    "capital": lambda words: (words[0], words[0].capitalize()),
    "upper": lambda words: (words[0], words[0].upper()),
    "plural": lambda words: (words[0], words[0] + "s"),
}
OF_LISTS: dict[str, tuple[Pair, ...]] = {
    "opposite": OPPOSITES,
    "spanish": SPANISH,
    "english": tuple((spanish, english) for english, spanish in SPANISH),
    "next-number": tuple((str(i), str(i + 1)) for i in range(1, 60)),
    "next-letter": tuple((chr(i), chr(i + 1)) for i in range(ord("a"), ord("z"))),
}
FUNCTIONS = (*OF_WORDS, *OF_LISTS)


@dataclass(frozen=True)
class WordFunctions:
    """`shots` examples `input -> output`, one a line, then an input; the answer is the function's output.

    `functions` are those to draw from, of `FUNCTIONS`. Inputs within a problem are different. The counterfactual
    exchanges outputs among the examples (each moves to the next one), so that no rule holds; it has no answer of
    its own. `wrong` is the output of the last example. Place: `query`. With a `tokenizer` the words are single
    tokens of it. Column `function` names the function.
    """

    shots: int = 6
    functions: Sequence[str] = FUNCTIONS
    tokenizer: Any = None

    def __post_init__(self) -> None:
        for name in self.functions:
            if name not in FUNCTIONS:
                raise DataError(f"unknown function {name!r}: there are {', '.join(FUNCTIONS)}")
        if not 1 <= self.shots <= 20:
            raise DataError(f"shots={self.shots}: use 1 to 20")

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        words = single_tokens(self.tokenizer, NOUNS, needed=2 * self.shots + 2)
        names = [self.functions[i] for i in rng.integers(len(self.functions), size=n)]
        columns: dict[str, list[str]] = {name: [] for name in ("prompt", "response", "wrong", "counterfactual")}
        places = []
        for name in names:
            pairs = self._pairs(name, words, rng)
            shown, (query, answer) = pairs[:-1], pairs[-1]
            turned = [output for _, output in shown[1:] + shown[:1]]
            other = [(given, output) for (given, _), output in zip(shown, turned, strict=True)]
            prompt = _written(shown) + query + " ->"
            columns["prompt"].append(prompt)
            columns["response"].append(" " + answer)
            columns["wrong"].append(" " + shown[-1][1])
            columns["counterfactual"].append(_written(other) + query + " ->")
            places.append((len(prompt) - 3 - len(query), len(prompt) - 3))
        return Problems({**columns, "function": names, "at_query": np.array(places, np.int64)})

    def _pairs(self, name: str, words: Sequence[str], rng: np.random.Generator) -> list[Pair]:
        if name in OF_LISTS:
            pairs = OF_LISTS[name]
            return [pairs[i] for i in rng.permutation(len(pairs))[: self.shots + 1]]
        chosen = [words[i] for i in rng.permutation(len(words))[: 2 * self.shots + 2]]
        return [OF_WORDS[name](chosen[2 * i : 2 * i + 2]) for i in range(self.shots + 1)]


def _written(pairs: Sequence[Pair]) -> str:
    return "".join(f"{given} -> {output}\n" for given, output in pairs)


ENTRIES = [source(WordFunctions, "word-functions", "functions of words, shown by examples")]
