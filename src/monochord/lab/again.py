"""How to ask for the same comparison again: as a command and as Python."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from monochord.core.registry import split

_FLAGS = ("task", "steps", "budget", "match", "batch_size", "max_length")


def again(model: Any, data: Any, methods: Any, options: dict[str, Any]) -> dict[str, str]:
    """The `python` call and, where names and numbers say everything, the `command`."""
    usual = {"seeds": 3, "match": "steps", "retention": True}
    rest = {name: value for name, value in options.items() if value is not None and value != usual.get(name)}
    names = [] if model == "minilm" and data is None and methods is None else [model]
    names += [data] if data is not None else []
    rest = {**({"methods": methods} if methods is not None else {}), **rest}
    call = ", ".join([*map(_shown, names), *(f"{name}={_shown(value)}" for name, value in rest.items())])
    found = {"python": f"import monochord as mc\n\nmc.compare({call})"}
    specs = split(methods, ",") if isinstance(methods, str) else methods
    texts = [model, *([data] if data is not None else []), *(specs if isinstance(specs, list | tuple) else [])]
    if all(isinstance(text, str | Path) for text in texts) and (methods is None or specs) and "reference" not in rest:
        words = ["monochord", "compare"]
        flags = {"model": model if model != "minilm" else None, "data": data}
        flags["methods"] = ",".join(map(str, specs)) if specs else None
        flags |= {name.replace("_", "-"): rest[name] for name in _FLAGS if name in rest}
        if "seeds" in rest:
            flags["seeds"] = rest["seeds"] if isinstance(rest["seeds"], int) else ",".join(map(str, rest["seeds"]))
        if isinstance(rest.get("learning_rates"), list | tuple):
            flags["rates"] = ",".join(f"{rate:g}" for rate in rest["learning_rates"])
        for name, value in flags.items():
            words += [f"--{name}", str(value)] if value is not None else []
        words += ["--no-retention"] if "retention" in rest else []
        found["command"] = shlex.join(words)
    return found


def _shown(value: Any) -> str:
    if isinstance(value, str | int | float | list | tuple | dict | Path | None):
        return repr(value)
    return getattr(value, "__name__", type(value).__name__.lower())
