"""Name a tensor in any model: a site is a canonical or native name, a port and a selector.

`blocks.3.mlp:out` is what the MLP of the fourth block returns, `blocks.3.attn.q.weight` a weight,
`blocks.*.attn:heads[heads=0]` the first head of every block. The grammar is in `pattern.py`; canonical
names come from `anatomy.py`, and every native name of the model works as well.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from monochord.core.anatomy import anatomy, own_modules
from monochord.core.blocks import Anatomy, HeadShape, Part, kind, linear_like, owned, widths
from monochord.core.pattern import Pattern, Selector, SiteError

__all__ = [
    "Pattern",
    "Selector",
    "Site",
    "SiteError",
    "SiteTree",
    "as_applied",
    "base_weight",
    "get_module",
    "resolve",
    "sites",
    "width",
]

_PORT_PARTS = {"heads": ("o",), "neurons": ("down",), "pre": ("gate", "up")}

_EVERYTHING = Selector()


@dataclass(frozen=True)
class Site:
    """One resolved site.

    `name` is canonical and `path` native; `port` is "weight" for a parameter or buffer. `module` is the
    native path of the module to hook (the owner of a weight). `shape` is that of a weight as its layer
    applies it, (outputs, inputs, ...), also where the model stores it `transposed`; `rows` are the output
    rows that a slice of a fused weight or output covers. `inlet` is the module whose input is that of the site,
    where it is another one.
    """

    name: str
    path: str
    port: str
    module: str
    selector: Selector = _EVERYTHING
    shape: tuple[int, ...] | None = None
    transposed: bool = False
    rows: tuple[int, ...] | None = None
    index: int | None = None
    heads: HeadShape | None = None
    inlet: str | None = None

    @property
    def parameter(self) -> str:
        """The name of the weight within its module."""
        return self.path.rpartition(".")[2]

    @property
    def role(self) -> str:
        """The name with block numbers replaced by `*`: what siblings in other blocks share."""
        return re.sub(r"\.\d+(?=\.|$)", ".*", self.name)

    def __str__(self) -> str:
        return self.name + ("" if self.port == "weight" else f":{self.port}") + str(self.selector)


def resolve(
    model: nn.Module, pattern: str | Iterable[str], *, kind: str | None = None, blocks: str | None = None
) -> list[Site]:
    """All sites of `model` that `pattern` (one, or several) names, in model order, each once.

    A path that ends in a parameter's name gives weight sites; `kind="weight"` also turns a module's name
    into all parameters below it. Raises `SiteError` with the nearest names where a pattern matches nothing.
    """
    index = Index(model, blocks)
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    found: dict[str, Site] = {}
    for text in patterns:
        for site in index.resolve(text, kind):
            found.setdefault(str(site), site)
    return list(found.values())


def sites(model: nn.Module, blocks: str | None = None) -> SiteTree:
    """Everything there is to name in `model`, as a tree that prints itself."""
    return SiteTree(Index(model, blocks))


def get_module(model: nn.Module, path: str) -> nn.Module:
    """The module at a native path ("" is the model itself)."""
    return model.get_submodule(path)


def as_applied(tensor: Tensor, site: Site) -> Tensor:
    """A tensor of a parameter's stored shape as the layer at `site` sees it: (outputs, inputs, ...), its rows only."""
    view = tensor.t() if site.transposed else tensor
    return view if site.rows is None else view[list(site.rows)]


def base_weight(model: nn.Module, site: Site) -> Tensor:
    """The model's own weight at a site, below any tuner, as its layer sees it."""
    return as_applied(owned(model.get_submodule(site.module), site.parameter).detach(), site)


def width(model: nn.Module, site: Site) -> int:
    """The last dimension of what the module of `site` returns (or takes, at `:in`), told from its weights.

    Raises `SiteError` where they don't tell it.
    """
    module = model.get_submodule(site.module)
    if site.port in ("in", "heads", "neurons") and linear_like(module):
        return widths(module)[0]
    parts = anatomy(model).parts
    for name in (f"{site.name}.down", f"{site.name}.o"):
        if name in parts and site.port == "out":
            module = model.get_submodule(parts[name].path)
    if linear_like(module):
        return widths(module)[1]
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    inside = [m for m in module.modules() if isinstance(getattr(m, "weight", None), Tensor)]
    norms = [m for m in inside if "Norm" in kind(m)] or [m for m in inside if isinstance(m, (nn.Embedding, nn.Conv2d))]
    if norms and site.port in ("out", "in"):
        first: Tensor = norms[0].weight  # type: ignore[assignment]
        return int(first.shape[0 if first.dim() == 4 else -1])
    block = re.match(r"((?:\w+\.)?blocks\.\d+)(\.|$)", site.name)
    if block and f"{block[1]}.norm1" in parts and site.port in ("out", "in"):
        norm: Tensor = model.get_submodule(parts[f"{block[1]}.norm1"].path).weight  # type: ignore[assignment]
        return int(norm.shape[-1])
    raise SiteError(f"the width at {site} can't be told from its weights: choose a site at a dense layer")


class Index:
    """The names of one model: canonical name, native path and aliases of each module and weight."""

    def __init__(self, model: nn.Module, blocks: str | None = None) -> None:
        self.model = getattr(model, "_orig_mod", model)
        self.anatomy: Anatomy = anatomy(self.model, blocks)
        self.modules = own_modules(self.model)
        self.module_names = self._module_names()
        self.weights = self._weights()
        self._lengths = self._stack_lengths()

    def resolve(self, text: str, kind: str | None = None) -> list[Site]:
        """The sites of one pattern. Raises `SiteError` when there are none."""
        pattern = Pattern.parse(text)
        named = [n for n in self.module_names if self._matches(pattern, n, self.module_names[n].path)]
        weights = [s for s in self.weights if self._matches(pattern, s.name, s.path)]
        if pattern.selector.rows:
            weights = [self._slice(site, pattern.selector.rows) for site in weights]
        selected = replace(pattern.selector, rows=None)
        if kind == "weight":
            if not weights and named:
                below = tuple(f"{self.module_names[n].path}." if self.module_names[n].path else "" for n in named)
                weights = [s for s in self.weights if s.path.startswith(below) and s.rows is None]
            found = weights
        elif pattern.port is None and not named:
            found = [replace(s, selector=selected) for s in weights]
        else:
            found = [s for n in named if (s := self._site(n, pattern.port or "out", selected)) is not None]
        if not found:
            raise SiteError(self._nothing(text, pattern, bool(named), kind))
        return found

    def _site(self, name: str, port: str, selector: Selector) -> Site | None:
        part, heads = self.module_names[name], self.anatomy.heads.get(name)
        parts = self.anatomy.parts
        if port in ("pattern", "scores"):
            return Site(name, part.path, port, part.path, selector, heads=heads) if heads else None
        if port in _PORT_PARTS:
            inner = next((parts[f"{name}.{p}"] for p in _PORT_PARTS[port] if f"{name}.{p}" in parts), None)
            if inner is None or (port == "heads" and heads is None):
                return None
            rows = inner.rows if port == "pre" else None
            return Site(name, part.path, port, inner.path, selector, rows=rows, heads=heads)
        module = {"in": part.inlet, "state": part.path}.get(port, part.outlet)
        if kind(self.modules.get(module, self.model)) in ("ModuleList", "ModuleDict"):
            return None  # containers are never called
        if part.rows is not None and isinstance(self.modules.get(module), nn.MultiheadAttention):
            return None  # torch's own attention projects inside
        inlet = part.inlet if part.inlet != module else None
        return Site(name, part.path, port, module, selector, None, False, part.rows, part.index, heads, inlet)

    def _module_names(self) -> dict[str, Part]:
        """Parts by canonical name, then every other module by its canonical continuation."""
        names = dict(self.anatomy.parts)
        for path in self.modules:
            if path and path not in self.anatomy.natives:
                names.setdefault(self.anatomy.canonical(path), Part.at(path))
        return names

    def _weights(self) -> list[Site]:
        found: list[Site] = []
        sliced: dict[str, list[tuple[str, Part]]] = {}
        for name, part in self.anatomy.parts.items():
            if part.rows is not None:
                sliced.setdefault(part.path, []).append((name, part))
        for path, module in self.modules.items():
            for parameter, tensor in _own_tensors(module):
                native = f"{path}.{parameter}" if path else parameter
                transposed = kind(module) == "Conv1D" and parameter == "weight"
                shape = tuple(tensor.shape[::-1]) if transposed else tuple(tensor.shape)
                canonical = self.anatomy.canonical(native)
                site = Site(canonical, native, "weight", path, shape=shape, transposed=transposed)
                found.append(site)
                short = parameter.removeprefix("in_proj_")
                if short != parameter or not isinstance(module, nn.MultiheadAttention):
                    for name, part in sliced.get(path, []):
                        rows = part.rows or ()
                        found.append(replace(site, name=f"{name}.{short}", rows=rows, shape=(len(rows), *shape[1:])))
        return found

    def _slice(self, site: Site, role: str) -> Site:
        owner = site.name.rpartition(".")[0].rpartition(".")[0]
        wanted = f"{owner}.{role}.{site.parameter.removeprefix('in_proj_')}"
        part = next((s for s in self.weights if s.name == wanted and s.path == site.path), None)
        if part is None:
            raise SiteError(f"{site.name}[{role}]: this weight is not fused with a {role!r} part")
        return part

    def _matches(self, pattern: Pattern, name: str, path: str) -> bool:
        return pattern.matches(name) or pattern.matches(path) or any(map(pattern.matches, self._aliases(name)))

    def _aliases(self, name: str) -> Iterator[str]:
        """Other spellings: without the stack's prefix, and with blocks counted from the end."""
        prefix, found, rest = name.partition("blocks.")
        if found and (not prefix or prefix.endswith(".")) and prefix.count(".") <= 1:
            yield found + rest
            number, dot, tail = rest.partition(".")
            if number.isdigit() and prefix in self._lengths:
                yield f"blocks.{int(number) - self._lengths[prefix]}{dot}{tail}"
                yield f"{prefix}blocks.{int(number) - self._lengths[prefix]}{dot}{tail}"
        stack, _, rest = name.partition(".")
        if f"{stack}." in self._lengths:
            yield rest

    def _stack_lengths(self) -> dict[str, int]:
        lengths: dict[str, int] = {}
        for name in self.anatomy.parts:
            match = re.fullmatch(r"((?:\w+\.)?)blocks\.(\d+)", name)
            if match:
                lengths[match[1]] = max(lengths.get(match[1], 0), int(match[2]) + 1)
        return lengths

    def _nothing(self, text: str, pattern: Pattern, named: bool, kind: str | None) -> str:
        model = type(self.model).__name__
        if named:
            what = f"the port :{pattern.port or 'out'}" if kind != "weight" else "parameters"
            return f"{text!r} on {model}: no site there has {what}"
        names = {re.sub(r"\.\d+(?=\.|$)", ".*", n) for n in self.module_names}
        names |= {site.role for site in self.weights}
        near = difflib.get_close_matches(re.sub(r"\.-?\d+(?=\.|$)", ".*", pattern.path), sorted(names), 3, 0.3)
        return (
            f"{text!r} matches nothing in {model}: nearest are {', '.join(near) or 'none'} (mc.sites(model) lists all)"
        )


class SiteTree:
    """The sites of a model; printing it draws the tree, iterating gives (canonical, native, shape)."""

    def __init__(self, index: Index) -> None:
        self.model_name = type(index.model).__name__
        self.entries: list[tuple[str, str, tuple[int, ...] | None]] = [
            (name, part.path, None) for name, part in index.module_names.items()
        ]
        self.entries += [(site.name, site.path, site.shape) for site in index.weights]
        order = {name: i for i, (name, _, _) in enumerate(self.entries)}
        self.entries.sort(key=lambda e: (_natural(e[0]), order[e[0]]))

    def __iter__(self) -> Iterator[tuple[str, str, tuple[int, ...] | None]]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        lines = [self.model_name]
        for name, path, shape in self.entries:
            depth = name.count(".") + 1
            size = " x ".join(map(str, shape)) if shape else ""
            lines.append(
                f"{'  ' * depth}{name.rpartition('.')[2]:<{max(28 - 2 * depth, 8)}} {size:<16} {path}".rstrip()
            )
        return "\n".join(lines)

    __repr__ = __str__


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters and buffers held directly by a module, parametrized ones under their plain name."""
    yield from ((n, t) for n, t in module._parameters.items() if t is not None)
    for name, plist in getattr(module, "parametrizations", {}).items():
        yield name, plist.original
    yield from ((n, t) for n, t in module._buffers.items() if t is not None and t.dim() > 0)  # type: ignore[misc]


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    order = ("embed", "blocks", "down", "mid", "up", "skips", "final_norm", "head", "unembed")
    parts = name.split(".")
    first = order.index(parts[0]) if parts[0] in order else 1
    return ((first, 0, ""), *((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts))
