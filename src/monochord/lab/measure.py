"""What a training run costs and what it changes inside the model.

Memory is the peak of the process above what it held before training; on Linux the kernel's high-water
mark is reset before, elsewhere the largest size so far is taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monochord.lab.results import BlockChange

if TYPE_CHECKING:
    from torch import Tensor, nn

_BLOCK = re.compile(r"^(?:\w+\.)?(?:blocks|down|up)\.\d+|^mid\b")


class Peak:
    """Peak memory of this process within a block, in bytes above its start: `peak.bytes`."""

    bytes = 0
    source = ""

    def __enter__(self) -> Peak:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # give freed memory back, or it would hide growth
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._start, self.source = _status("VmRSS"), "high-water mark of resident memory"
        except (OSError, KeyError):
            self._start, self.source = _largest(), "largest resident memory of the process"
        return self

    def __exit__(self, *_: object) -> None:
        end = _status("VmHWM") if self.source.startswith("high") else _largest()
        self.bytes = max(end - self._start, 0)


class Clock:
    """Seconds of each step, from a callback or around it: `clock.tick()` at every step's end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    def start(self) -> None:
        self._last = time.perf_counter()

    def tick(self) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now

    def median(self) -> float:
        """The median step, the first left out where there are others: it also warms up."""
        kept = sorted(self.seconds[1:] or self.seconds)
        return kept[len(kept) // 2] if kept else math.nan


def folder_bytes(folder: str | os.PathLike[str]) -> int:
    """The size of all files below a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def block_names(model: nn.Module) -> dict[str, str]:
    """The block of every parameter that is in one: native parameter name to `blocks.3`."""
    from monochord.core.sites import sites

    names: dict[str, str] = {}
    for canonical, native, shape in sites(model):
        block = _BLOCK.match(canonical)
        if block and shape is not None:
            names.setdefault(native, block.group())
    return names


def weight_changes(delta: Mapping[str, Any], base: nn.Module, blocks: Mapping[str, str]) -> list[BlockChange]:
    """What a `Delta` says of each block: relative norm, effective rank and overlap with the base.

    `base` is the model that the delta was taken from, in its original state. The overlap is the share of
    a change's squared norm in the span of the top tenth of its base matrix's left singular vectors.
    """
    parameters = dict(base.named_parameters())
    changes = []
    for block in dict.fromkeys(blocks.values()):
        names = [name for name, owner in blocks.items() if owner == block and name in parameters]
        whole = math.sqrt(sum(float(parameters[name].detach().float().square().sum()) for name in names))
        changed = {name: delta[name] for name in names if name in delta}
        norms = {name: entry.norm() for name, entry in changed.items()}
        norm = math.sqrt(sum(value * value for value in norms.values()))
        ranks, inside, outside, share = [], 0.0, 0.0, 0.0
        for name, entry in changed.items():
            if len(entry.shape) < 2 or norms[name] == 0:
                continue
            change = entry.dense().flatten(1).float()
            top = _top_directions(parameters[name].detach().flatten(1).float())
            ranks.append(_rank(entry, change))
            squared = norms[name] ** 2
            inside += float((top.T @ change).square().sum())
            outside += squared
            share += squared * top.shape[1] / top.shape[0]
        changes.append(
            BlockChange(
                block=block,
                norm=norm / whole if norm and whole else None,
                rank=sum(ranks) / len(ranks) if ranks else None,
                overlap=inside / outside if outside else None,
                overlap_chance=share / outside if outside else None,
                cka=None,
            )
        )
    return changes


def activation_likeness(model: nn.Module, base: Any, batch: Mapping[str, Any]) -> dict[str, float]:
    """Linear CKA by block of what it puts out on `batch`, tuned against base, over all real tokens.

    `base` is a context manager in which `model` is the base, such as `tuned.disabled()`.
    """
    from monochord.core.subspace import cka

    tuned = block_outputs(model, batch)
    with base:
        before = block_outputs(model, batch)
    return {name: cka(tuned[name], before[name]) for name in before if name in tuned}


def block_outputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """What each block puts out for the real tokens (or pixels) of a batch, as rows (n, d_model)."""
    import torch

    from monochord.core.capture import capture
    from monochord.core.prompt import causal

    mask = batch.get("attention_mask")
    found = {}
    with torch.inference_mode(), capture(model, "blocks.*:out") as acts:
        model(**batch)
    for site in acts:
        value = acts[site]
        if value.ndim == 3 and mask is not None:
            length = mask.shape[1]
            extra = value.shape[1] - length  # prompt tokens: before those of a causal model, else after
            value = value[:, extra:] if causal(model) else value[:, :length]
            value = value[mask.bool()]
        elif value.ndim == 4:
            value = value.movedim(1, -1)
        found[site.partition(":")[0]] = value.reshape(-1, value.shape[-1])
    return found


def _rank(entry: Any, change: Tensor) -> float:
    """Effective rank; from the factors where there are any, else by the smaller Gram matrix, far
    cheaper than a singular value decomposition and exact enough for large values."""
    import torch

    from monochord.core.spectrum import effective_rank

    if min(change.shape) > 64 and getattr(entry, "kind", "") == "lowrank":
        return effective_rank(entry.svd()[1])
    matrix = change.double()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return effective_rank(values[values > 1e-7 * values.max()])


def _top_directions(weight: Tensor) -> Tensor:
    """The left singular vectors (rows, k) of the top tenth of a matrix's singular values."""
    from monochord.core.subspace import randomized_svd

    return randomized_svd(weight, max(min(weight.shape) // 10, 1))[0]


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def _largest() -> int:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds of a block as `["seconds"]`."""
    found: dict[str, float] = {}
    start = time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - start
