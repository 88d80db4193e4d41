"""A comparison for people: a table in the terminal and one self-contained HTML file.

`python -m monochord.lab.report [FILE]` shows a sample table and writes a sample report.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from monochord.lab.columns import Column, best_arm, columns_of, controls
from monochord.lab.results import Results

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 100  # columns of a terminal


def table(results: Results) -> Table:
    """The comparison as a rich table that fits `WIDTH` columns; best score in bold."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(results["title"]), title_justify="left", title_style="bold", box=None)
    made.padding = (0, 1, 0, 0)
    columns = columns_of(results)
    for spare in ("train s", "rank", "change"):  # the page has them where names are too long for all of them here
        if _width(columns, results) > WIDTH:
            columns = [column for column in columns if column[0] != spare]
    for i, (heading, _) in enumerate(columns):
        made.add_column(heading, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0)
    best = best_arm(results)
    for arm in results["arms"]:
        cells = [Text(show(arm)) for _, show in columns]
        made.add_row(*cells, style="bold" if arm is best else "")
    notes = [f"{name}: {text}" for name, text in controls(results)]
    made.caption = Text("  ".join(notes))
    made.caption_justify = "left"
    return made


def _width(columns: list[Column], results: Results) -> int:
    return sum(1 + max(map(len, [heading, *(show(arm) for arm in results["arms"])])) for heading, show in columns)


def write_json(results: Results, path: str | Path) -> Path:
    """Write `results.json`; see `results.py` for what is in it."""
    return _write(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


def write_html(results: Results, path: str | Path) -> Path:
    """Write the report: one file, no scripts, nothing fetched, light and dark, fits a telephone."""
    from monochord.lab.page import page

    return _write(path, page(results))


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for package in ("monochord", "torch", "transformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _write(path: str | Path, text: str) -> Path:
    """Write a file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _main(arguments: Iterable[str]) -> None:
    from rich.console import Console

    from monochord.lab.sample import sample

    made = sample()
    Console().print(table(made))
    path = write_html(made, next(iter(arguments), Path(tempfile.gettempdir()) / "monochord-sample.html"))
    print(f"\n{path}")


if __name__ == "__main__":
    import sys

    _main(sys.argv[1:])
