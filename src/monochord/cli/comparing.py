"""`compare` and `methods`."""

from __future__ import annotations

from typing import Annotated

import typer

from monochord.cli.app import app
from monochord.cli.output import Json, examples, numbers, print_json, seeds_of, show, table


@app.command(
    epilog=examples(
        "monochord compare",
        "monochord compare --methods 'lora(rank=4),dora,full' --seeds 5",
        "monochord compare --model dinov2-s --match parameters",
        "monochord compare --model ./my-bert --data reviews.csv --steps 200 --out runs/mine",
    )
)
def compare(
    model: Annotated[str | None, typer.Option(help="Catalog name, Hugging Face id or folder [default: minilm]")] = None,
    data: Annotated[
        str | None, typer.Option(help="Catalog name, or a CSV, JSON or JSONL file [default: fits the model]")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="Comma-separated or repeated: lora,'dora(rank=4)'; see `monochord methods`"),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="text-, image- or audio-classification, causal-lm or denoising")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of each trial", min=1)] = None,
    budget: Annotated[float | None, typer.Option(help="Seconds of training of each trial, for steps")] = None,
    seeds: Annotated[str, typer.Option(help="How many, or which: 3 or 101,102,103")] = "3",
    match: Annotated[str, typer.Option(help="What is equal between methods: steps, parameters or time")] = "steps",
    rates: Annotated[
        str | None, typer.Option(help="Learning rates to choose from, e.g. 1e-4,1e-3 [default: 3 a method]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens a text is cut to; pixels of an image's side", min=4)
    ] = None,
    retention: Annotated[bool, typer.Option(help="Measure what is forgotten of the base's own task")] = True,
    engine: Annotated[str, typer.Option(help="local (a process a trial) or inline")] = "local",
    workers: Annotated[int | None, typer.Option(help="Trials at a time [default: all cores]", min=1)] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which a trial is stopped")] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the report and of finished trials [default: runs/MODEL-DATA]")
    ] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Compare tuning methods at equal budget.

    Without options: nine methods on MiniLM and movie reviews, in minutes.
    Writes report.html and results.json; stopped at any point, the same command goes on where it was.
    """
    from monochord.lab.compare import compare as run

    comparison = run(
        model or "minilm",
        data,
        _methods(methods),
        task=task,
        steps=steps,
        budget=budget,
        seeds=seeds_of(seeds),
        match=match,
        learning_rates=numbers(rates, "rates"),
        batch_size=batch_size,
        max_length=max_length,
        retention=retention,
        engine=engine,
        workers=workers,
        timeout=timeout,
        out=out,
        progress=not quiet,
    )
    if as_json:
        print_json(comparison.to_json())
    else:
        show(comparison.table())
        typer.echo(f"\nreport   {comparison.files['report']}\nresults  {comparison.files['results']}")
    reasons: dict[str, list[str]] = {}
    for failure in comparison.failures:
        reasons.setdefault(failure["reason"], []).append(failure["label"])
    for reason, labels in reasons.items():
        others = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        typer.echo(f"failed: {labels[0]}{others}: {reason}", err=True)
    if comparison.missing and (methods or not comparison.results["arms"]):
        raise typer.Exit(1)


@app.command(epilog=examples("monochord methods", "monochord methods '*lora*' --json"))
def methods(
    pattern: Annotated[str, typer.Argument(help="Names to list, with * and ?")] = "*", as_json: Json = False
) -> None:
    """List the methods there are."""
    from monochord.core.registry import catalog

    found = catalog(pattern)
    if as_json:
        print_json(
            [
                {"name": m.name, "family": m.family, "class": m.target, "summary": m.summary, "paper": m.paper}
                for m in found
            ]
        )
        return
    if not found:
        raise ValueError(f"no method matches {pattern!r}: `monochord methods` lists all")
    table(["method", "family", "what it does"], [(m.name, m.family, m.summary) for m in found])


def _methods(given: list[str] | None) -> list[str] | None:
    from monochord.core.registry import split

    return [name for text in given if text.strip() for name in split(text, ",")] if given is not None else None
