"""The main job: several methods on one model and one data set at equal budget, in one table and one report.

Every method sees the same data in the same order with the same number of steps and the same number of
learning rates to choose from: with the first seed each rate is tried and the validation score chooses;
the other seeds train at the chosen rate; scores are from test data that chose nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.lab import plan
from monochord.lab.again import again
from monochord.lab.progress import Progress
from monochord.lab.records import content_key
from monochord.lab.report import table, write_html, write_json
from monochord.lab.results import Failure, Results
from monochord.lab.runner import Runner
from monochord.lab.store import Store

if TYPE_CHECKING:
    from rich.table import Table

MATCHES = ("steps", "parameters", "time")


@dataclass
class Comparison:
    """A finished comparison: `results` as in `results.py`, and the files that were written."""

    results: Results
    files: dict[str, Path]
    missing: list[str]  # methods of which no trial finished

    @property
    def failures(self) -> list[Failure]:
        return self.results["failures"]

    def table(self) -> Table:
        """The comparison as a rich table."""
        return table(self.results)

    def to_json(self) -> Results:
        """The comparison as plain JSON."""
        return self.results

    def report(self, path: str | Path) -> Path:
        """Write the HTML report to another place."""
        return write_html(self.results, path)

    def __rich__(self) -> Table:
        return self.table()


def compare(
    model: Any = "minilm",
    data: Any = None,
    methods: Any = None,
    *,
    task: str | None = None,
    steps: int | None = None,
    budget: float | None = None,
    seeds: int | Sequence[int] = 3,
    match: str | None = None,
    reference: str | None = None,
    learning_rates: Any = None,
    batch_size: int | None = None,
    max_length: int | None = None,
    n_test: int | None = None,
    n_validation: int | None = None,
    retention: bool = True,
    processor: Any = None,
    engine: str = "local",
    workers: int | None = None,
    timeout: float | None = None,
    out: str | Path | None = None,
    store: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare tuning methods on one model and one data set.

    - `model`: a catalog name, Hugging Face id, folder or module; `processor` is its tokenizer or image
      processor where its name doesn't tell
    - `data`: what `mc.data` takes; None is a set that fits the model
    - `methods`: names, specs such as "lora(rank=4)", tuners, or a mapping of labels to these
    - `steps` of training, or `budget` in seconds of training: as many steps as the slowest method does in it
    - `seeds`: a count or the seeds themselves
    - `match`: what is equal beside the data. "steps" (the default); "parameters": ranks and widths are
      chosen to train about as many as `reference`, by default the first method that has one; "time": all
      train as long as the slowest needs for `steps`, or `budget` seconds
    - `learning_rates`: the rates to choose from for every method, or a mapping of names to such
    - `reference`: also what differences are taken to, by default "full"
    - `retention`: measure what is forgotten of the base's own task
    - `engine`, `workers`, `timeout`: see `engine.run`
    - `out`: where report.html, results.json and the store of trials go; `store` is another path or URL

    Interrupted or repeated, finished trials are not run again. Raises `ValueError` (or one of its kinds)
    for anything that can't be compared, before a trial is run.
    """
    match = match or "steps"
    if match not in MATCHES:
        raise ValueError(f"unknown match {match!r}: choose {', '.join(MATCHES)}")
    if budget is not None and (budget <= 0 or steps is not None):
        raise ValueError("budget is a positive number of seconds, in place of steps")
    chosen_seeds = plan.seeds_of(seeds)
    field = plan.entrants(methods, learning_rates)
    options = {
        "task": task,
        "steps": steps,
        "budget": budget,
        "match": match,
        "batch_size": batch_size,
        "max_length": max_length,
        "seeds": seeds,
        "learning_rates": learning_rates,
        "reference": reference,
        "retention": retention,
    }
    sizes = {"batch_size": batch_size, "max_length": max_length, "n_test": n_test, "n_validation": n_validation}
    problem = plan.problem(model, data, task, steps, processor, sizes)
    names = [entrant.name for entrant in field]
    if reference is not None and reference not in names:
        raise ValueError(f"the reference {reference!r} is none of the methods {', '.join(names)}")
    folder = Path(out) if out is not None else Path("runs") / _slug(problem.title)
    opened = Store(store or folder / "trials.sqlite")
    runner = Runner(problem, field, chosen_seeds, opened, retention, engine, workers, timeout, folder / "states")
    with Progress(runner.total(match, budget), "comparing", runner.describe, shown=progress) as watcher:
        runner.watcher = watcher
        base = runner.base()
        step_counts = runner.match(match, budget, reference)
        search = runner.search(step_counts)
        trials = runner.repeat(search, step_counts)
    settings = {
        "model": problem.title.partition(" on ")[0],
        "data": problem.title.partition(" on ")[2],
        **{key: value for key, value in problem.settings.to_json().items() if key not in ("model", "data")},
        "steps": problem.steps if budget is None else f"as many as fit in {budget:g} s",
        "match": match,
        "seeds": chosen_seeds,
        "first_seed_chooses": "learning rate",
        "methods": {entrant.name: entrant.spec.partition("#")[0] for entrant in runner.field},
        **again(model, data, methods, options),
    }
    shutil.rmtree(folder / "states", ignore_errors=True)
    results = runner.results(base, search, trials, settings, reference)
    opened.save_run(content_key(settings), "compare", settings, results)
    opened.close()
    files = {
        "results": write_json(results, folder / "results.json"),
        "report": write_html(results, folder / "report.html"),
    }
    done = {arm["name"] for arm in results["arms"]}
    return Comparison(results, files, [entrant.name for entrant in runner.field if entrant.name not in done])


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]
