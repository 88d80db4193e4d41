"""The trials of one comparison, stage after stage: the base, sizes and times to match, rates, seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monochord.lab import plan
from monochord.lab.engine import Trial, run
from monochord.lab.plan import Entrant, Problem
from monochord.lab.progress import Progress, last_line
from monochord.lab.records import DONE, Record, content_key
from monochord.lab.report import versions
from monochord.lab.results import FORMAT, Failure, Results, add_differences, summarise_arm
from monochord.lab.store import Store
from monochord.lab.task import Task
from monochord.lab.tasks import TASKS
from monochord.lab.trial import state_path

_TRIALS = "monochord.lab.trial"


class Runner:
    """Runs what the store lacks; `field` is the methods, resized when they are matched."""

    def __init__(
        self,
        problem: Problem,
        field: list[Entrant],
        seeds: list[int],
        store: Store,
        retention: bool,
        engine: str,
        workers: int | None,
        timeout: float | None,
        states: Path,
    ) -> None:
        self.problem, self.field, self.seeds, self.store, self.retention = problem, field, seeds, store, retention
        self.options: dict[str, Any] = {"engine": engine, "workers": workers, "timeout": timeout}
        self.task = problem.settings.to_json()
        code = content_key([entrant.code for entrant in field])[:16]
        self.objects: dict[str, Any] = {"states": str(states.absolute() / code)}
        self.watcher: Progress | None = None
        self.seconds = 0.0

    def total(self, match: str, budget: float | None) -> int:
        """How many trials there will be."""
        trials = 1 + sum(len(entrant.rates) + len(self.seeds) for entrant in self.field)
        return trials + (match == "parameters") + (len(self.field) if match == "time" or budget is not None else 0)

    def base(self) -> dict[str, Any]:
        """What the untouched base does."""
        arguments = {"task": self.task, "retention": self.retention}
        (record,) = self._run([self._trial("base", arguments, "the untouched base", plan.code_hash(None))])
        if record.state != DONE or record.result is None:
            raise ValueError(f"the base can't be measured: {last_line(record.error)}")
        return record.result

    def match(self, match: str, budget: float | None, reference: str | None) -> dict[str, int]:
        """Steps of each method; with "parameters" the methods get new sizes first."""
        if match == "parameters":
            self._resize(reference)
        if match != "time" and budget is None:
            return {entrant.name: self.problem.steps for entrant in self.field}
        trials = [
            self._trial("step_time", {"task": self.task, "method": e.spec}, f"{e.name}, timing", e.code, e)
            for e in self.field
        ]
        records = self._run(trials)
        seconds = {e.name: (r.result or {}).get("step_seconds") for e, r in zip(self.field, records, strict=True)}
        slowest = max((s for s in seconds.values() if s), default=1.0)
        wall = budget if budget is not None else self.problem.steps * slowest
        if match == "time":
            return {name: max(round(wall / (own or slowest)), 1) for name, own in seconds.items()}
        return {name: max(int(wall / slowest), 1) for name in seconds}

    def search(self, steps: dict[str, int]) -> dict[str, dict[float, Record]]:
        """Every learning rate of every method with the first seed."""
        pairs = [(entrant, rate) for entrant in self.field for rate in entrant.rates]
        records = self._run([self._training("search", e, rate, self.seeds[0], steps[e.name]) for e, rate in pairs])
        found: dict[str, dict[float, Record]] = {entrant.name: {} for entrant in self.field}
        for (entrant, rate), record in zip(pairs, records, strict=True):
            found[entrant.name][rate] = record
        return found

    def repeat(self, search: dict[str, dict[float, Record]], steps: dict[str, int]) -> dict[str, dict[int, Record]]:
        """Every seed of every method at its best rate, the first as the search trained it; records by seed."""
        todo: list[tuple[str, int, Trial]] = []
        for entrant in self.field:
            rate = self.best(search[entrant.name])
            self._forget(entrant, [r for r in entrant.rates if r != rate], steps[entrant.name])
            if rate is not None:
                count = steps[entrant.name]
                todo += [(entrant.name, s, self._training("train", entrant, rate, s, count)) for s in self.seeds]
        found: dict[str, dict[int, Record]] = {entrant.name: {} for entrant in self.field}
        for (name, seed, _), record in zip(todo, self._run([trial for *_, trial in todo]), strict=True):
            found[name][seed] = record
        return found

    def best(self, tried: dict[float, Record]) -> float | None:
        """The learning rate with the best validation score; the smaller of equals."""
        sign = 1 if self._task_class.metric["higher_is_better"] else -1
        scores = {rate: r.result["validation"] for rate, r in tried.items() if r.state == DONE and r.result}
        known = {rate: sign * score for rate, score in scores.items() if score is not None}
        return max(sorted(known), key=lambda rate: known[rate]) if known else None

    def results(
        self,
        base: dict[str, Any],
        search: dict[str, dict[float, Record]],
        trials: dict[str, dict[int, Record]],
        settings: dict[str, Any],
        reference: str | None,
    ) -> Results:
        """Everything in the form of `results.json`."""
        from monochord.lab.retention import METRICS

        words, kept = METRICS[self.problem.settings.kind]
        measured = base["retention"] is not None
        arms = []
        for entrant in self.field:
            rate = self.best(search[entrant.name])
            if rate is not None:
                arm = summarise_arm(
                    entrant.name,
                    entrant.spec.partition("#")[0],
                    rate,
                    search[entrant.name],
                    trials[entrant.name],
                    base["retention"],
                    kept["higher_is_better"],
                )
                arms += [arm] if arm is not None else []
        names = [arm["name"] for arm in arms]
        reference = reference or next((name for name in ("full", "full-tuning") if name in names), None)
        add_differences(arms, reference if reference in names else None)
        records = [r for tried in search.values() for r in tried.values()]
        records += [r for by_seed in trials.values() for r in by_seed.values()]
        return Results(
            format=FORMAT,
            title=self.problem.title,
            metric=self._task_class.metric,
            retention_metric=kept if measured else None,
            retention_task=words if measured else None,
            chance=base["chance"],
            base_score=base["score"],
            retention_base=base["retention"],
            reference=reference if reference in names else None,
            arms=arms,
            failures=[Failure(label=r.label, reason=last_line(r.error)) for r in records if r.state != DONE],
            settings=settings,
            versions=versions(),
            seconds=sum((r.result or {}).get("seconds") or 0.0 for r in records),
            cpu_seconds=sum((r.result or {}).get("cpu_seconds") or 0.0 for r in records),
        )

    def describe(self, record: Record) -> str:
        """A finished trial in a few words."""
        result = record.result or {}
        split = "score" if "score" in result else "validation"
        if result.get(split) is None:
            return "done"
        metric = self._task_class.metric
        score = f"{100 * result[split]:.1f} %" if metric["percent"] else f"{result[split]:.3g}"
        return f"{metric['name']} {score}{' (validation)' if split == 'validation' else ''}, {result['seconds']:.0f} s"

    @property
    def _task_class(self) -> type[Task]:
        return TASKS[self.problem.settings.kind]

    def _resize(self, reference: str | None) -> None:
        """Choose ranks and widths so that all train about as many parameters."""
        specs = {entrant.spec: entrant for entrant in self.field}
        named = next((e.spec for e in self.field if e.name == reference), None)
        arguments = {"task": self.task, "methods": list(specs), "reference": named}
        code = content_key([entrant.code for entrant in self.field])[:16]
        self.objects.setdefault("tuners", {}).update({e.spec: e.tuner for e in self.field if e.given})
        (record,) = self._run([self._trial("sizes", arguments, "matching parameters", code)])
        if record.state != DONE or record.result is None:
            raise ValueError(f"parameters can't be matched: {last_line(record.error)}")
        found = record.result["sizes"]
        self.field = [
            plan.resized(e, found[e.spec]["name"], found[e.spec]["value"]) if e.spec in found else e for e in self.field
        ]

    def _forget(self, entrant: Entrant, rates: list[float], steps: int) -> None:
        """Delete what was trained at rates that were not chosen."""
        for rate in rates:
            path = state_path(self.objects, self.task, entrant.spec, rate, self.seeds[0], steps)
            if path is not None:
                path.unlink(missing_ok=True)

    def _training(self, name: str, entrant: Entrant, rate: float, seed: int, steps: int) -> Trial:
        arguments = {"task": self.task, "method": entrant.spec, "rate": rate, "seed": seed, "steps": steps}
        if name == "train":
            arguments["retention"] = self.retention
        label = f"{entrant.name}, rate {rate:.2g}" if name == "search" else f"{entrant.name}, seed {seed}"
        return self._trial(name, arguments, label, entrant.code, entrant)

    def _trial(
        self, name: str, arguments: dict[str, Any], label: str, code: str, entrant: Entrant | None = None
    ) -> Trial:
        if entrant is not None and entrant.given:
            self.objects.setdefault("tuners", {})[entrant.spec] = entrant.tuner
        return Trial(f"{_TRIALS}:{name}", arguments, label, code, self.objects)

    def _run(self, trials: list[Trial]) -> list[Record]:
        known = {record.key for record in self.store.trials([t.key for t in trials], state=DONE)}
        if any(trial.key not in known for trial in trials):
            self.problem.fill(self.objects, self.retention)
        return run(trials, self.store, watcher=self.watcher, **self.options)
