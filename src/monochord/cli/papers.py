"""`papers`, `show` and `reproduce`: the repertoire and its evidence."""

from __future__ import annotations

from typing import Annotated

import typer

from monochord.cli.app import app
from monochord.cli.output import Json, examples, print_json, seeds_of, table
from monochord.cli.output import show as print_out


@app.command(epilog=examples("monochord papers --family adapt", "monochord papers --search 'low rank convolution'"))
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
        print_json([entry.row() for entry in found])
        return
    if not found:
        raise ValueError("no paper matches: `monochord papers` lists all")
    table(["paper", "family", "verdict", "claim"], [(e.slug, e.family, e.verdict, e.claim) for e in found])


@app.command(epilog=examples("monochord show flora", "monochord show unified-peft --json"))
def show(slug: Annotated[str, typer.Argument(help="A paper's short name")], as_json: Json = False) -> None:
    """Show a paper: its claims with the measured figures, and how to run it again."""
    from monochord.lab import repertoire

    entry = repertoire.entry(slug)
    if as_json:
        print_json({**entry.row(), "abstract": entry.abstract, "result": entry.result})
        return
    from monochord.lab.sheet import sheet

    print_out(sheet(entry))


@app.command(
    epilog=examples(
        "monochord reproduce tuco",
        "monochord reproduce flora mezo --seeds 101,102,103",
        "monochord reproduce tuco --scale smoke",
        "monochord reproduce tuco --redraw",
    )
)
def reproduce(
    slugs: Annotated[list[str], typer.Argument(help="Papers' short names")],
    seeds: Annotated[str | None, typer.Option(help="How many, or which [default: the paper's own]")] = None,
    scale: Annotated[str, typer.Option(help="full, or smoke for a run of seconds")] = "full",
    engine: Annotated[str, typer.Option(help="local (a process a trial) or inline")] = "local",
    workers: Annotated[int | None, typer.Option(help="Trials at a time [default: all cores]", min=1)] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the results [default: the package's; runs/papers]")] = None,
    redraw: Annotated[bool, typer.Option("--redraw", help="Only draw the figures again, from what is there.")] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run papers' experiments again and decide their claims; stopped, it goes on where it was."""
    from monochord.lab import repertoire
    from monochord.lab.reproduce import redraw as draw
    from monochord.lab.reproduce import reproduce as run
    from monochord.lab.sheet import sheet

    for slug in slugs:
        repertoire.module_of(slug)  # all names are good before the first starts
    chosen = seeds_of(seeds) if seeds else None
    results = [
        draw(slug, out=out)
        if redraw
        else run(
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
        print_json(results)
        return
    for slug, result in zip(slugs, results, strict=True):
        print_out(sheet(repertoire.entry(slug), result))
