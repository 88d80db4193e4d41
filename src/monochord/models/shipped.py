"""The project's own nets: stored with the package as int8 rows, loaded back as floats.

A folder has `config.json` (transformers' configuration), `net.json` (the net's seed and its checkpoints) and a
`step-N.safetensors` for each checkpoint that ships. There a matrix `name` is int8 of its own shape, and
`name.scale` has a float16 for each row: `value = int8 * scale`. Vectors and matrices under 4,096 entries stay
float32. The random initialisation is made again from the seed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.core.packages import FetchError
from monochord.models.catalog import Model

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SHIPPED = Path(__file__).parent / "shipped"
SCALE, SMALL, NARROW = ".scale", 4096, 16


@dataclass(frozen=True, kw_only=True)
class Shipped(Model):
    """A catalog entry for a net of the package itself: nothing is fetched."""

    ships: str = "with the package"

    def fetch(self, *, progress: bool = False) -> Path:
        folder = SHIPPED / (self.subfolder or self.name)
        if not folder.is_dir():
            raise FetchError(f"{self.name} is missing from this installation: install the package again")
        return folder


def language_net(name: str, architecture: str, parameters: int, title: str) -> Shipped:
    """The entry of a net trained on the project's own mixture, with the mixture's tokenizer."""
    return Shipped(
        name=name,
        kind="causal-lm",
        title=title,
        licence="Apache-2.0, ours; its reviews belong to their authors, its dictionary is GPL",
        package=None,
        parameters=parameters,
        architecture=architecture,
        load=load_shipped,
        processor=tokenizer,
    )


def trained(*entries: Shipped) -> list[Shipped]:
    """Those whose weights ship; tools/zoo makes the others."""
    return [entry for entry in entries if (SHIPPED / (entry.subfolder or entry.name) / "net.json").exists()]


# Weights


def write_weights(state: Mapping[str, Tensor], file: Path) -> None:
    """Store tensors by name, matrices as int8; the file appears whole or not at all."""
    from safetensors.torch import save_file

    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.is_floating_point() and value.ndim > 1 and value.numel() >= SMALL:
            stored[name], stored[name + SCALE] = _to_rows(value.detach().float())
        else:
            stored[name] = value.detach().float() if value.is_floating_point() else value.detach()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in stored.items()}, partial)
    os.replace(partial, file)


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of `write_weights` in float32. Raises `LoadError` for a file that is not whole."""
    import torch
    from safetensors.torch import load_file

    try:
        stored = load_file(file)
    except Exception as error:
        raise _problem(f"{file.name}: not readable ({error}); install the package again") from None
    scales = {name.removesuffix(SCALE): stored.pop(name) for name in list(stored) if name.endswith(SCALE)}
    for name, scale in scales.items():
        if name not in stored or stored[name].dtype != torch.int8:
            raise _problem(f"{file.name}: a scale without its matrix, {name}; install the package again")
        stored[name] = stored[name].float() * scale.float()
    return stored


def _to_rows(value: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the same shape, and a float16 scale a row, of a shape that multiplies it.

    A row is what differs in the last dimension alone; in kernels, where that is narrow, what shares the first.
    """
    import torch

    dims = (-1,) if value.shape[-1] >= NARROW else tuple(range(1, value.ndim))
    scale = (value.abs().amax(dims, keepdim=True) / 127).half()
    if not scale.isfinite().all():
        raise ValueError(f"entries up to {value.abs().max():.3g} do not fit int8 with a float16 scale")
    steps = torch.where(scale > 0, value / scale.float().clamp(min=1e-12), 0.0)
    return steps.round().clamp(-127, 127).to(torch.int8), scale


# Nets of transformers


def initialised(config: Any, seed: int) -> nn.Module:
    """The class that a configuration names, at its random initialisation, the same on every machine.

    Matrices are normal with the configuration's `initializer_range`, from a generator of their own; what else is
    random in the constructor comes from the same seed, as is everything where the configuration has no such range
    (ResNet). The caller's random state stays as it was.
    """
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = getattr(transformers, config.architectures[0])(config)
    if (width := getattr(config, "initializer_range", None)) is None:
        return model
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and not any(part in name for part in ("conv1d", "A_log")):
                value.normal_(0.0, width, generator=generator)
    return model


def save_shipped(
    config: Any,
    checkpoints: Mapping[int, Mapping[str, Tensor]],
    folder: Path,
    *,
    seed: int,
    steps: list[int],
    labels: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Ship a net: `checkpoints` are weights by training step; `steps` are all steps that were kept in training.

    `labels` are a classifier's: the classes of each set that it has rows for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    for step, state in checkpoints.items():
        write_weights(state, folder / f"step-{step}.safetensors")
    config.to_json_file(folder / "config.json")
    told: dict[str, Any] = {"seed": seed, "steps": steps} | ({"labels": labels} if labels else {})
    (folder / "net.json").write_text(json.dumps(told, ensure_ascii=False) + "\n", encoding="utf8")


def load_shipped(folder: Path, dtype: torch.dtype | None, *, checkpoint: int | str = "final") -> nn.Module:
    """A shipped net of transformers.

    `checkpoint` is "final", "init" for the random initialisation, or a number, from 0 (the earliest) or, negative,
    from the end. Raises `LoadError` for one that does not ship, and for weights that do not fit.
    """
    import torch
    import transformers

    said = json.loads((folder / "net.json").read_text(encoding="utf8"))
    stored = json.loads((folder / "config.json").read_text(encoding="utf8"))
    config = getattr(transformers, stored["architectures"][0]).config_class.from_json_file(folder / "config.json")
    model = initialised(config, said["seed"])
    if checkpoint != "init":
        state = read_weights(checkpoint_file(folder, said["steps"], checkpoint))
        tied = set(getattr(model, "_tied_weights_keys", None) or ())
        missing, unexpected = model.load_state_dict(state, strict=False)
        if wrong := [*(name for name in missing if name not in tied), *unexpected]:
            raise _problem(f"{folder.name}: {len(wrong)} weights missing or too many, first {wrong[0]}")
    named: Any = model
    named.config.name_or_path = named.name_or_path = folder.name
    return model.to(dtype or torch.float32)


def checkpoint_file(folder: Path, steps: list[int], checkpoint: int | str) -> Path:
    """The weights of a checkpoint by its number or "final". Raises `LoadError` for one that does not ship."""
    number = -1 if checkpoint == "final" else checkpoint
    names = f"0 to {len(steps) - 1}, 'final' or 'init'"
    if not isinstance(number, int) or not -len(steps) <= number < len(steps):
        raise _problem(f"{folder.name} has no checkpoint {checkpoint!r}: use {names}")
    file = folder / f"step-{steps[number]}.safetensors"
    if not file.exists():
        there = [str(i) for i, step in enumerate(steps) if (folder / f"step-{step}.safetensors").exists()]
        raise _problem(
            f"{folder.name} ships without checkpoint {checkpoint}: there are {', '.join(there)} and 'init'; "
            "tools/zoo of the source tree trains the others (--keep-all)"
        )
    return file


def tokenizer(folder: Path, **options: Any) -> Any:
    """The tokenizer of the mixture, the same for all shipped language nets."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder.parent / "tokenizer", **options)


def _problem(message: str) -> Exception:
    from monochord.models.loading import LoadError

    return LoadError(message)
