"""Problems with ground truth: a prompt, its answer, a near miss of both, and where things stand in the prompt.

A task is a frozen dataclass of options with one method, `draw(n, rng)`; `source` makes it an entry of the catalog,
so that `monochord.data("induction", n=500, seed=1)` gives splits that share no prompt.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from monochord.data.catalog import Read, Source
from monochord.data.dataset import Column, DataError, Split

if TYPE_CHECKING:
    from torch import Tensor

SHARES = {"train": 1.0, "validation": 0.2, "test": 0.2}  # rows of a split for each of the `n` asked for
PLACE = "at_"
MADE = "made from a seed"


class Problems(Split):
    """A split whose rows are problems.

    Of text: `prompt`, `response` (the answer as it continues the prompt), and where the task has them `wrong`,
    `counterfactual` (a prompt), `counterfactual_response`, and `at_NAME`, the characters [begin, end) of a named
    part of the prompt, shape (n, 2). Of token ids: `input_ids` (n, seq), `answer`, `wrong`, `counterfactual_ids`,
    `counterfactual_answer`, and `at_NAME`, a place in the sequence, (n,).
    """

    def take(self, rows: Sequence[int] | np.ndarray) -> Problems:
        columns = super().take(rows)
        return Problems({name: columns[name] for name in columns.columns})

    @property
    def places(self) -> tuple[str, ...]:
        """The named parts of the prompt."""
        return tuple(name.removeprefix(PLACE) for name in self.columns if name.startswith(PLACE))

    def keys(self) -> list[bytes]:
        """What makes each problem the one it is: its prompt."""
        for name in ("prompt", "input_ids", "x"):
            if name in self:
                return [row.encode() if isinstance(row, str) else np.asarray(row).tobytes() for row in self[name]]
        raise DataError(f"problems need a column prompt, input_ids or x, got {', '.join(self.columns)}")

    def tokens(self, tokenizer: Any = None, *, strict: bool = True) -> TokenProblems:
        """The problems as tensors of token ids.

        An answer must be a single token and a counterfactual as long as its prompt; otherwise `strict` raises
        `DataError`, and without it such rows are left out.
        """
        if "input_ids" in self:
            return _of_ids(self)
        if tokenizer is None:
            raise DataError("problems of text need a tokenizer: pass monochord.models.processor(name)")
        return _of_text(self, tokenizer, strict)


@dataclass(frozen=True)
class TokenProblems:
    """Problems as int64 tensors: ids and mask (n, seq), padded at the end, all else (n,).

    The logits at `last` predict the answer. `rows` are the rows of the split that these are.
    """

    input_ids: Tensor
    attention_mask: Tensor
    last: Tensor
    answers: Tensor
    wrong: Tensor | None
    counterfactual_ids: Tensor | None
    counterfactual_answers: Tensor | None
    positions: Mapping[str, Tensor]
    rows: Tensor

    def __len__(self) -> int:
        return len(self.answers)


class Task(Protocol):
    """Options as dataclass fields and `draw`, which makes `n` problems, all from `rng`."""

    def draw(self, n: int, rng: np.random.Generator) -> Problems: ...


def source(
    task: type, name: str, title: str, *, n: int = 1000, package: Any = None, notes: Sequence[str] = ()
) -> Source:
    """The catalog entry of a task: its options, `n` (rows of the training split) and `seed` are those of `data`.

    `package` is that of the data which the task is made of.
    """

    def read(folder: Path | None, *, n: int = n, seed: int = 0, **given: Any) -> Read:
        made = task(**given)
        chance = getattr(made, "chance", None)
        stated = "its truth is known" if chance is None else f"chance level {chance:.4g}"
        return splits(made, n, seed, name), (stated, *notes)

    read.__signature__ = signature_of(task, n=n)  # type: ignore[attr-defined]
    return Source(
        name=name, kind="problems", title=title, licence="Apache-2.0, ours", package=package, read=read, ships=MADE
    )


def signature_of(task: type, **more: Any) -> inspect.Signature:
    """The signature of a catalog reader whose options are `more` (with defaults), `seed` and a task's fields."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    fields = [field.name for field in dataclasses.fields(task) if field.name != "seed"]
    return inspect.Signature(
        [
            inspect.Parameter("folder", inspect.Parameter.POSITIONAL_ONLY),
            *(inspect.Parameter(name, keyword, default=value) for name, value in more.items()),
            inspect.Parameter("seed", keyword, default=0),
            *(inspect.Parameter(name, keyword) for name in fields),
        ]
    )


def splits(task: Task, n: int, seed: int, name: str = "task") -> dict[str, Split]:
    """Train, validation and test problems from a seed, `n`, `n / 5` and `n / 5`; no prompt occurs twice."""
    if n < 5:
        raise DataError(f"{name}: n={n}, at least 5 problems are needed")
    sizes = {part: int(n * share) for part, share in SHARES.items()}
    whole = distinct(task, sum(sizes.values()), np.random.default_rng(seed), name)
    ends = np.cumsum(list(sizes.values()))
    return {part: whole.take(np.arange(end - size, end)) for (part, size), end in zip(sizes.items(), ends, strict=True)}


def distinct(task: Task, n: int, rng: np.random.Generator, name: str = "task") -> Problems:
    """`n` problems with `n` different prompts. Raises `DataError` when the task has not so many."""
    kept: list[Problems] = []
    seen: set[bytes] = set()
    barren = 0
    while len(seen) < n:
        drawn = task.draw(max(64, (n - len(seen)) * 5 // 4), rng)
        fresh = []
        for row, key in enumerate(drawn.keys()):
            if key not in seen and len(seen) < n:
                seen.add(key)
                fresh.append(row)
        barren = 0 if fresh else barren + 1
        if barren == 20:
            raise DataError(f"{name}: {n} different problems asked for, only {len(seen)} found: lower n")
        if fresh:
            kept.append(drawn.take(fresh))
    return kept[0] if len(kept) == 1 else joined(kept)


def joined(parts: Sequence[Problems]) -> Problems:
    """The rows of several, in order."""
    columns: dict[str, Column] = {}
    for name in parts[0].columns:
        values = [part[name] for part in parts]
        if isinstance(values[0], np.ndarray):
            columns[name] = np.concatenate(values)
        else:
            columns[name] = [row for value in values for row in value]
    return Problems(columns)


def place(prompts: Sequence[str], parts: Sequence[str], *, last: bool = False) -> np.ndarray:
    """Where the first (or last) occurrence of a part stands in each prompt, (n, 2) characters."""
    find = str.rindex if last else str.index
    begins = np.array([find(prompt, part) for prompt, part in zip(prompts, parts, strict=True)], np.int64)
    return np.stack([begins, begins + np.array([len(part) for part in parts])], axis=1)


def single_tokens(tokenizer: Any, words: Sequence[str], *, before: str = " ", needed: int = 2) -> tuple[str, ...]:
    """The words that are one token after `before`; all of them without a tokenizer.

    Raises `DataError` when fewer than `needed` are.
    """
    if tokenizer is None:
        return tuple(words)
    lead = len(tokenizer("a", add_special_tokens=False)["input_ids"])
    texts = [f"a{before}{word}" for word in words]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    found = tuple(word for word, ids in zip(words, encoded, strict=True) if len(ids) == lead + 1)
    if len(found) < needed:
        raise DataError(f"only {len(found)} of {len(words)} words are single tokens here, {needed} are needed")
    return found


# Tokens


def _of_ids(problems: Problems) -> TokenProblems:
    import torch

    def column(name: str) -> Any:
        return torch.from_numpy(np.asarray(problems[name], np.int64)) if name in problems else None

    ids = column("input_ids")
    n, length = ids.shape
    return TokenProblems(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        last=torch.full((n,), length - 1),
        answers=column("answer"),
        wrong=column("wrong"),
        counterfactual_ids=column("counterfactual_ids"),
        counterfactual_answers=column("counterfactual_answer"),
        positions={name: column(PLACE + name) for name in problems.places},
        rows=torch.arange(n),
    )


def _of_text(problems: Problems, tokenizer: Any, strict: bool) -> TokenProblems:
    import torch

    prompts = list(problems["prompt"])
    encoded = tokenizer(prompts, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    answers = _answers(tokenizer, prompts, ids, problems["response"])
    fine = [answer is not None for answer in answers]
    wrong, other, other_answers = None, None, None
    if "wrong" in problems:
        wrong = _answers(tokenizer, prompts, ids, problems["wrong"])
        fine = [a and b is not None for a, b in zip(fine, wrong, strict=True)]
    if "counterfactual" in problems:
        other = tokenizer(list(problems["counterfactual"]))["input_ids"]
        fine = [a and len(b) == len(c) for a, b, c in zip(fine, other, ids, strict=True)]
        if "counterfactual_response" in problems:
            responses = problems["counterfactual_response"]
            other_answers = _answers(tokenizer, list(problems["counterfactual"]), other, responses)
            fine = [a and b is not None for a, b in zip(fine, other_answers, strict=True)]
    rows = [row for row, good in enumerate(fine) if good]
    if len(rows) < len(fine) and strict:
        row = fine.index(False)
        raise DataError(
            f"{len(fine) - len(rows)} of {len(fine)} problems have answers of several tokens or a counterfactual of "
            f"another length, first {prompts[row]!r}{problems['response'][row]!r}: pass tokenizer= to the task, or "
            "strict=False to leave them out"
        )
    if not rows:
        raise DataError("no problem has a single-token answer and an aligned counterfactual with this tokenizer")
    padding = getattr(tokenizer, "pad_token_id", None) or 0
    length = max(len(ids[row]) for row in rows)

    def padded(values: Any, fill: int) -> Tensor:
        return torch.tensor([list(values[row]) + [fill] * (length - len(values[row])) for row in rows])

    def chosen(values: Any) -> Tensor | None:
        return None if values is None else torch.tensor([values[row] for row in rows])

    positions = {
        name: torch.tensor([_token_at(offsets[row], int(problems[PLACE + name][row, 1])) for row in rows])
        for name in problems.places
    }
    chosen_answers = chosen(answers)
    assert chosen_answers is not None
    return TokenProblems(
        input_ids=padded(ids, padding),
        attention_mask=padded([[1] * len(row) for row in ids], 0),
        last=torch.tensor([len(ids[row]) - 1 for row in rows]),
        answers=chosen_answers,
        wrong=chosen(wrong),
        counterfactual_ids=None if other is None else padded(other, padding),
        counterfactual_answers=chosen(other_answers),
        positions=positions,
        rows=torch.tensor(rows),
    )


def _answers(tokenizer: Any, prompts: list[str], ids: Any, responses: Any) -> list[int | None]:
    """The one token that continues each prompt with its response; None where there is no such token."""
    whole = tokenizer([prompt + response for prompt, response in zip(prompts, responses, strict=True)])["input_ids"]
    return [
        after[len(before)] if len(after) == len(before) + 1 and after[: len(before)] == before else None
        for before, after in zip(ids, whole, strict=True)
    ]


def _token_at(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """The token that holds the last character before `end`."""
    for token, (begin, stop) in enumerate(offsets):
        if begin < end <= stop:
            return token
    raise DataError(f"no token holds the character before {end}")
