"""Standard layouts on disk: each module here reads one, and says whether a path looks like it.

A module has `recognises(path)`, true for paths of its layout only, and `load(path, **options)`, which gives a
`Dataset`. A further layout is one more module.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from monochord.data.dataset import DataError, Dataset


def find(path: str | Path) -> str | None:
    """The layout of a file or folder, None where no module recognises it."""
    path = Path(path)
    return next((name for name, module in modules().items() if module.recognises(path)), None)


def load(path: str | Path, **options: Any) -> Dataset:
    """A `Dataset` of a file or folder in one of the known layouts.

    Raises `DataError` where the path is missing, no layout is recognised, or an option is unknown.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    name = find(path)
    if name is None:
        raise DataError(f"{path}: none of the known layouts ({', '.join(modules())})")
    reader = modules()[name].load
    known = list(inspect.signature(reader).parameters)[1:]
    for option in options:
        if option not in known:
            raise DataError(f"{path} ({name}) has no option {option!r}: there are {', '.join(known) or 'none'}")
    return reader(path, **options)


@cache
def modules() -> dict[str, ModuleType]:
    """The modules of this package that read a layout, by name."""
    found = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in found}
