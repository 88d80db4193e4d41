"""Find blocks, attention, MLP, heads, experts, norms and skips in any model, by structure.

The blocks are the longest list of like-typed modules, one list per stack of an encoder-decoder, with the
stages of a hierarchical network laid end to end. What is inside a block is told in `blocks.py`.
"""

from __future__ import annotations

import re

from torch import nn

from monochord.core.blocks import Anatomy, Modules, Part, attends, describe_block, is_norm, kind
from monochord.core.pattern import SiteError

OURS = "monochord"  # attachments live in the model under this name and are no part of its anatomy


def anatomy(model: nn.Module, blocks: str | None = None) -> Anatomy:
    """Infer the anatomy of `model`; `blocks` names the list of blocks where structure can't tell it.

    Raises `SiteError` when `blocks` is no module of the model.
    """
    found = Anatomy()
    modules = own_modules(model)
    if blocks is not None and blocks not in modules:
        raise SiteError(f"blocks={blocks!r} is no module of this model: pass the dotted name of its list of blocks")
    unet = next((p for p, m in modules.items() if hasattr(m, "down_blocks") and hasattr(m, "up_blocks")), None)
    if blocks is not None:
        stacks = [_children(blocks, modules)]
    elif unet is not None:
        _unet(found, unet, modules)
        blocks_inside = [p for p, m in modules.items() if "TransformerBlock" in kind(m)]
        stacks = [sorted(blocks_inside, key=_running_order)] if blocks_inside else []
    else:
        stacks = _stacks(modules)
    for prefix, paths in zip(_prefixes(stacks), stacks, strict=True):
        for i, path in enumerate(paths):
            found.add(f"{prefix}blocks.{i}", Part.at(path))
            describe_block(found, f"{prefix}blocks.{i}", path, modules, model)
        _around(found, prefix, paths, modules)
    _ends(found, model, modules)
    return found


def own_modules(model: nn.Module) -> Modules:
    """The modules of the model itself by dotted name: without attachments and torch's parametrizations."""
    return {
        name: module for name, module in model.named_modules() if not {OURS, "parametrizations"} & set(name.split("."))
    }


def _stacks(modules: Modules) -> list[list[str]]:
    """The lists of blocks: outermost lists of like-typed modules that carry a good part of the model."""
    lists: dict[str, list[str]] = {}
    for name, module in modules.items():
        children = _children(name, modules) if isinstance(module, (nn.ModuleList, nn.Sequential)) else []
        nested = any(name.startswith(f"{outer}.") for outer in lists)
        if children and not nested and len({kind(modules[c]) for c in children}) == 1 and _size(module):
            lists[name] = _flatten(children, modules)
    if not lists:
        return [_children("", modules)] if isinstance(modules[""], nn.Sequential) else []
    size = {name: sum(_size(modules[c]) for c in paths) for name, paths in lists.items()}
    keep = [n for n, paths in lists.items() if attends(modules[paths[0]])] or list(lists)
    largest, whole = max(size[n] for n in keep), _size(modules[""])
    return [lists[n] for n in keep if size[n] == largest or (size[n] >= 0.1 * whole and len(lists[n]) > 1)]


def _flatten(paths: list[str], modules: Modules) -> list[str]:
    """Replace stages by their blocks: a stage has no attention just below and one list with most of its weights."""
    flat: list[str] = []
    for path in paths:
        for name, module in ((p.rpartition(".")[2], modules[p]) for p in _children(path, modules)):
            inner = _children(f"{path}.{name}", modules)
            held = isinstance(module, (nn.ModuleList, nn.Sequential)) and 2 * _size(module) > _size(modules[path])
            like = len({kind(modules[c]) for c in inner}) == 1
            if (
                held
                and like
                and name != "experts"
                and not _layer(modules[inner[0]])
                and not attends(modules[path], False)
            ):
                flat.extend(inner)
                break
        else:
            return paths
    return flat


def _layer(module: nn.Module) -> bool:
    """Whether this is one layer, such as Linear with its norm and activation, and too small to be a block."""
    return sum(1 for m in module.modules() if next(iter(m.parameters(recurse=False)), None) is not None) <= 2


def _prefixes(stacks: list[list[str]]) -> list[str]:
    """One prefix a stack, from the first name in which the stacks differ: `encoder.`, `text.`; none for one."""
    if len(stacks) <= 1:
        return [""] * len(stacks)
    for level in zip(*(stack[0].split(".") for stack in stacks), strict=False):
        if len(set(level)) == len(stacks):
            return [re.sub(r"_(model|tower)$", "", name) + "." for name in level]
    return [f"stack{i}." for i in range(len(stacks))]


def _around(found: Anatomy, prefix: str, paths: list[str], modules: Modules) -> None:
    """Embedding and final norm of one stack: the nearest ones outside its list of blocks, climbing to the root."""
    stack = paths[0].rpartition(".")[0]
    parent = stack
    while parent:
        parent = parent.rpartition(".")[0]
        if prefix and not parent:
            break  # the root belongs to no single stack
        siblings = [p for p in _children(parent, modules) if not f"{stack}.".startswith(f"{p}.")]
        norms = [p for p in siblings if is_norm(modules[p]) and not re.search(r"(^|\.)(pre|embed)[^.]*$", p.lower())]
        embeds = [p for p in siblings if _embeds(p, modules[p])]
        if norms:
            found.add(f"{prefix}final_norm", Part.at(norms[-1]))
        if embeds:
            found.add(f"{prefix}embed", Part.at(embeds[0]))


def _embeds(path: str, module: nn.Module) -> bool:
    if "PatchEmbed" in kind(module):
        return True
    name = path.rpartition(".")[2]
    return bool(re.match(r"(word_|patch_|token_|tok_)?(embed|wte|stem)", name)) and "position" not in name


def _ends(found: Anatomy, model: nn.Module, modules: Modules) -> None:
    """Embedding and unembedding as the model itself names them, and the head of a classifier."""
    embedded = any(n == "embed" or n.endswith(".embed") for n in found.parts)
    for method, name in (("get_input_embeddings", "embed"), ("get_output_embeddings", "unembed")):
        try:
            module = getattr(model, method)() if hasattr(model, method) else None
        except (NotImplementedError, AttributeError):
            module = None
        path = next((p for p, m in modules.items() if m is module), None) if module is not None else None
        if path and not (name == "embed" and embedded):
            found.add(name, Part.at(path))
    if not any(n == "embed" or n.endswith(".embed") for n in found.parts):
        first = next((p for p, m in modules.items() if isinstance(m, nn.Embedding)), None)
        if first:
            found.add("embed", Part.at(first))
    for path in _children("", modules):
        if path in {"classifier", "head", "score", "fc"}:
            found.add("head", Part.at(path))


def _unet(found: Anatomy, root: str, modules: Modules) -> None:
    """Down, mid and up blocks of a U-Net as diffusers builds it, and the skips that enter its concatenations."""
    at = (lambda name: f"{root}.{name}") if root else (lambda name: name)
    for native, label in (("down_blocks", "down"), ("up_blocks", "up")):
        for i, p in enumerate(_children(at(native), modules)):
            found.add(f"{label}.{i}", Part.at(p))
    for native, label in (("mid_block", "mid"), ("conv_in", "embed"), ("conv_norm_out", "final_norm")):
        if at(native) in modules:
            found.add(label, Part.at(at(native)))
    ups = _children(at("up_blocks"), modules)
    counts = [len(list(modules[p].resnets.children())) for p in ups]  # type: ignore[union-attr]
    left = sum(counts)
    for p, count in zip(ups, counts, strict=True):
        left -= count
        for j in range(count):
            found.add(f"skips.{left + j}", Part(p, p, p, None, j))


def _running_order(path: str) -> int:
    """Down, mid and up, whatever the order in which a U-Net defines them."""
    return next((i for i, name in enumerate(("down_blocks", "mid_block", "up_blocks")) if name in path), 3)


def _children(path: str, modules: Modules) -> list[str]:
    prefix = f"{path}." if path else ""
    return [prefix + name for name, _ in modules[path].named_children() if name not in (OURS, "parametrizations")]


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
