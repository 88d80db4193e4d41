"""Folders that the library `datasets` saved with `save_to_disk`: one data set, or one a split."""

from __future__ import annotations

from pathlib import Path

from monochord.data.adopt import adopt
from monochord.data.dataset import DataError, Dataset
from monochord.data.formats._files import need


def recognises(path: Path) -> bool:
    """A folder with `dataset_dict.json`, or with `state.json` and `dataset_info.json`."""
    return (path / "dataset_dict.json").is_file() or all(
        (path / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def load(path: Path, *, seed: int = 0) -> Dataset:
    """The data set with columns known by their usual names; a single split is cut from `seed`."""
    datasets = need("datasets", "data", path)
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"{path}: datasets could not load it ({str(error).splitlines()[0]})") from None
    return adopt(found, name=path.name, seed=seed)
