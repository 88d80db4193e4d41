"""Methods by name: what there is, and how `"lora(rank=4) | prompt(length=8)"` becomes a tuner.

A method is a public class with a fitting base in one file of a family package, named after its file
(`last_layer.py` is `last-layer`), or after its class when a file has several. Other packages add
theirs by the entry-point group `monochord.methods`. Files are read, not imported, so listing names
loads no torch; a method is imported when it is built.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monochord.core.specs import MethodError, parse, parse_call, problems, split

__all__ = ["Method", "MethodError", "build", "catalog", "describe", "find", "methods", "parse_call", "split"]

GROUP = "monochord.methods"
ALIASES = {"adapter": "bottleneck-adapter", "prompt": "prompt-tokens"}  # short names stay as the repertoire grows
FAMILIES = {"adapt": ("monochord.adapt", "Tuner")}  # family: package, base class of its methods


@dataclass(frozen=True)
class Method:
    """A method that can be built by name; nothing is imported until `load`."""

    name: str  # "last-layer"
    family: str  # "adapt", or the distribution it comes from
    target: str  # "monochord.adapt.last_layer:LastLayer"
    summary: str = ""  # first sentence of its file
    paper: str = ""  # 'Title, date' where the file names one

    @property
    def full_name(self) -> str:
        return f"{self.family}.{self.name}"

    @property
    def class_name(self) -> str:
        return self.target.rpartition(":")[2]

    def load(self) -> Any:
        """Import the class behind the name."""
        module, _, attribute = self.target.partition(":")
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found


def methods(pattern: str = "*") -> list[str]:
    """Names that match a pattern such as `"*lora*"` or `"adapt.*"`, in alphabetical order."""
    return [method.name for method in catalog(pattern)]


def catalog(pattern: str = "*") -> list[Method]:
    """The methods whose short or full name matches a pattern with `*` and `?`."""
    return [m for m in _all() if fnmatchcase(m.name, pattern) or fnmatchcase(m.full_name, pattern)]


def find(name: str) -> Method:
    """The method with this name, full name, class name, or the only one with this word in its name.

    Raises `MethodError` with the nearest name.
    """
    wanted = name.strip().lower().replace("_", "-")
    wanted = ALIASES.get(wanted, wanted)
    for method in _all():
        if wanted in (method.name, method.full_name):
            return method
    for method in _all():
        if wanted in (method.class_name.lower(), _kebab(method.class_name)):
            return method
    of_word = [method for method in _all() if wanted in method.name.split("-")]
    if len(of_word) == 1:
        return of_word[0]
    names = [method.name for method in of_word] or methods()
    near = get_close_matches(wanted, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(names) or 'none installed'}"
    raise MethodError(f"unknown method {name.strip()!r}: {hint}")


def build(spec: Any) -> Any:
    """A tuner from `"lora"`, `"lora(rank=4, sites='blocks.0.**')"` or several joined by `|`.

    Arguments are keywords with literal values; nothing is evaluated. A tuner is returned as it is.
    Raises `MethodError` that names everything wrong with an argument list.
    """
    if not isinstance(spec, str):
        if isinstance(spec, type) or not callable(getattr(spec, "plan", None)):
            kind = f"the class {spec.__name__}" if isinstance(spec, type) else f"{type(spec).__name__} {spec!r}"
            raise MethodError(f"a method is a name such as 'lora(rank=4)' or a tuner object, got {kind}")
        return spec
    built: Any = None
    for part in split(spec, "|"):
        name, arguments = parse(part)
        method = find(name)
        tuner_type = method.load()
        if wrong := list(problems(tuner_type, arguments)):
            raise MethodError(f"{method.name}: {'; '.join(wrong)}")
        tuner = tuner_type(**{key: ast.literal_eval(node) for key, node in arguments})
        built = tuner if built is None else built | tuner
    return built


def describe(tuner: Any) -> str:
    """The shortest spec of a tuner: its name and the arguments that are not at their defaults."""
    kind = type(tuner)
    if parts := getattr(tuner, "tuners", None):  # several, composed
        return " | ".join(map(describe, parts))
    known = {method.target: method.name for method in _all()}
    name = known.get(f"{kind.__module__}:{kind.__qualname__}", _kebab(kind.__qualname__))
    if not is_dataclass(tuner):
        return name
    changed = [
        f"{field.name}={getattr(tuner, field.name)!r}"
        for field in fields(tuner)
        if field.init and field.repr and getattr(tuner, field.name) != _default(field)
    ]
    return f"{name}({', '.join(changed)})" if changed else name


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


@lru_cache(maxsize=1)
def _all() -> tuple[Method, ...]:
    found: dict[str, Method] = {}
    for family, (package, base) in FAMILIES.items():
        for method in _family(family, package, base):
            found.setdefault(method.full_name, method)
    for entry in entry_points(group=GROUP):
        family = entry.dist.name if entry.dist is not None else "other"
        found.setdefault(f"{family}.{entry.name}", Method(entry.name, family, entry.value))
    names = [method.name for method in found.values()]
    unique = (
        method if names.count(method.name) == 1 or method.family in FAMILIES else replace(method, name=method.full_name)
        for method in found.values()
    )
    return tuple(sorted(unique, key=lambda method: method.name))


def _family(family: str, package: str, base: str) -> Iterator[Method]:
    """The methods in the files of a package, read and not imported."""
    spec = find_spec(package)
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob("*.py")):
            if path.stem.startswith("_"):
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            classes = list(_public_classes(tree, base))
            for node in classes:
                alone = len(classes) == 1
                name = path.stem.replace("_", "-") if alone else _kebab(node.name)
                told = ast.get_docstring(tree if alone and ast.get_docstring(tree) else node)
                target = f"{package}.{path.stem}:{node.name}"
                yield Method(name, family, target, first_sentence(told), paper_of(told))


def _public_classes(tree: ast.Module, base: str) -> Iterable[ast.ClassDef]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            names = {ast.unparse(b).rpartition(".")[2].partition("[")[0] for b in node.bases}
            if base in names:
                yield node


def first_sentence(docstring: str | None) -> str:
    """What a file or class says of itself first."""
    paragraph = (docstring or "").strip().partition("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=\.) ", paragraph)[0]


def paper_of(docstring: str | None) -> str:
    """The first title and date in the way files give them: `"Title", March 1, 2024`."""
    match = re.search(r'"([^"]+)",\s+([A-Z][a-z]+ \d{1,2}, \d{4})', docstring or "")
    return " ".join(f"{match[1]}, {match[2]}".split()) if match else ""


def _kebab(name: str) -> str:
    """`BottleneckAdapter` as `bottleneck-adapter`, `IA3` as `ia3`, `LoRA` as `lo-ra`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).replace("_", "-").lower()
