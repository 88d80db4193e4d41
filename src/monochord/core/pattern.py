"""The grammar of site names: `PATH[:PORT][selector]...`, parsed here and nowhere else.

`PATH` is a glob over dotted names: `*` stands for one name, `**` for any number of them, a leading `*.`
for "anywhere", `{a,b}` for either and `{0..3}` for 0 to 3. A selector narrows the tensor:
`[heads=0,2:4]`, `[tokens=-1]`, `[units=0:64]`, `[role=assistant]`, `[steps=10:20]`, `[call=1]`, and on a fused
weight `[q]`.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, fields
from functools import lru_cache

PORTS = ("out", "in", "heads", "pattern", "scores", "neurons", "pre", "state", "grad")
_SLICES = ("q", "k", "v", "gate", "up")
_SHAPE = re.compile(r"(?P<path>[^:\[\]\s]+)(?::(?P<port>\w+))?(?P<selectors>(?:\[[^\[\]]*\])*)$")
_BRACE = re.compile(r"\{([^{}]*)\}")

Range = tuple[int | None, int | None, int | None]
Index = tuple[int | Range, ...]


class SiteError(ValueError):
    """A site that can't be parsed, found or used; the message names the nearest valid choice."""


@dataclass(frozen=True)
class Selector:
    """Which part of the tensor at a site is meant; None means all of it."""

    heads: Index | None = None
    tokens: Index | None = None
    units: Index | None = None
    steps: Index | None = None
    call: Index | None = None
    role: tuple[str, ...] | None = None
    rows: str | None = None

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Parse a run of bracketed selectors, such as `[heads=0,2][tokens=-1]`."""
        found: dict[str, object] = {}
        names = [f.name for f in fields(cls) if f.name != "rows"]
        for item in re.findall(r"\[([^\]]*)\]", text):
            key, equals, value = item.partition("=")
            if not equals and key in _SLICES:
                found["rows"] = key
            elif key not in names or not value:
                raise SiteError(f"selector [{item}] is unknown: use one of {', '.join(names)} as [name=values]")
            elif key in found:
                raise SiteError(f"selector {key!r} is given twice: write [{key}=1,2] for several values")
            else:
                found[key] = tuple(value.split(",")) if key == "role" else _index(key, value)
        return cls(**found)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) is not None for f in fields(self))

    def __str__(self) -> str:
        parts = []
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "rows" and value:
                parts.append(f"[{value}]")
            elif value is not None:
                parts.append(f"[{f.name}={','.join(map(_show, value))}]")
        return "".join(parts)


@dataclass(frozen=True)
class Pattern:
    """A parsed site pattern; `port` is None where the text names none."""

    path: str
    port: str | None
    selector: Selector

    @classmethod
    @lru_cache(maxsize=4096)
    def parse(cls, text: str) -> Pattern:
        """Parse `text`. Raises `SiteError` that shows the grammar."""
        match = _SHAPE.match(text)
        if match is None:
            raise SiteError(f"{text!r} is no site: write PATH[:PORT][selector], e.g. 'blocks.*.mlp:out[tokens=-1]'")
        port = match["port"]
        if port is not None and port not in PORTS:
            raise SiteError(f"{text!r} has the unknown port {port!r}: use one of {', '.join(PORTS)}")
        try:
            return cls(match["path"], port, Selector.parse(match["selectors"]))
        except SiteError as error:
            raise SiteError(f"{text!r}: {error}") from None

    def matches(self, name: str) -> bool:
        """Whether the dotted `name` matches the path."""
        return _regex(self.path).fullmatch(name) is not None

    def __str__(self) -> str:
        return self.path + (f":{self.port}" if self.port else "") + str(self.selector)


def select(index: Index, length: int) -> list[int]:
    """The positions that `index` names on an axis of `length`, in order, negative ones counted from the end."""
    chosen: list[int] = []
    for item in index:
        if isinstance(item, tuple):
            chosen.extend(range(*slice(*item).indices(length)))
        elif -length <= item < length:
            chosen.append(item % length)
        else:
            raise SiteError(f"index {item} is outside an axis of {length}: use {-length} to {length - 1}")
    return chosen


def contains(index: Index, value: int) -> bool:
    """Whether the non-negative `value` is named by `index` (for open-ended counters such as steps)."""
    for item in index:
        if isinstance(item, tuple):
            start, stop, step = item[0] or 0, item[1], item[2] or 1
            if value >= start and (stop is None or value < stop) and (value - start) % step == 0:
                return True
        elif item == value:
            return True
    return False


@lru_cache(maxsize=4096)
def _regex(path: str) -> re.Pattern[str]:
    return re.compile("|".join(_translate(p) for p in _expand(path)))


def _expand(path: str) -> list[str]:
    """Write out braces: `a.{q,v}` becomes `a.q` and `a.v`; `{0..2}` becomes 0, 1, 2."""
    pieces = _BRACE.split(path)
    if "{" in "".join(pieces[::2]) or "}" in "".join(pieces[::2]):
        raise SiteError(f"{path!r} has an open brace: write {{a,b}} without nesting")
    choices = [[piece] if i % 2 == 0 else _brace(piece) for i, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _brace(inside: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    return [str(i) for i in range(int(span[1]), int(span[2]) + 1)] if span else inside.split(",")


def _translate(path: str) -> str:
    names = path.split(".")
    anywhere = len(names) > 1 and names[0] == "*"
    if anywhere:
        names = names[1:]
    pattern = r"(?:[^.]+\.)*" if anywhere else ""
    for i, name in enumerate(names):
        last = i == len(names) - 1
        if name == "**":
            pattern += r"[^.]+(?:\.[^.]+)*" if last else r"(?:[^.]+\.)*"
        else:
            pattern += re.escape(name).replace(r"\*", "[^.]*").replace(r"\?", "[^.]") + ("" if last else r"\.")
    return f"(?:{pattern})"


def _index(key: str, text: str) -> Index:
    items: list[int | Range] = []
    for part in text.split(","):
        bounds = part.split(":")
        try:
            numbers = [int(b) if b.strip() else None for b in bounds]
        except ValueError:
            raise SiteError(f"[{key}={text}] is no index: use integers and ranges, e.g. [{key}=0,2:4,-1]") from None
        if len(numbers) == 1 and numbers[0] is not None:
            items.append(numbers[0])
        elif 2 <= len(numbers) <= 3 and numbers[2:] != [0]:
            items.append((numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else None))
        else:
            raise SiteError(f"[{key}={text}] is no index: use integers and ranges, e.g. [{key}=0,2:4,-1]")
    return tuple(items)


def _show(item: int | str | Range) -> str:
    if not isinstance(item, tuple):
        return str(item)
    start, stop, step = ("" if x is None else str(x) for x in item)
    return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
