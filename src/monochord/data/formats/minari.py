"""Minari's layout: `data/main_data.hdf5` with a group an episode, and `metadata.json`.

An episode has one observation more than actions: the last one is what came after the last action.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.dataset import DataError, Dataset
from monochord.data.formats._files import need, read_json
from monochord.data.trajectories import Trajectories

MAIN = "main_data.hdf5"


def recognises(path: Path) -> bool:
    """A folder with `data/main_data.hdf5` or `main_data.hdf5`."""
    return _main(path) is not None


def load(path: Path) -> Dataset:
    """A row a step; `Trajectories.of` gives the episodes back."""
    meta = (_main(path) or path).with_name("metadata.json")
    title = str(read_json(meta).get("dataset_id", "")) if meta.is_file() else ""
    return load_minari(path).dataset(path.name, title=title)


def load_minari(path: Path) -> Trajectories:
    """All episodes; observations of several parts (a dictionary space) are joined in order of their names."""
    file = _main(Path(path))
    if file is None:
        raise DataError(f"{path}: no data/{MAIN} in it")
    h5py = need("h5py", "data", file)
    try:
        with h5py.File(file, "r") as opened:
            names = sorted((name for name in opened if re.fullmatch(r"episode_\d+", name)), key=_number)
            if not names:
                raise DataError(f"{file}: no episodes")
            promised = opened.attrs.get("total_episodes", len(names))
            if promised != len(names):
                raise DataError(f"{file}: {len(names)} episodes, {promised} promised by the file: it is cut off")
            parts = [_episode(f"{file}: {name}", opened[name]) for name in names]
    except OSError as error:
        raise DataError(f"{file}: not a readable HDF5 file ({str(error).splitlines()[0]})") from None
    columns = [np.concatenate(column) for column in zip(*(part[:5] for part in parts), strict=True)]
    episodes = np.repeat(np.arange(len(parts)), [len(part[1]) for part in parts])
    tasks = tuple(part[5] for part in parts)
    observations, after, actions, rewards, done = columns[0], columns[4], *columns[1:4]
    extra = {"next_observations": after}
    return Trajectories(observations, actions, rewards, done, episodes, tasks if any(tasks) else (), extra)


def _episode(where: str, group: Any) -> tuple[Any, ...]:
    """Observations before, actions, rewards, done, observations after, the mission."""
    lacking = [name for name in ("observations", "actions", "rewards", "terminations") if name not in group]
    if lacking:
        raise DataError(f"{where} has no {lacking[0]}")
    mission = ""
    seen, actions = group["observations"], _flat(group["actions"])
    if hasattr(seen, "keys") and "mission" in seen:
        mission = seen["mission"][0].decode() if len(seen["mission"]) else ""
    seen = _flat(seen)
    if len(seen) != len(actions) + 1:
        raise DataError(f"{where}: {len(seen)} observations for {len(actions)} actions, one more is needed")
    return seen[:-1], actions, group["rewards"][:], group["terminations"][:].astype(bool), seen[1:], mission


def _flat(value: Any) -> np.ndarray:
    """A dataset, or a group of datasets, as (steps, features); text is left out."""
    if hasattr(value, "keys"):
        parts = [_flat(value[name]) for name in sorted(value) if name != "mission"]
        return np.concatenate(parts, axis=1)
    array = value[:]
    return array.reshape(len(array), -1) if array.ndim != 2 else array


def _main(path: Path) -> Path | None:
    return next((file for file in (path / "data" / MAIN, path / MAIN) if file.is_file()), None)


def _number(name: str) -> int:
    return int(name.rsplit("_", 1)[1])
