"""PEFT's LoRA folder, `adapter_config.json` and `adapter_model.safetensors`: write one, and attach one.

Low-rank changes (LoRA, DoRA) of dense layers, embeddings and plain convolutions have an equivalent there, and so have
whole modules that train in place (`modules_to_save`). What has none is refused in one line that names it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core import registry
from monochord.core.anatomy import own_modules
from monochord.core.changes import LowRank, Unfrozen
from monochord.core.layers import layer_of
from monochord.core.peft_config import Config, patterns_for, saved_modules, targets
from monochord.core.peft_layers import check_layer, factors, joined, magnitude, unknown
from monochord.core.sites import Site, SiteError, resolve
from monochord.core.storage import base_name, load_tensors, save_tensors
from monochord.core.tensorfile import StorageError, replacing
from monochord.core.tuner import Tuned, Tuner

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)")


def save_peft(tuned: Tuned, folder: str | os.PathLike[str]) -> None:
    """Write the tuner as PEFT's LoRA folder, which `peft` loads with equal outputs.

    Changes of slices of a fused weight (GPT-2's `attn.q`) become one change of the whole weight whose rank is the sum
    of theirs. Raises `ValueError` naming what PEFT has no equivalent for.
    """
    layers: dict[str, list[tuple[Site, LowRank]]] = {}
    in_place: dict[str, Unfrozen] = {}
    for site, change in tuned.placements:
        if isinstance(change, Unfrozen):
            in_place[site.path] = change
        elif type(change) is LowRank or (isinstance(change, LowRank) and hasattr(change, "magnitude")):
            check_layer(tuned.model, site, change)
            layers.setdefault(site.module, []).append((site, change))
        else:
            raise unknown(f"{type(change).__name__} at {site}", "it keeps low-rank changes and whole modules")
    if not layers:
        raise unknown("a tuner without a low-rank change", "use save(folder)")
    parts = [t for t in getattr(tuned.tuner, "tuners", (tuned.tuner,)) if hasattr(t, "stabilised")]
    stabilised = bool(parts) and all(part.stabilised for part in parts)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, changes in layers.items():
        down, up, scale = joined(tuned.model, changes)
        ranks[path], alphas[path] = len(down), _alpha(scale, len(down), stabilised)
        tensors |= {f"{_PREFIX}{path}.{name}": value for name, value in factors(tuned.model, path, down, up).items()}
        if (lengths := magnitude(tuned.model, changes)) is not None:
            tensors[f"{_PREFIX}{path}.lora_magnitude_vector"] = lengths
    every = [change for changes in layers.values() for _, change in changes]
    modules = _whole_modules(tuned.model, in_place, layers)
    for path in modules:
        below = {n: v for n, v in tuned.model.state_dict().items() if n.startswith(f"{path}.") and base_name(n)}
        tensors |= {f"{_PREFIX}{n}": in_place[n].tuned if n in in_place else v for n, v in below.items()}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": getattr(getattr(tuned.model, "config", None), "_name_or_path", None) or None,
        "task_type": None,
        "inference_mode": True,
        **patterns_for(own_modules(tuned.model), ranks, alphas, modules),
        "lora_dropout": _only({change.dropout for change in every}, "dropout"),
        "use_rslora": stabilised,
        "use_dora": _only({hasattr(change, "magnitude") for change in every}, "use of DoRA"),
        "fan_in_fan_out": any(site.transposed for changes in layers.values() for site, _ in changes),
        "bias": "none",
    }
    folder = Path(folder)
    save_tensors(folder / "adapter_model.safetensors", tensors, {"base": tuned.base})
    with replacing(folder / "adapter_config.json") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())


def load_peft(
    model: nn.Module, folder: str | os.PathLike[str], name: str | None = None, *, strict: bool = True
) -> Tuned:
    """Attach PEFT's LoRA folder to `model`, as registered tuners: it saves again in either format.

    Every tensor has to find its place, and every place that the configuration names its tensor. Raises `StorageError`
    for a damaged folder, another kind of adapter, or, where the folder tells its base and `strict`, another base.
    """
    base = getattr(model, "_orig_mod", model)
    config = Config.read(folder)
    tensors, metadata = load_tensors(Path(folder) / "adapter_model.safetensors")
    given: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, value in tensors.items():
        match = _FACTOR.fullmatch(key.removeprefix(_PREFIX).replace("magnitude_vector.weight", "magnitude_vector"))
        if match:
            given.setdefault(match[1], {})[match[2]] = value
        else:
            rest[key.removeprefix(_PREFIX)] = value
    modules = own_modules(base)
    wanted = targets(config, {p: m for p, m in modules.items() if layer_of(m, "weight") is not None})
    _same(given, wanted if wanted is not None else given.keys() & modules.keys(), folder)
    heads = saved_modules(config.modules_to_save, modules)
    rest = _without_base(rest, modules, heads, given, folder)
    tuner = _recipe(base, config, given, heads)
    tuned = tuner.attach(base, name=name)
    try:
        if strict and metadata.get("base", tuned.base) != tuned.base:
            told, found = metadata["base"][:12], tuned.base[:12]
            raise StorageError(f"{folder} was tuned from base {told}, this model is {found}: load that base")
        _fill(tuned, config, given, rest, folder)
    except BaseException:
        tuned.detach()
        raise
    return tuned


# ---------------------------------------------------------------- writing


def _alpha(scale: float, rank: int, stabilised: bool) -> float:
    """The alpha that gives this scale: the nearest round one where that gives it exactly."""
    divisor = math.sqrt(rank) if stabilised else rank
    exact = scale * divisor
    return next((a for a in (round(exact, 6), exact) if a / divisor == scale), exact)


def _whole_modules(model: nn.Module, in_place: Mapping[str, Unfrozen], layers: Iterable[str]) -> list[str]:
    """The outermost modules all of whose parameters train in place."""
    found: list[str] = []
    left = set(in_place)
    for path, module in own_modules(model).items():
        below = {f"{path}.{n}" for n, _ in module.named_parameters(remove_duplicate=False) if base_name(n)}
        free = not any(layer == path or layer.startswith(f"{path}.") for layer in layers)
        container = isinstance(module, (nn.ModuleList, nn.ModuleDict))
        if path and below and below <= left and free and not container:
            found.append(path)
            left -= below
    if left:
        raise unknown(f"{min(left)} trained in place", "it keeps whole modules")
    return found


def _only(values: set[Any], what: str) -> Any:
    if len(values) != 1:
        raise unknown(f"more than one {what} in a tuner", "save the parts one by one")
    return next(iter(values))


# ---------------------------------------------------------------- reading


def _same(found: Iterable[str], wanted: Iterable[str], folder: Any) -> None:
    """Raise `StorageError` unless the layers with factors are those that the configuration names."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise StorageError(f"{folder} lacks the tensors of {missing[0]!r} ({len(missing)} layers missing)")
    if extra:
        raise StorageError(f"{folder} has tensors of {extra[0]!r}, which this model has not as a layer it names")


def _without_base(
    rest: dict[str, Tensor], modules: Mapping[str, nn.Module], heads: list[str], layers: Iterable[str], folder: Any
) -> dict[str, Tensor]:
    """The tensors of modules kept whole; copies of the base's own, as PEFT writes for embeddings, only compared."""
    state = {f"{p}.{n}": v for p in heads for n, v in modules[p].state_dict(keep_vars=True).items() if base_name(n)}
    kept = {}
    for name, value in rest.items():
        plain = name.replace(".base_layer.", ".")
        path, _, parameter = plain.rpartition(".")
        own = state.get(name)
        if isinstance(own, nn.Parameter):
            kept[name] = value
            continue
        if own is None and plain != name and path in layers:
            own = getattr(modules[path], parameter, None)
        if own is None:
            raise StorageError(f"{folder} has the tensor {name!r}, which has no place in this model")
        if own.shape != value.shape or not torch.equal(own.detach().to(value), value):
            raise StorageError(f"{folder} has another {plain} than this model: it was tuned from another base")
    if missing := sorted(n for n, v in state.items() if isinstance(v, nn.Parameter) and n not in kept):
        raise StorageError(f"{folder} lacks {len(missing)} tensors of modules_to_save, the first is {missing[0]!r}")
    return kept


def _recipe(model: nn.Module, config: Config, layers: Iterable[str], heads: list[str]) -> Tuner:
    """The folder as registered tuners: one for each rank and alpha, and one for the modules that train in place."""
    groups: dict[tuple[int, float], list[str]] = {}
    for path in layers:
        groups.setdefault((config.rank(path), config.alpha(path)), []).append(f"{path}.weight")
    parts = []
    for (rank, alpha), paths in groups.items():
        method = registry.find("dora" if config.use_dora else "lora").load()
        parts.append(
            method(
                sites=_sites(model, paths),
                rank=rank,
                alpha=alpha,
                dropout=config.lora_dropout,
                stabilised=config.use_rslora,
            )
        )
    if heads:
        parts.append(registry.find("full-tuning").load()(sites=tuple(heads)))
    tuner: Tuner = parts[0]
    for part in parts[1:]:
        tuner = tuner | part
    return tuner


def _sites(model: nn.Module, paths: list[str]) -> tuple[str, ...]:
    """Patterns that name exactly the whole weights at these native paths: by role where that is enough."""
    whole = {s.path: s for s in resolve(model, paths) if s.rows is None}
    roles: dict[str, list[Site]] = {}
    for path in paths:
        roles.setdefault(whole[path].role, []).append(whole[path])
    found: list[str] = []
    for role, sites in roles.items():
        alike = {(s.path, s.rows) for s in resolve(model, role)} == {(s.path, None) for s in sites}
        found += [role] if alike else [s.name for s in sites]
    if {(s.path, s.rows) for s in resolve(model, found)} != {(path, None) for path in paths}:
        raise SiteError(f"{paths[0]} and its like can't be told apart from other weights by name")
    return tuple(found)


def _fill(
    tuned: Tuned, config: Config, given: dict[str, dict[str, Tensor]], rest: dict[str, Tensor], folder: Any
) -> None:
    """Copy the tensors to their places. Raises `StorageError` for one that is missing, too many or of another shape."""
    places: dict[str, Tensor] = {}
    values = dict(rest)
    for site, change in tuned.placements:
        if isinstance(change, Unfrozen):
            places[site.path] = change.parameter
            continue
        assert isinstance(change, LowRank)
        own: dict[str, Tensor] = {"lora_magnitude_vector": change.magnitude} if config.use_dora else {}  # type: ignore[dict-item]
        own |= factors(tuned.model, site.module, change.down.detach(), change.up.detach())
        places |= {f"{site.module}.{name}": place for name, place in own.items()}
        values |= {f"{site.module}.{name}": value for name, value in given[site.module].items()}
    for name in sorted(places.keys() | values.keys()):
        if name not in values:
            raise StorageError(f"{folder} lacks the tensor {name!r}")
        if name not in places:
            raise StorageError(f"{folder} has the tensor {name!r}, which has no place in this model")
        place, value = places[name], values[name]
        if name.endswith("magnitude_vector"):
            value = value.flatten()  # kernels have it as (1, outputs, 1, 1)
        if place.shape != value.shape:
            raise StorageError(f"{name} is {tuple(value.shape)} in {folder}, {tuple(place.shape)} here")
        with torch.no_grad():
            place.copy_(value)
