"""What PEFT's `adapter_config.json` says of a LoRA folder: which layers, at which rank and alpha.

Names are matched as PEFT does it: a target is a layer's whole name, the end of it after a dot, or (one text) a
regular expression; patterns of rank and alpha are expressions for the end of a name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from monochord.core.tensorfile import StorageError

# options that change what the adapter computes, with the value that leaves it a plain low-rank change
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
} | dict.fromkeys(
    (
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "layer_replication",
        "lora_bias",
        "monteclora_config",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "use_qalora",
        "velora_config",
    ),
    (None, False, [], {}),
)


@dataclass(frozen=True)
class Config:
    """The options of a LoRA folder that count here; the names are PEFT's."""

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Config:
        """Raises `StorageError` for a damaged file, and for options that no low-rank change has."""
        path = Path(folder) / "adapter_config.json"
        try:
            told = json.loads(path.read_text())
            peft_type = told["peft_type"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path} is no configuration of PEFT ({type(error).__name__}: {error})") from None
        if peft_type != "LORA":
            raise StorageError(f"{folder} holds an adapter of the type {peft_type}: only LORA can be loaded")
        if not (Path(folder) / "adapter_model.safetensors").exists() and (Path(folder) / "adapter_model.bin").exists():
            raise StorageError(f"{folder} holds a pickle, which can run code when opened: save it as safetensors")
        for option, plain in _PLAIN.items():
            if told.get(option, plain[0]) not in plain:
                raise StorageError(f"{folder} uses {option}={told[option]!r}, which is no plain low-rank change")
        known = {f.name for f in fields(cls)}
        config = cls(**{name: value for name, value in told.items() if name in known and value is not None})
        config._check(folder)
        return config

    def rank(self, path: str) -> int:
        return int(_by_pattern(self.rank_pattern, path, self.r))

    def alpha(self, path: str) -> float:
        return float(_by_pattern(self.alpha_pattern, path, self.lora_alpha))

    def _check(self, folder: Any) -> None:
        numbers = [("r", self.r), ("lora_alpha", self.lora_alpha), ("lora_dropout", self.lora_dropout)]
        numbers += [(f"rank_pattern[{k!r}]", v) for k, v in self.rank_pattern.items()]
        numbers += [(f"alpha_pattern[{k!r}]", v) for k, v in self.alpha_pattern.items()]
        for name, value in numbers:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise StorageError(f"{folder} has {name}={value!r}, which is no number")
        patterns = [self.target_modules, self.exclude_modules, *self.rank_pattern, *self.alpha_pattern]
        for pattern in [p for p in patterns if isinstance(p, str)]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise StorageError(f"{folder} has {pattern!r}, which is no regular expression: {error}") from None


def targets(config: Config, modules: Iterable[str]) -> list[str] | None:
    """Those of `modules` that the configuration adapts; None where it leaves that to the tensors."""
    if config.target_modules in (None, "all-linear"):
        return None
    excluded = config.exclude_modules or []
    kept = [m for m in modules if not _named(excluded, m)]
    saved = [re.compile(rf"(^|.*\.){name}($|\..*)") for name in config.modules_to_save or []]
    kept = [m for m in kept if not any(s.match(m) for s in saved)]
    return [m for m in kept if _named(config.target_modules or [], m) and _in_layers(config, m)]


def saved_modules(names: list[str] | None, modules: Iterable[str]) -> list[str]:
    """The outermost modules whose paths end as `names` do."""
    found: list[str] = []
    for path in modules:
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if path and not inside and any(path.endswith(name) for name in names or []):
            found.append(path)
    return found


def patterns_for(
    modules: Mapping[str, nn.Module], ranks: Mapping[str, int], alphas: Mapping[str, float], saved: list[str]
) -> dict[str, Any]:
    """The options that name exactly these layers, ranks, alphas and modules kept whole, as short as can be."""
    wanted = set(ranks)
    ends = sorted({path.rpartition(".")[2] for path in ranks})
    options: list[str | list[str]] = [ends, list(ranks), "|".join(re.escape(path) for path in ranks)]
    target = next(o for o in options if {m for m in modules if _named(o, m)} == wanted or o is options[-1])
    if saved and sorted(saved_modules(saved, modules)) != sorted(saved):
        raise ValueError(f"PEFT can't tell {saved[0]} from other modules whose names end alike: save in our own format")
    rank, alpha = (_usual(list(values.values())) for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": target,
        "rank_pattern": {f"^{re.escape(p)}": r for p, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(p)}": a for p, a in alphas.items() if a != alpha},
        "modules_to_save": saved or None,
    }


def _usual(values: list[Any]) -> Any:
    """The most frequent value, of several the smallest."""
    return min(values, key=lambda value: (-values.count(value), value))


def _by_pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _named(names: str | list[str], path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _in_layers(config: Config, path: str) -> bool:
    """Whether the number of the layer is among those to adapt, where they are limited."""
    if config.layers_to_transform in (None, []) or (
        isinstance(config.target_modules, list) and path in config.target_modules
    ):
        return True
    given = config.layers_to_transform
    layers = given if isinstance(given, list) else [given]
    stacks = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    expressions = [rf"(?:^|.*?\.){s}\.(\d+)\." for s in stacks or []] or [r".*?\.[^.]*\.(\d+)\."]
    match = next((m for e in expressions if (m := re.match(e, path))), None)
    return match is not None and int(match[1]) in layers
