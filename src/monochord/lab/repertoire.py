"""The repertoire: every paper with its family, claim and verdict, read from files alone; no torch, no experiment.

`catalog.json` of the papers package says what there is; `results/<slug>.json` what was measured. A result is stale
when the sources it was measured with have changed since.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from monochord.core.catalog import unknown

PACKAGE = "monochord.papers"
VERDICTS = ("works", "partly", "fails", "stale", "never run")
COMMON = ("core", "data", "models", "lab", "papers")  # their changes don't make results stale
SHIPPED = Path(__file__).parent.parent / "models/shipped"  # but those of nets that an experiment names do
_PARSING = threading.Lock()  # Python 3.11 loses count of its recursion where two threads make trees at once


@dataclass(frozen=True)
class Entry:
    """A paper of the repertoire. `verdict` is one of `VERDICTS`; `result` is what was measured, or None."""

    slug: str
    family: str
    title: str
    date: str
    abstract: str
    claim: str
    verdict: str
    result: dict[str, Any] | None

    def row(self) -> dict[str, Any]:
        """The entry as a line of a table."""
        return {name: getattr(self, name) for name in ("slug", "family", "title", "date", "claim", "verdict")}


def repertoire(family: str | None = None, verdict: str | None = None) -> list[Entry]:
    """All papers, or those of a family or with a verdict. Raises `CatalogError` for an unknown one of these."""
    entries = [_entry(record) for record in _catalog()]
    if family is not None and family not in {entry.family for entry in entries}:
        raise unknown(family, {entry.family for entry in entries}, "family")
    if verdict is not None and verdict not in VERDICTS:
        raise unknown(verdict, VERDICTS, "verdict")
    return [e for e in entries if family in (None, e.family) and verdict in (None, e.verdict)]


def entry(slug: str) -> Entry:
    """One paper. Raises `CatalogError`, naming the nearest, when there is none."""
    records = {record["slug"]: record for record in _catalog()}
    if slug not in records:
        raise unknown(slug, records, "paper")
    return _entry(records[slug])


def search(query: str, entries: Iterable[Entry]) -> list[Entry]:
    """Papers that share words with the query or are close to it in meaning, best first.

    A rare word counts more than a common one. Meaning is told by static word vectors where they are in the cache
    (`monochord fetch wordllama`), and by the papers' own, which ship.
    """
    entries = list(entries)
    shared, near = _shared_words(query, entries), _closeness(query, entries)
    most = max(shared.values(), default=1.0)
    score = {i: shared.get(i, 0.0) / most + near.get(i, 0.0) for i in shared.keys() | near.keys()}
    return [entries[i] for i in sorted(score, key=lambda i: -score[i])]


def _shared_words(query: str, entries: list[Entry]) -> dict[int, float]:
    import math

    documents = [_tokens(f"{e.slug} {e.family} {e.title} {e.title} {e.claim} {e.abstract}") for e in entries]
    total: dict[int, float] = {}
    for word in set(_tokens(query)):
        having = [i for i, document in enumerate(documents) if word in document]
        weight = math.log(1 + len(entries) / (1 + len(having)))
        for i in having:
            total[i] = total.get(i, 0.0) + weight * (1 + math.log(documents[i].count(word)))
    return total


def _closeness(query: str, entries: list[Entry]) -> dict[int, float]:
    """Cosine of query and papers, those above what unrelated texts have; nothing without the word vectors."""
    from monochord.models.zoo import wordllama

    if not wordllama.ENTRIES[0].present:
        return {}
    import numpy as np

    with np.load(Path(__file__).parent.parent / "papers/embeddings.npz") as stored:
        place = {str(slug): i for i, slug in enumerate(stored["slugs"])}
        vectors = stored["vectors"].astype(np.float32)
    cosine = vectors @ wordllama.embed([query])[0]
    limit = float(cosine.mean() + cosine.std())
    found = {i: float(cosine[place[e.slug]]) for i, e in enumerate(entries) if e.slug in place}
    return {i: value for i, value in found.items() if value > max(limit, 0.1)}


def module_of(slug: str) -> str:
    """The module of a paper's experiment. Raises `PaperError` when it is not written yet."""
    from monochord.lab.paper import PaperError

    found = entry(slug)
    name = f"{PACKAGE}.{slug.replace('-', '_')}"
    if _path(name) is None:
        raise PaperError(f"{found.slug} has no experiment yet: `monochord papers` shows which have one")
    return name


def has_experiment(slug: str) -> bool:
    """Whether a paper's experiment is written."""
    return _path(f"{PACKAGE}.{slug.replace('-', '_')}") is not None


def results_folder() -> Path:
    """Where results are kept: in the package, and so in the repository and in the wheel."""
    return Path(__file__).parent.parent / "results"


def source_hash(module: str, uses: Iterable[str] = ()) -> str:
    """A hash of the code of a module, of what it `uses`, of the methods these import, and of our own nets they name.

    Comments, docstrings and layout don't count, nor do figures, which are drawn from what was measured.
    """
    digest = hashlib.sha256()
    reached = _reached({module, *uses})
    for name in sorted(reached):
        digest.update(f"{name}\n{_code(name)}\n".encode())
    for net in _nets(reached):
        digest.update(f"{net}\n{_bytes_hash(net)}\n".encode())
    return digest.hexdigest()[:16]


def file_hashes(module: str, uses: Iterable[str] = ()) -> dict[str, str]:
    """A hash of every module and net that `source_hash` minds: as they are, quick to compare."""
    reached = _reached({module, *uses})
    return {name: _bytes_hash(name) for name in [*sorted(reached), *_nets(reached)]}


def _entry(record: dict[str, Any]) -> Entry:
    slug = record["slug"]
    file = results_folder() / f"{slug}.json"
    result = json.loads(file.read_text(encoding="utf8")) if file.exists() else None
    verdict = "never run"
    if result is not None:
        verdict = result["verdict"] if _is_fresh(slug, result) else "stale"
    claim = (result or {}).get("summary") or record["claim"]
    fields = {name: record[name] for name in ("slug", "family", "title", "date", "abstract")}
    return Entry(**fields, claim=claim, verdict=verdict, result=result)


def _is_fresh(slug: str, result: dict[str, Any]) -> bool:
    module = f"{PACKAGE}.{slug.replace('-', '_')}"
    if _path(module) is None:
        return False
    files = result.get("files", {})
    if files and all(_bytes_hash(name) == digest for name, digest in files.items()):
        return True  # nothing was touched; otherwise the change may be one of comments alone
    return bool(source_hash(module, _declared(module)) == result["source"])


@cache
def _catalog() -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((Path(__file__).parent.parent / "papers/catalog.json").read_text("utf8"))
    return records


def _tokens(text: str) -> list[str]:
    return [re.sub(r"(?:ing|ed|es|s)$", "", word) for word in re.findall(r"[a-z0-9]{2,}", text.lower())]


# Sources


def _reached(modules: set[str]) -> set[str]:
    """The modules and all methods they import, theirs included; the common floors are left out."""
    found: set[str] = set()
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name in found or _path(name) is None:
            continue
        found.add(name)
        todo += [n for n in _imports(name) if n.split(".")[1] not in COMMON]
    return found


def _imports(module: str) -> Iterator[str]:
    """The modules that a module imports from; a name that a package passes on counts for the module it comes from."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("monochord."):
            origins = _origins(node.module)
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _path(inner) is not None else origins.get(alias.name, node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("monochord."))


def _origins(package: str) -> dict[str, str]:
    """Where the names come from that a package's `__init__` imports; empty for a plain module."""
    path = _path(package)
    if path is None or path.name != "__init__.py":
        return {}
    imports = [node for node in _tree(package).body if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


def _declared(module: str) -> list[str]:
    """The `uses=` of the module's `Paper(...)`, read without running it."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Paper":
            for keyword in node.keywords:
                if keyword.arg == "uses":
                    return list(ast.literal_eval(keyword.value))
    return []


def _nets(modules: Iterable[str]) -> list[str]:
    """The shipped nets that modules name, in order."""
    there = {path.name for path in SHIPPED.iterdir() if path.is_dir()}
    words = (node.value for name in modules for node in ast.walk(_tree(name)) if isinstance(node, ast.Constant))
    return sorted({word for word in words if isinstance(word, str) and word in there})


def _bytes_hash(name: str) -> str:
    """Of a module's file, or of all files of a shipped net; empty for what is not there."""
    path = _path(name)
    files = [path] if path is not None else sorted((SHIPPED / name).glob("*"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16] if files else ""


def _code(module: str) -> str:
    tree = _tree(module)
    tree.body = [node for node in tree.body if not _draws(node)]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.Pass()
    return ast.dump(tree)


def _draws(node: ast.stmt) -> bool:
    """Whether it is a function under `@paper.figure`."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any(isinstance(d, ast.Call) and ast.unparse(d.func) == "paper.figure" for d in decorators)


def _tree(module: str) -> ast.Module:
    path = _path(module)
    assert path is not None
    text = path.read_text(encoding="utf8")
    with _PARSING:
        return ast.parse(text)


def _path(module: str) -> Path | None:
    """The file of a module of ours, found without importing anything."""
    parts = module.split(".")
    if parts[0] != "monochord":
        return None
    base = Path(__file__).parent.parent.joinpath(*parts[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None
