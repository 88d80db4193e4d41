"""Files of tensors: safetensors with a JSON header, written whole or not at all, checked when read.

A file is written to a temporary name and renamed, so a full disk or a killed process leaves the old file
intact. Files written here carry the SHA-256 of their content; there is no pickle path.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core.tensorfile import StorageError as StorageError
from monochord.core.tensorfile import as_bytes, read_header, replacing, write_tensors


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write `tensors` and JSON-able `metadata` to a safetensors file, atomically. Ties are written twice."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    layout = [(name, tensors[name].dtype, tuple(tensors[name].shape)) for name in order]
    write_tensors(path, layout, (tensors[name] for name in order), metadata)


def load_tensors(
    path: str | os.PathLike[str], *, names: Iterable[str] | None = None, strict: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata of a safetensors file.

    `names` are the tensors the caller needs: a missing one is an error, and with `strict` so is one too many.
    `strict` also compares the content with its recorded SHA-256, where the file has one.
    Raises `StorageError` for a pickle, a truncated or an altered file.
    """
    header = read_header(path)
    if names is not None:
        wanted = set(names)
        if missing := sorted(wanted - header.tensors.keys()):
            raise StorageError(f"{path} lacks {len(missing)} tensors, the first is {missing[0]!r}")
        if strict and (extra := sorted(header.tensors.keys() - wanted)):
            raise StorageError(f"{path} has {len(extra)} tensors too many, the first is {extra[0]!r}")
    tensors: dict[str, Tensor] = {}
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for name, place in sorted(header.tensors.items(), key=lambda item: item[1].start):
            tensor = torch.empty(place.shape, dtype=place.dtype)
            file.seek(place.start)
            file.readinto(as_bytes(tensor))
            digest.update(as_bytes(tensor))
            tensors[name] = tensor
    if strict and header.digest is not None and header.digest != digest.hexdigest():
        raise StorageError(f"{path} was altered after it was written: its content does not match its SHA-256")
    if names is not None:
        tensors = {name: tensors[name] for name in tensors if name in wanted}
    return tensors, header.metadata


def save_folder(folder: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write `tensors.safetensors` and `config.json`.

    The configuration is also in the header of the tensors, which makes the pair atomic: `config.json` is for
    people to read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "tensors.safetensors", tensors, config)
    with replacing(folder / "config.json") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())


def load_folder(folder: str | os.PathLike[str], *, strict: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_folder` wrote: the tensors and the configuration."""
    folder = Path(folder)
    if not folder.is_dir():
        raise StorageError(f"{folder} is not a folder")
    tensors, config = load_tensors(folder / "tensors.safetensors", strict=strict)
    try:
        told = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        told = config
    if told != config:
        warnings.warn(f"{folder}/config.json was changed: the one inside tensors.safetensors counts")
    return tensors, config


def fingerprint(source: nn.Module | Mapping[str, Any]) -> str:
    """A SHA-256 that names a base model: the same weights give the same string.

    Taken over the sorted parameter names, their shapes and 64 evenly strided values of each, rounded to
    bfloat16: float64, float32 and bfloat16 copies of a model agree (a float16 one may not: it rounds twice).
    Buffers, attachments and the second name of a tied parameter do not count, so a model, its state dict and
    its checkpoint agree. `source` is a model, a state dict, or an opened `Checkpoint`.
    """
    digest = hashlib.sha256(b"monochord base 1")
    for name, value in sorted(base_parameters(source).items()):
        count = min(value.numel(), 64)
        indices = torch.arange(count) * value.numel() // max(count, 1)
        if getattr(value, "is_meta", False):
            raise ValueError(f"{name} is on the meta device: load the model's weights before its fingerprint")
        if isinstance(value, Tensor):
            sample = value.detach().reshape(-1)[indices.to(value.device)].cpu()
        else:
            sample = value.sample(indices)
        sample = sample.real if sample.is_complex() else sample
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(as_bytes(sample.to(torch.bfloat16)))
    return digest.hexdigest()


def base_parameters(source: nn.Module | Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the base model by their native names: no attachment, no buffer, no alias."""
    found: dict[str, Any] = {}
    seen: set[Any] = set()
    module = isinstance(source, nn.Module)
    items = source.named_parameters() if isinstance(source, nn.Module) else source.items()
    for name, value in items:
        plain = base_name(name)
        if plain is None or (not module and not _looks_like_parameter(plain, value)):
            continue
        if not module and isinstance(value, Tensor) and value.numel() and not value.is_meta:
            key = (value.data_ptr(), tuple(value.shape), value.stride())
            if key in seen:
                continue
            seen.add(key)
        found[plain] = value
    return found


def base_name(name: str) -> str | None:
    """A parameter's native name: `a.parametrizations.weight.original` is `a.weight`. None if attached."""
    name = name.replace("_orig_mod.", "")
    if "monochord" in name.split("."):
        return None
    owner, found, rest = name.partition("parametrizations.")
    if not found or (owner and not owner.endswith(".")):
        return name
    tensor, _, part = rest.partition(".")
    if part == "original":
        return owner + tensor
    return name if part.startswith("original") else None


def _looks_like_parameter(name: str, value: Any) -> bool:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    integers = (torch.int64, torch.int32, torch.bool)
    return value.dtype not in integers and name.rpartition(".")[2] not in statistics
