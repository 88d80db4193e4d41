"""What is inside one block: attention, MLP, experts, norms, recurrent mixer; told by structure first.

Attention is a group of projections named query, key and value and the projection that reads their result;
the MLP is the pair of maps that leaves the model's width and comes back. What structure can't tell comes from
the handful of names that transformers, timm, diffusers and torch use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

QUERY = {"q", "q_proj", "query", "to_q", "wq", "q_lin", "query_proj"}
FUSED = {"qkv", "query_key_value", "c_attn", "qkv_proj", "Wqkv", "to_qkv", "in_proj_qkv"}
_KEY = {"k", "k_proj", "key", "to_k", "wk", "k_lin", "key_proj"}
_VALUE = {"v", "v_proj", "value", "to_v", "wv", "v_lin", "value_proj"}
_OUTPUT = {
    "o",
    "o_proj",
    "out_proj",
    "dense",
    "c_proj",
    "to_out.0",
    "proj",
    "wo",
    "out_lin",
    "output.dense",
    "out",
}
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "encoder_attention_heads")
_WIDTH = ("head_dim", "attention_head_size", "d_head", "key_value_proj_dim", "dim_head")
_GATE = re.compile(r"gate_proj$|wi_0$|w1$|gate$")

Modules = dict[str, nn.Module]


@dataclass(frozen=True)
class Part:
    """Where a canonical name lives in a model.

    `path` is the module, `inlet` the module whose input is the part's input and `outlet` the one whose
    output is the part's output (they differ from `path` where a model has no module of just that part);
    `rows` are the output rows when the part is a slice of a fused projection, `index` the position of a
    U-Net skip in the tuple that its up block receives.
    """

    path: str
    inlet: str
    outlet: str
    rows: tuple[int, ...] | None = None
    index: int | None = None

    @classmethod
    def at(cls, path: str, rows: tuple[int, ...] | None = None) -> Part:
        return cls(path, path, path, rows)


@dataclass(frozen=True)
class HeadShape:
    """Heads of one attention: query heads, key-value heads and the width of each."""

    n_heads: int
    n_kv_heads: int
    d_head: int


@dataclass
class Anatomy:
    """The parts of a model by canonical name, and the head shape of each attention."""

    parts: dict[str, Part] = field(default_factory=dict)
    heads: dict[str, HeadShape] = field(default_factory=dict)
    natives: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, part: Part) -> None:
        """Record a part; the first one of a name stays."""
        self.parts.setdefault(name, part)
        if part == Part.at(part.path):
            self.natives.setdefault(part.path, name)

    def canonical(self, path: str) -> str:
        """The canonical name of a native module or parameter path (itself where there is none)."""
        names = path.split(".")
        for end in range(len(names), 0, -1):
            prefix = self.natives.get(".".join(names[:end]))
            if prefix is not None:
                return ".".join([prefix, *names[end:]])
        return path


def describe_block(found: Anatomy, name: str, path: str, modules: Modules, model: nn.Module) -> None:
    """Record the parts of the block at `path` under the canonical `name`."""
    inside = {p: m for p, m in modules.items() if p.startswith(f"{path}.")}
    taken: set[str] = set()
    for label, group in zip(("attn", "cross", "attn3"), _attentions(inside), strict=False):
        taken |= _attention(found, f"{name}.{label}", group, inside, model)
    for p, module in inside.items():
        if hasattr(module, "A_log"):
            found.add(f"{name}.ssm", Part.at(p))
            taken |= {q for q in inside if q.startswith(f"{p}.")}
    taken |= _experts(found, name, inside)
    _mlp(found, name, path, inside, taken)
    norms = [p for p, m in inside.items() if is_norm(m) and p not in taken and not _of_heads(p)]
    for i, p in enumerate(norms, 1):
        found.add(f"{name}.norm{i}", Part.at(p))


def attends(module: nn.Module, deep: bool = True) -> bool:
    """Whether a module holds attention or a recurrent mixer; with `deep=False` only just below it."""
    return any(
        isinstance(m, nn.MultiheadAttention) or name.split(".")[-1] in QUERY | FUSED or hasattr(m, "A_log")
        for name, m in module.named_modules()
        if deep or name.count(".") <= 1
    )


def kind(module: nn.Module) -> str:
    """The class name of a module, also while its weights are parametrized."""
    return type(module).__name__.removeprefix("Parametrized")


def linear_like(module: nn.Module) -> bool:
    """Whether the module is a dense map: `nn.Linear` (quantised kinds too) or the transposed one of GPT-2."""
    return isinstance(module, nn.Linear) or kind(module) == "Conv1D"


def owned(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter (or buffer) `name` of `module` itself, below any parametrization."""
    for held in (module._parameters, module._buffers):
        if held.get(name) is not None:
            return held[name]  # type: ignore[return-value]
    return module.parametrizations[name].original  # type: ignore[index, union-attr]


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a normalisation layer itself (not one with modules of its own)."""
    return "Norm" in kind(module) and all(name == "parametrizations" for name, _ in module.named_children())


# ---------------------------------------------------------------- attention


def _attentions(inside: Modules) -> Iterator[dict[str, str]]:
    """Groups {q, k, v}, {qkv} or {mha} of projection paths, one an attention, in order."""
    groups: dict[str, dict[str, str]] = {}
    for p, module in inside.items():
        parent, _, last = p.rpartition(".")
        if isinstance(module, nn.MultiheadAttention):
            groups[p] = {"mha": p}
        elif linear_like(module):
            for role, names in (("q", QUERY), ("k", _KEY), ("v", _VALUE), ("qkv", FUSED)):
                if last in names:
                    groups.setdefault(parent, {})[role] = p
    yield from (g for g in groups.values() if "mha" in g or "qkv" in g or {"q", "k", "v"} <= set(g))


def _attention(found: Anatomy, name: str, group: dict[str, str], inside: Modules, model: nn.Module) -> set[str]:
    """Record one attention; returns the paths it takes."""
    if "mha" in group:
        return _multihead(found, name, group["mha"], inside)
    parent = next(iter(group.values())).rpartition(".")[0]
    output = _output(parent, set(group.values()), inside)
    holder = _common([*group.values(), *([output] if output else [])])
    normed = any(is_norm(m) and not _of_heads(p) for p, m in inside.items() if p.startswith(f"{holder}."))
    if holder in inside and not normed:
        found.add(name, Part.at(holder))
    else:  # no module is just the attention: its input and output are those of its projections
        found.add(name, Part(parent, group.get("qkv", parent), output or parent))
        found.natives.update({parent: name, holder: name})
    for role, p in group.items():
        found.add(f"{name}.{role}", Part.at(p))
    if output:
        found.add(f"{name}.o", Part.at(output))
    shape = _head_shape(group, output, inside.get(parent), inside, model)
    if shape:
        found.heads[name] = shape
        if "qkv" in group:
            for role, rows in _fused_rows(group["qkv"], shape).items():
                found.add(f"{name}.{role}", Part.at(group["qkv"], rows))
    return {p for p in inside if p.startswith(f"{parent}.") or p == output} | set(group.values())


def _multihead(found: Anatomy, name: str, path: str, inside: Modules) -> set[str]:
    module = inside[path]
    width, heads = int(module.embed_dim), int(module.num_heads)  # type: ignore[arg-type]
    found.add(name, Part.at(path))
    found.add(f"{name}.o", Part.at(f"{path}.out_proj"))
    found.heads[name] = HeadShape(heads, heads, width // heads)
    for i, role in enumerate("qkv"):
        found.add(f"{name}.{role}", Part.at(path, tuple(range(i * width, (i + 1) * width))))
    return {p for p in inside if p.startswith(path)}


def _output(parent: str, used: set[str], inside: Modules) -> str | None:
    for root in (parent, parent.rpartition(".")[0]):
        for p, module in inside.items():
            if p.startswith(f"{root}.") and p[len(root) + 1 :] in _OUTPUT and p not in used and linear_like(module):
                return p
    return None


def _head_shape(
    group: dict[str, str], output: str | None, owner: nn.Module | None, inside: Modules, model: nn.Module
) -> HeadShape | None:
    """Head counts from the attention module, else from a configuration; widths from the weights."""
    sources = [s for s in (owner, getattr(owner, "config", None), getattr(model, "config", None)) if s is not None]
    n_heads = next((v for s in sources for key in _HEADS if isinstance(v := getattr(s, key, None), int)), 0)
    d_head = next((v for s in sources for key in _WIDTH if isinstance(v := getattr(s, key, None), int)), 0)
    total = widths(inside[output])[0] if output else (widths(inside[group["v"]])[1] if "v" in group else 0)
    if total and d_head and total % d_head == 0 and n_heads * d_head != total:
        n_heads = total // d_head
    if not n_heads or not total or total % n_heads:
        return None
    d_head = total // n_heads
    kv = widths(inside[group["k"]])[1] if "k" in group else (widths(inside[group["qkv"]])[1] - total) // 2
    return HeadShape(n_heads, max(kv // d_head, 1), d_head)


def _fused_rows(path: str, shape: HeadShape) -> dict[str, tuple[int, ...]]:
    """The output rows of q, k and v in a fused projection: end to end, or a head at a time as in GPT-NeoX."""
    q, kv, d = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head, shape.d_head
    if path.endswith("query_key_value") and q == kv:
        return {
            role: tuple(start + i * d + j for start in range(0, 3 * q, 3 * d) for j in range(d))
            for i, role in enumerate("qkv")
        }
    return {"q": tuple(range(q)), "k": tuple(range(q, q + kv)), "v": tuple(range(q + kv, q + 2 * kv))}


# ---------------------------------------------------------------- MLP and experts


def _experts(found: Anatomy, name: str, inside: Modules) -> set[str]:
    """Experts, their router and the module that holds both, recorded as the MLP."""
    experts = next((p for p in inside if p.rpartition(".")[2] == "experts"), None)
    if experts is None:
        return set()
    holder = experts.rpartition(".")[0]
    found.add(f"{name}.mlp", Part.at(holder))
    found.add(f"{name}.experts", Part.at(experts))
    for p in inside:
        if p.startswith(f"{holder}.") and p.rpartition(".")[2] in {"gate", "router", "wg"}:
            found.add(f"{name}.router", Part.at(p))
    return {p for p in inside if p == holder or p.startswith(f"{holder}.")}


def _mlp(found: Anatomy, name: str, path: str, inside: Modules, taken: set[str]) -> None:
    """The pair that widens and comes back; where two maps widen, one is the gate."""
    dense = [p for p, m in inside.items() if p not in taken and linear_like(m)]
    for down in reversed(dense):
        inner, outer = widths(inside[down])
        ups = [p for p in dense if p != down and widths(inside[p]) in {(outer, inner), (outer, 2 * inner)}]
        if ups:
            break
    else:
        return
    up = next((p for p in reversed(ups) if not _GATE.search(p)), ups[-1])
    gate = next((p for p in ups if p != up), None) if len(ups) > 1 else None
    holder = _common([down, *ups])
    while isinstance(inside.get(holder), (nn.ModuleList, nn.Sequential)) and holder != path:
        holder = holder.rpartition(".")[0]
    below = [p for p in inside if p.startswith(f"{holder}.")]
    whole = holder in inside and not any(p in taken or is_norm(inside[p]) for p in below)
    found.add(f"{name}.mlp", Part.at(holder) if whole else Part(up, up, down))
    if gate:
        found.add(f"{name}.mlp.gate", Part.at(gate))
    if widths(inside[up])[1] == 2 * inner:
        found.add(f"{name}.mlp.gate_up", Part.at(up))
        found.add(f"{name}.mlp.gate", Part.at(up, tuple(range(inner))))
        found.add(f"{name}.mlp.up", Part.at(up, tuple(range(inner, 2 * inner))))
    found.add(f"{name}.mlp.up", Part.at(up))
    found.add(f"{name}.mlp.down", Part.at(down))
    acts = [p for p in inside if p not in taken and re.search(r"\.(\w*act|activation)(_fn)?$", p)]
    near = [p for p in acts if p.startswith(f"{_common([up, up])}.") or (whole and p.startswith(f"{holder}."))]
    if near:
        found.add(f"{name}.mlp.act", Part.at(near[0]))


# ---------------------------------------------------------------- small words


def _common(paths: Sequence[str]) -> str:
    """The path of the module that holds all `paths`."""
    shared = []
    for level in zip(*(p.split(".")[:-1] for p in paths), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def widths(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a dense map."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    rows, columns = module.weight.shape  # type: ignore[misc]
    return int(rows), int(columns)


def _of_heads(path: str) -> bool:
    return re.search(r"(^|[._])(q|k|query|key)_?(norm|layernorm|ln)$", path) is not None
