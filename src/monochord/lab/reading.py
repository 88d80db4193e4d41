"""Activations or statistics of a data set, written batch by batch: stopped, the same call goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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

    Activations go to the folder `out`, one safetensors file a batch, whole or not there; files that are there already
    are not computed again. `statistics` writes one file with `SITE/mean` (d,) and `SITE/covariance` (d, d) over real
    tokens. Returns the shapes.
    """
    import torch

    from monochord.core.capture import capture
    from monochord.core.reducers import Covariance
    from monochord.core.storage import load_tensors, save_tensors
    from monochord.data import Batches
    from monochord.data import data as open_data
    from monochord.models import load, processor

    net = load(model)
    part = open_data(data)[split]
    batches = Batches(part.first(min(rows, len(part))), processor(model), batch_size=batch_size, shuffle=False)
    target, shapes = Path(out), dict[str, list[int]]()
    if statistics:
        with torch.inference_mode(), capture(net, sites, reduce=Covariance()) as found:
            for batch in batches:
                net(**_inputs(batch))
        tensors = {}
        for name in found:
            tensors[f"{name}/mean"], tensors[f"{name}/covariance"] = found[name].mean, found[name].covariance
        save_tensors(target, tensors, {"rows": rows, "split": split})
        return {"out": str(target), "shapes": {name: list(value.shape) for name, value in tensors.items()}}
    target.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode(), capture(net, sites) as found:
        for i, batch in enumerate(batches):
            file = target / f"{i:05d}.safetensors"
            if file.exists():
                shapes = {name: list(value.shape) for name, value in load_tensors(file)[0].items()}
                continue
            net(**_inputs(batch))
            tensors = {name: found[name].contiguous() for name in found}
            if "attention_mask" in batch:
                tensors["attention_mask"] = batch["attention_mask"]
            save_tensors(file, tensors, {"batch": i, "split": split})
            shapes = {name: list(value.shape) for name, value in tensors.items()}
    return {"out": str(target), "shapes": shapes}


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "labels"}
