"""The grammar of `"lora(rank=4, sites='blocks.*') | prompt"`: names, literal arguments, and what joins them.

Nothing is evaluated: values are Python literals. Errors name everything wrong with an argument list at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any


class MethodError(ValueError):
    """No such method, or arguments it does not take."""


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """`"movie-reviews(source='imdb')"` as its name and literal arguments. Raises `MethodError`."""
    name, arguments = parse(text.strip())
    values = {}
    for key, node in arguments:
        try:
            values[key] = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise MethodError(f"{name}: {_not_literal(key, node)}") from None
    return name, values


def split(text: str, separator: str) -> list[str]:
    """Cut at a one-character separator outside of brackets and quotes; each part stripped.

    Raises `MethodError` for a bracket or quote that is never closed, or an empty part.
    """
    parts, depth, quote, start, escaped = [], 0, "", 0, False
    for i, char in enumerate(text):
        if quote:
            if escaped or char == "\\":
                escaped = not escaped
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth < 0:
                raise MethodError(f"{text!r} closes a bracket at {i} that is not open")
        elif char == separator and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    if depth or quote:
        raise MethodError(f"{text!r} has an open {'quote' if quote else 'bracket'}: close it")
    parts.append(text[start:].strip())
    if not all(parts):
        raise MethodError(f"{text!r} has an empty part beside a {separator!r}")
    return parts


def parse(part: str) -> tuple[str, list[tuple[str, ast.expr]]]:
    """One name and its keyword arguments, as expressions that are not literal yet. Raises `MethodError`."""
    match = re.fullmatch(r"([A-Za-z][\w.-]*)\s*(\(.*\))?", part, re.DOTALL)
    if match is None:
        raise MethodError(f"can't read {part!r}: write a name, or name(argument=value, ...)")
    name, brackets = match.groups()
    if brackets is None:
        return name, []
    try:
        call = ast.parse(f"f{brackets}", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise MethodError(f"can't read the arguments of {part!r}: write {name}(argument=value, ...)")
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise MethodError(f"{name} takes arguments by name: write {name}(argument=value, ...)")
    return name, [(str(keyword.arg), keyword.value) for keyword in call.keywords]


def problems(tuner_type: Any, arguments: list[tuple[str, ast.expr]]) -> Iterator[str]:
    """Everything that is wrong with an argument list, one line each."""
    known = {f.name: f for f in fields(tuner_type) if f.init} if is_dataclass(tuner_type) else {}
    seen = set()
    for name, node in arguments:
        if name in seen:
            yield f"{name} is given twice"
            continue
        seen.add(name)
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known) or 'none'}"
            yield f"no argument {name}, {hint}"
            continue
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            yield _not_literal(name, node)
            continue
        kind = known[name].type
        wanted = kind.__name__ if isinstance(kind, type) else str(kind)
        if not _fits(value, wanted):
            yield f"{name} must be {wanted}, got {value!r}"
    missing = [
        f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING and f.name not in seen
    ]
    if missing:
        yield f"{', '.join(missing)} must be given"


def _not_literal(name: str, node: ast.expr) -> str:
    text = ast.unparse(node)
    return f"{name}={text} is not a literal value (text needs quotes: {name}={text!r})"


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
}


def _fits(value: Any, annotation: str) -> bool:
    """Whether a literal fits a simple annotation; anything more complicated is left to the method."""
    options = [option.strip() for option in annotation.split("|")]
    if "[" in annotation or not all(option in _KINDS for option in options):
        return True
    if isinstance(value, bool) and "bool" not in options:
        return False
    return any(isinstance(value, _KINDS[option]) for option in options)
