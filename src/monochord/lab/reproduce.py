"""Run a paper's experiment and write down what came out: `results/<slug>.json` and its figures.

Finished trials stay in the store, so a second call measures only what is missing. A result says with which seeds,
versions and sources it was made; the verdict is read from it, never typed.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from monochord.lab.engine import Trial as EngineTrial
from monochord.lab.engine import run
from monochord.lab.evidence import Evidence, Looked
from monochord.lab.paper import SCALES, Paper, PaperError
from monochord.lab.progress import Progress, last_line
from monochord.lab.records import DONE, Record
from monochord.lab.repertoire import file_hashes, module_of, results_folder, source_hash
from monochord.lab.report import versions
from monochord.lab.statistics import Interval
from monochord.lab.store import Store

FORMAT = "monochord-result/1"
Result = dict[str, Any]


def load(slug: str) -> Paper:
    """The experiment of a paper. Raises `PaperError` for one that has none yet."""
    paper: Paper = importlib.import_module(module_of(slug)).paper
    if paper.slug != slug:
        raise PaperError(f"{module_of(slug)} declares {paper.slug!r}, not {slug!r}")
    paper.check()
    return paper


def reproduce(
    slug: str,
    *,
    seeds: Sequence[int] | None = None,
    scale: str = "full",
    engine: str = "local",
    workers: int | None = None,
    store: Store | str | Path | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Measure every arm with every seed, decide every claim, write the result and return it.

    `seeds` are the paper's own if not given; `scale` is "full" or "smoke"; `out` is the folder of the result
    (the package's for a full run, else `runs/papers`). Raises `PaperError` for what can't be run.
    """
    if scale not in SCALES:
        raise PaperError(f"unknown scale {scale!r}: use {' or '.join(SCALES)}")
    paper, module = load(slug), module_of(slug)
    chosen = tuple(seeds) if seeds else paper.seeds if scale == "full" else paper.seeds[:1]
    code = source_hash(module, paper.uses)
    trials = [
        (arm.name, seed, EngineTrial("monochord.lab.paper:measure_arm", _arguments(module, arm.name, seed, scale),
                                     f"{slug}: {arm.name}, seed {seed}", code))
        for arm in paper.arms.values()
        for seed in (chosen if arm.seeded else chosen[:1])
    ]  # fmt: skip
    if not isinstance(store, Store):
        store = Store(store or Path("runs/papers/trials.sqlite"))
    with Progress(len(trials), slug, _words, shown=progress) as watcher:
        todo = [trial for *_, trial in trials]
        records = run(todo, store, engine=engine, workers=workers, timeout=paper.timeout, watcher=watcher)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in paper.arms}
    failures = []
    for (arm, seed, _), record in zip(trials, records, strict=True):
        if record.state == DONE and record.result is not None:
            found[arm].append({"seed": seed, **record.result})
        else:
            failures.append({"arm": arm, "seed": seed, "reason": last_line(record.error)})
    result = _summary(paper, found, failures) | {"scale": scale, "seeds": list(chosen), "source": code}
    result["files"] = file_hashes(module, paper.uses)
    folder = Path(out) if out is not None else results_folder() if scale == "full" else Path("runs/papers")
    evidence = Evidence({name: values for name, values in found.items() if values}, paper.chance)
    result["figures"] = _draw(paper, evidence, folder)
    _save(result, folder / f"{slug}.json")
    return result


def redraw(slug: str, *, out: str | Path | None = None) -> Result:
    """Draw a paper's figures again from its result; nothing is measured. Returns the result.

    `out` is the folder of the result (the package's). Raises `PaperError` where there is none, or a stale one.
    """
    paper = load(slug)
    folder = results_folder() if out is None else Path(out)
    file = folder / f"{slug}.json"
    if not file.exists():
        raise PaperError(f"{slug} has no result in {folder} to draw: `monochord reproduce {slug}` makes one")
    result: Result = json.loads(file.read_text(encoding="utf8"))
    if result["source"] != source_hash(module_of(slug), paper.uses):
        raise PaperError(f"{slug} was measured with other code: `monochord reproduce {slug}` measures it again")
    trials = {name: arm["trials"] for name, arm in result["arms"].items() if arm["trials"]}
    result["figures"] = _draw(paper, Evidence(trials, paper.chance), folder)
    result["files"] = file_hashes(module_of(slug), paper.uses)
    _save(result, file)
    return result


def verdict_of(claims: Iterable[dict[str, Any]]) -> str:
    """ "works" when all claims hold, "fails" when none does, else "partly"."""
    held = [claim["holds"] for claim in claims]
    return "works" if all(held) else "partly" if any(held) else "fails"


def _arguments(module: str, arm: str, seed: int, scale: str) -> dict[str, Any]:
    return {"module": module, "arm": arm, "seed": seed, "scale": scale}


def _summary(paper: Paper, found: dict[str, list[dict[str, Any]]], failures: list[dict[str, Any]]) -> Result:
    arms = {}
    for name, trials in found.items():
        metrics = {}
        if trials:
            evidence = Evidence({name: trials}, {})[name]
            metrics = {metric: _interval(evidence[metric].interval) for metric in evidence}
        arms[name] = {"role": paper.arms[name].role, "metrics": metrics, "trials": trials}
    claims = [_decide(paper, claim, found) for claim in paper.claims]
    return {
        "format": FORMAT,
        "slug": paper.slug,
        "summary": paper.summary,
        "verdict": verdict_of(claims),
        "claims": claims,
        "chance": dict(paper.chance),
        "arms": arms,
        "failures": failures,
        "seconds": round(sum(trial["seconds"] for trials in found.values() for trial in trials), 1),
        "versions": versions(),
    }


def _decide(paper: Paper, claim: Any, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The claim with what it looked at; one that can't be decided does not hold and says why."""
    evidence = Evidence({name: trials for name, trials in found.items() if trials}, paper.chance)
    row: dict[str, Any] = {"text": claim.text, "exact": claim.exact, "holds": False}
    try:
        row["holds"] = bool(claim.holds(evidence))
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    row["measured"] = [_looked(look) for look in evidence.looked]
    return row


def _looked(look: Looked) -> dict[str, Any]:
    return {"arm": look.arm, "metric": look.metric, **_interval(look.interval)}


def _interval(interval: Interval) -> dict[str, Any]:
    numbers = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {name: value if value == value else None for name, value in numbers.items()} | {"n": interval.n}


def _draw(paper: Paper, evidence: Evidence, folder: Path) -> list[dict[str, str]]:
    """Every figure as a file beside the result; one that can't be drawn is left out with its reason."""
    from monochord.lab.figures import legend_above, single, svg_file

    made = []
    for i, (title, draw) in enumerate(paper.figures.items(), 1):
        name = f"{paper.slug}-{i}.svg"
        try:
            with single() as (figure, axes):
                draw(evidence, axes)
                legend_above(axes)
                _write(folder / "figures" / name, svg_file(figure))
        except PaperError as error:
            made.append({"title": title, "error": str(error)})
            continue
        made.append({"title": title, "file": name})
    return made


def _save(result: Result, file: Path) -> None:
    _write(file, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf8")
    partial.replace(path)


def _words(record: Record) -> str:
    metrics = (record.result or {}).get("metrics", {})
    shown = [f"{name} {value:.3g}" for name, value in metrics.items() if isinstance(value, float)]
    return ", ".join(shown[:4]) or "done"
