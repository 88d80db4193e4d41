"""A paper as the terminal shows it: what it claims, what was measured, how to run it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monochord.lab.paper import ROLES
from monochord.lab.repertoire import Entry

if TYPE_CHECKING:
    from rich.console import Group

MARKS = {True: ("holds", "green"), False: ("fails", "red")}


def sheet(entry: Entry, result: dict[str, Any] | None = None) -> Group:
    """The entry with its stored result, or with the one given."""
    from rich.console import Group
    from rich.text import Text

    shown = result or entry.result
    verdict = result["verdict"] if result else entry.verdict
    parts: list[Any] = [
        Text(entry.title, style="bold"),
        Text(f"{entry.slug}   family {entry.family}   {entry.date}   {verdict}", style="dim"),
        Text(),
        Text(entry.claim),
    ]
    if shown is None:
        parts += [Text(), Text("not measured yet", style="dim")]
        return Group(*parts)
    for claim in shown["claims"]:
        word, colour = MARKS[claim["holds"]]
        parts += [Text(), Text.assemble((f"{word}  ", f"bold {colour}"), claim["text"])]
        if "error" in claim:
            parts.append(Text(f"       {claim['error']}", style="red"))
        parts += [Text(f"       {figure(look)}", style="dim") for look in claim["measured"]]
    parts += [Text(), _arms(shown)]
    for failure in shown["failures"]:
        parts.append(Text(f"failed: {failure['arm']}, seed {failure['seed']}: {failure['reason']}", style="red"))
    seeds = ", ".join(map(str, shown["seeds"]))
    parts += [Text(), Text(f"seeds {seeds}, {shown['scale']}, {shown['seconds']:.0f} s of trials", style="dim")]
    parts.append(Text(f"monochord reproduce {entry.slug}", style="dim"))
    return Group(*parts)


def figure(look: dict[str, Any]) -> str:
    """`lora, accuracy: 0.912 ± 0.004 (3 seeds)`."""
    return f"{look['arm']}, {look['metric']}: {number(look)}" + (f" ({look['n']} seeds)" if look["n"] > 1 else "")


def number(value: dict[str, Any]) -> str:
    """A mean with half its interval."""
    if value["mean"] is None:
        return "not a number"
    text = f"{value['mean']:.4g}"
    return text if value["low"] is None else f"{text} ± {(value['high'] - value['low']) / 2:.2g}"


def _arms(shown: dict[str, Any]) -> Any:
    """A line an arm with all its numbers, the method first, with chance where it is known."""
    from rich.table import Table

    arms = sorted(shown["arms"].items(), key=lambda item: ROLES.index(item[1]["role"]))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("arm", "role", "measured"):
        table.add_column(heading, overflow="fold")
    for name, arm in arms:
        table.add_row(name, arm["role"], ", ".join(f"{m} {number(v)}" for m, v in arm["metrics"].items()))
    if shown["chance"]:
        table.add_row("no skill", "chance", ", ".join(f"{m} {value:.4g}" for m, value in shown["chance"].items()))
    return table
