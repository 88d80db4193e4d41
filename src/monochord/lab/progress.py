"""What a person sees while trials run: a bar and what runs now, or one line a trial in a log file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from monochord.lab.records import DONE, Record


class Progress:
    """A watcher of the engine, and a context manager.

    `total` is how many trials there will be, those already stored included. `describe` turns a
    finished trial into a few words about its result.
    """

    def __init__(
        self, total: int, title: str, describe: Callable[[Record], str] | None = None, *, shown: bool = True
    ) -> None:
        self.total, self.title, self.describe, self.shown = total, title, describe, shown
        self.ran = self.resumed = self.failed = 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[now]}", table_column=None),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, now="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def running(self, labels: Sequence[str]) -> None:
        if self._bar is not None:
            self._bar.update(self._task, now=" · ".join(labels))

    def ended(self, record: Record, resumed: bool) -> None:
        self.ran += not resumed
        self.resumed += resumed
        self.failed += record.state != DONE
        if self._bar is not None:
            self._bar.advance(self._task)
        elif self.shown and not resumed:
            print(f"[{self.ran + self.resumed}/{self.total}] {self._line(record)}", file=sys.stderr, flush=True)
        if self._bar is not None and record.state != DONE:
            self._bar.console.print(f"[red]{self._line(record)}", highlight=False, markup=True)

    def _line(self, record: Record) -> str:
        if record.state != DONE:
            return f"{record.label}: failed: {last_line(record.error)}"
        words = self.describe(record) if self.describe else "done"
        return f"{record.label}: {words}"


def last_line(error: str | None) -> str:
    """The line of a traceback that says what went wrong, without the home of its class."""
    lines = [line for line in (error or "").strip().splitlines() if line.strip()]
    for line in lines:
        if line.startswith("the process ended early"):
            return line
    return re.sub(r"^[\w.]+\.(?=\w+:)", "", lines[-1]) if lines else "no reason given"
