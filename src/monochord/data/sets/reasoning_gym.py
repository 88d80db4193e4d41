"""Reasoning Gym: generated problems of arithmetic, algebra, logic and games, with checkers of answers.

From "REASONING GYM: Reasoning Environments for Reinforcement Learning with Verifiable Rewards", May 30, 2025. The
generators are run from the unpacked package without installing it, as far as they need nothing that we do not have: 67
of 106. Where the package is installed (`pip install reasoning-gym`) it is used, with all of them.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from monochord.core.packages import Package
from monochord.data.catalog import Read, Source, check
from monochord.data.dataset import DataError, Split

NAME = "reasoning_gym"
GENERATORS = 67


def read(folder: Path, *, task: str = "gsm_symbolic", n: int = 1000, seed: int = 0) -> Read:
    """`n` problems of a generator: `question`, `answer`, the same as `prompt` and `response`, and `metadata` as JSON.

    `task` is a generator ("chain_sum", "countdown", "maze", "mini_sudoku", "gsm_symbolic", ...). The last 20 % are held
    out to validate and test; questions that occur twice are dropped and replaced.
    """
    if n < 10:
        raise DataError(f"reasoning-gym: n={n}, at least 10 are needed for three splits")
    with _importable(folder):
        problems = _problems(_generator(folder, task), n, seed)
    columns = {
        "question": [problem["question"] for problem in problems],
        "answer": [problem["answer"] for problem in problems],
        "metadata": [json.dumps(problem["metadata"], default=str) for problem in problems],
    }
    columns |= {"prompt": columns["question"], "response": columns["answer"]}
    whole, held = Split(columns), n // 10
    cuts = {"train": (0, n - 2 * held), "validation": (n - 2 * held, n - held), "test": (n - held, n)}
    splits = {name: whole.take(range(*cut)) for name, cut in cuts.items()}
    return splits, (f"{task}, generated from seed {seed}", "monochord.data.sets.reasoning_gym.score marks an answer")


def score(task: str, answer: str, problem: Mapping[str, Any]) -> float:
    """The mark of an answer from 0 to 1; `problem` is a row with `question`, `answer` and `metadata`."""
    folder = ENTRIES[0].fetch()
    with _importable(folder):
        made, settings = _generator(folder, task)
        entry = {**problem, "metadata": json.loads(problem["metadata"])}
        return float(made(settings(size=1, seed=0)).score_answer(answer, entry))


def _problems(generator: tuple[Any, Any], n: int, seed: int) -> list[dict[str, Any]]:
    """`n` problems with different questions."""
    made, settings = generator
    found: dict[str, dict[str, Any]] = {}
    for round_ in range(20):
        for problem in made(settings(size=n, seed=seed + 100_003 * round_)):
            found.setdefault(problem["question"], problem)
            if len(found) == n:
                return list(found.values())
    raise DataError(f"reasoning-gym: this generator has only {len(found)} different questions, fewer than n={n}")


def _generator(folder: Path, task: str) -> tuple[Any, Any]:
    """The classes of a generator and of its settings."""
    known = _generators(folder)
    if task not in known:
        near = difflib.get_close_matches(task, known, n=3, cutoff=0.4) or sorted(known)
        raise DataError(f"reasoning-gym has no task {task!r} here: did you mean {', '.join(near)}?")
    return known[task]


@cache
def _generators(folder: Path) -> dict[str, tuple[Any, Any]]:
    """All generators that can be imported, by name; to be called inside `_importable`."""
    families = sorted(path.parent.name for path in (folder / NAME).glob("*/__init__.py"))
    for family in families:
        with suppress(ImportError):  # of a library that only some generators need
            importlib.import_module(f"{NAME}.{family}")
    found = dict(importlib.import_module(f"{NAME}.factory").DATASETS)
    check(min(len(found), GENERATORS), GENERATORS, "generators of reasoning-gym")
    return found


_modules: dict[str, types.ModuleType] = {}


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The package importable inside the block: the installed one, else the folder's modules without its `__init__`."""
    if NAME in sys.modules or importlib.util.find_spec(NAME) is not None:
        yield
        return
    if not _modules:
        package = types.ModuleType(NAME)
        package.__path__ = [str(folder / NAME)]
        _modules[NAME] = package
    sys.modules.update(_modules)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            _modules[name] = sys.modules.pop(name)


ENTRIES = [
    Source(
        name="reasoning-gym",
        kind="question-answer",
        title="generated problems of arithmetic, algebra, logic and games (67 generators)",
        licence="Apache-2.0",
        package=Package(
            "pypi",
            "reasoning-gym",
            "0.1.25",
            sha256="7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435",
            size=6_985_897,
            members=("reasoning_gym/*", "*LICENSE*"),
        ),
        read=read,
    )
]
