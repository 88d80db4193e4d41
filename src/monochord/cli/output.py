"""What the commands share: examples in their help, tables, JSON, lists of numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def table(headings: list[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for i, heading in enumerate(headings):
        made.add_column(heading, overflow="fold", no_wrap=i == 0)
    for row in rows:
        made.add_row(*[Text(str(cell)) for cell in row])
    show(made)


def show(renderable: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and console.width < 100:
        console.width = 100  # a file or a pipe has no width of its own
    console.print(renderable)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def size(n: int) -> str:
    from monochord.lab.columns import size

    return size(n) if n else ""


def seeds_of(text: str) -> int | list[int]:
    found = numbers(text, "seeds") or []
    if any(number != int(number) or number < 0 for number in found):
        raise ValueError(f"--seeds {text}: a count such as 3 or a list such as 101,102,103")
    return int(found[0]) if "," not in text else [int(number) for number in found]


def numbers(text: str | None, name: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--{name} {text}: numbers separated by commas") from None
