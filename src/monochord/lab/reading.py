"""Activations or statistics of a data set, written batch by batch: stopped, the same call goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def read_out(
    model: Any,
    data: Any,
    sites: str,
    out: str | Path,
    *,
    split: str = "test",
    rows: int = 256,
    statistics: bool = False,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Run the model over the first `rows` of a split and keep what `sites` names.

    Activations go to the folder `out`, one safetensors file a batch, or, where its name ends in `.zarr`, to a group
    with one array a site; batches that are there already are not computed again. `statistics` writes one safetensors
    file with `SITE/mean` (d,) and `SITE/covariance` (d, d) over real tokens. Returns the shapes. Raises `ValueError`
    when zarr is not installed, and when what is there ends within a batch.
    """
    import torch

    from monochord.core.capture import capture
    from monochord.core.reducers import Covariance
    from monochord.core.storage import save_tensors
    from monochord.data import Batches
    from monochord.data import data as open_data
    from monochord.models import load, processor

    net = load(model)
    part = open_data(data)[split]
    batches = Batches(part.first(min(rows, len(part))), processor(model), batch_size=batch_size, shuffle=False)
    target = Path(out)
    if statistics:
        with torch.inference_mode(), capture(net, sites, reduce=Covariance()) as found:
            for batch in batches:
                net(**_inputs(batch))
        tensors = {}
        for name in found:
            tensors[f"{name}/mean"], tensors[f"{name}/covariance"] = found[name].mean, found[name].covariance
        save_tensors(target, tensors, {"rows": rows, "split": split})
        return {"out": str(target), "shapes": {name: list(value.shape) for name, value in tensors.items()}}
    kept: _Folder | _Zarr = _Zarr(target) if target.suffix == ".zarr" else _Folder(target)
    seen = 0
    with torch.inference_mode(), capture(net, sites) as found:
        for batch in batches:
            first, seen = seen, seen + len(next(iter(batch.values())))
            if seen <= kept.rows:
                continue
            if first < kept.rows:
                raise ValueError(f"{out} ends within a batch: use the batch_size it was begun with, or another name")
            net(**_inputs(batch))
            tensors = {name: found[name].contiguous() for name in found}
            if "attention_mask" in batch:
                tensors["attention_mask"] = batch["attention_mask"]
            kept.write(tensors)
    return {"out": str(target), "shapes": kept.shapes()}


class _Folder:
    """A safetensors file a batch, whole or not there."""

    def __init__(self, folder: Path) -> None:
        from monochord.core.tensorfile import read_header

        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        there = list(takewhile(Path.exists, map(self._file, count())))
        self.rows = sum(next(iter(read_header(file).tensors.values())).shape[0] for file in there)
        self._next = len(there)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        from monochord.core.storage import save_tensors

        save_tensors(self._file(self._next), dict(tensors), {"batch": self._next})
        self._next += 1

    def shapes(self) -> dict[str, list[int]]:
        """Of the last batch."""
        from monochord.core.tensorfile import read_header

        return {name: list(place.shape) for name, place in read_header(self._file(self._next - 1)).tensors.items()}

    def _file(self, batch: int) -> Path:
        return self.folder / f"{batch:05d}.safetensors"


class _Zarr:
    """An array a site, rows first, a chunk a batch; zeros where a row is shorter than the longest."""

    def __init__(self, path: Path) -> None:
        try:
            import zarr
        except ImportError:
            raise ValueError(f"{path}: install monochord[zarr] (Python 3.11 or later), or give a folder") from None
        self.group: Any = zarr.open_group(path, mode="a")

        attributes: Any = self.group.attrs
        self.rows: int = attributes.get("rows", 0)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        first = self.rows
        for name, value in tensors.items():
            shape = (first + len(value), *value.shape[1:])
            if name not in self.group:
                kind = "float32" if value.is_floating_point() else "int64"
                self.group.create_array(name, shape=shape, chunks=tuple(value.shape), dtype=kind, fill_value=0)
            array: Any = self.group[name]
            array.resize(tuple(max(pair) for pair in zip(shape, array.shape, strict=True)))
            rows = (slice(first, shape[0]), *(slice(0, size) for size in shape[1:]))
            array[rows] = (value.float() if value.is_floating_point() else value).cpu().numpy()
        self.rows = self.group.attrs["rows"] = shape[0]  # counted when the batch is whole

    def shapes(self) -> dict[str, list[int]]:
        return {name: list(array.shape) for name, array in self.group.arrays()}


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "labels"}
