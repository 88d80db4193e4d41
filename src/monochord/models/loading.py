"""Load a model or its processor: a name of the catalog, a Hugging Face id, a folder, or a module as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.core.catalog import CatalogError, unknown
from monochord.models.catalog import Model, entries
from monochord.models.quiet import quietly

if TYPE_CHECKING:
    import torch
    from torch import nn


class LoadError(RuntimeError):
    """A model's weights are not what its catalog entry says."""


def load(
    model: str | Path | nn.Module,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    **options: Any,
) -> nn.Module:
    """A module in eval mode, all its parameters trainable.

    `model` is a catalog name, a Hugging Face id, a folder of `save_pretrained`, or a module, which is
    returned itself. `dtype` ("bfloat16", `torch.float16`, ...) is that of the weights: float32 for the
    catalog, the checkpoint's own elsewhere. `options` go to `from_pretrained`. Raises `CatalogError` for
    unknown names, `FetchError` and `LoadError` for models that can't be fetched or read.
    """
    from torch import nn

    if isinstance(model, nn.Module):
        loaded = model
    elif (entry := entries().get(str(model))) is not None:
        loaded = _load_entry(entry, _as_dtype(dtype) or _as_dtype("float32"), progress, options)
    else:
        loaded = _load_pretrained(str(model), _as_dtype(dtype), options)
    if isinstance(model, nn.Module) and dtype is not None:
        loaded = loaded.to(_as_dtype(dtype))
    return (loaded if device is None else loaded.to(device)).eval()


def processor(model: str | Path | nn.Module, **options: Any) -> Any:
    """The tokenizer, image processor or feature extractor that goes with a model.

    `model` is what `load` takes; a module must have been loaded from a catalog name, an id or a folder.
    `options` belong to the processor: `size=56` for the images of "dinov2-s".
    """
    name = model if isinstance(model, str | Path) else getattr(model, "name_or_path", "")
    if not name:
        raise CatalogError(f"{type(model).__name__} does not say where it is from: pass its name or folder")
    entry = entries().get(str(name)) or _entry_of_folder(str(name))
    if entry is not None:
        folder = entry.fetch(progress=True)
        return entry.processor(folder, **options) if entry.processor else _tokenizer(folder, **options)
    import transformers

    _check_name(str(name))
    for kind in ("AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor"):
        try:
            found = getattr(transformers, kind).from_pretrained(name, **options)
        except (OSError, ValueError, KeyError, ImportError):
            continue
        return _with_padding(found) if kind == "AutoTokenizer" else found
    raise CatalogError(f"{name}: no tokenizer, image processor or feature extractor there")


def fetch(name: str, *, progress: bool = True) -> Path:
    """Bring a model of the catalog into the cache, converted and ready to load; its folder there."""
    if (entry := entries().get(name)) is None:
        raise unknown(name, entries(), "model")
    return entry.fetch(progress=progress)


def _load_entry(entry: Model, dtype: torch.dtype | None, progress: bool, options: dict[str, Any]) -> nn.Module:
    folder = entry.fetch(progress=progress)
    loaded: nn.Module
    if entry.load is not None:
        loaded = entry.load(folder, dtype, **options)
    else:
        import transformers

        loader = getattr(transformers, entry.architecture or "AutoModel")
        with quietly():
            loaded, report = loader.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
        if problem := [*report["missing_keys"], *report["mismatched_keys"]]:
            raise LoadError(f"{entry.name}: {len(problem)} weights missing or misshapen, first {problem[0]}")
    found = sum(parameter.numel() for parameter in loaded.parameters())
    if found != entry.parameters and not options and entry.architecture == type(loaded).__name__:
        raise LoadError(f"{entry.name}: {found} parameters, {entry.parameters} expected")
    return loaded


def _load_pretrained(name: str, dtype: torch.dtype | None, options: dict[str, Any]) -> nn.Module:
    """The class a checkpoint names in its configuration, else `AutoModel`."""
    _check_name(name)
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LoadError(f"{name}: not to be loaded as a folder or hub id ({said[:160]})") from None
    architecture = (getattr(config, "architectures", None) or ["AutoModel"])[0]
    loader = getattr(transformers, architecture, transformers.AutoModel)
    loaded: nn.Module = loader.from_pretrained(name, dtype=dtype or "auto", **options)
    return loaded


def _check_name(name: str) -> None:
    """Refuse what is neither a folder nor an id `owner/name`: a mistyped catalog name, most likely."""
    if not Path(name).exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise unknown(name, entries(), "model")


def _entry_of_folder(folder: str) -> Model | None:
    """The catalog entry whose folder in the cache this is."""
    from monochord.core.cache import cache_folder

    for entry in entries().values():
        keys = [entry.key, *(f"{package.key}/{entry.subfolder}".rstrip("/") for package in entry.packages)]
        if any(key and Path(folder) == cache_folder() / key for key in keys):
            return entry
    return None


def _tokenizer(folder: Path, **options: Any) -> Any:
    from transformers import AutoTokenizer

    return _with_padding(AutoTokenizer.from_pretrained(folder, **options))


def _with_padding(tokenizer: Any) -> Any:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    import torch

    if not isinstance(dtype, str):
        return dtype
    found = getattr(torch, {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(dtype, dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"unknown dtype {dtype!r}: use float32, bfloat16 or float16")
    return found
