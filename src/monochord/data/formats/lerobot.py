"""LeRobot's layout: `meta/info.json`, tasks, and Parquet files of steps (versions 2 and 3); videos are left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from monochord.data.dataset import DataError, Dataset
from monochord.data.formats._files import need, read_json
from monochord.data.trajectories import Trajectories

STATE, ACTION = "observation.state", "action"


def recognises(path: Path) -> bool:
    """A folder with `meta/info.json`."""
    return (path / "meta/info.json").is_file()


def load(path: Path) -> Dataset:
    """A row a step; `Trajectories.of` gives the episodes back."""
    info = read_json(path / "meta/info.json")
    return load_lerobot(path).dataset(path.name, title=f"{info.get('robot_type', 'robot')}, {info.get('fps', '?')} fps")


def load_lerobot(path: Path) -> Trajectories:
    """All episodes: `observation.state`, `action`, rewards where there are some, time stamps and tasks.

    Raises `DataError` unless there are as many episodes and frames as `meta/info.json` promises.
    """
    path = Path(path)
    info, parquet = read_json(path / "meta/info.json"), need("pyarrow.parquet", "data", path)
    files = sorted((path / "data").rglob("*.parquet"))
    if not files:
        raise DataError(f"{path}: no Parquet file below data")
    tables = []
    for file in files:
        try:
            tables.append(parquet.read_table(file))
        except Exception as error:
            raise DataError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    for column in (STATE, ACTION, "episode_index", "frame_index"):
        if column not in tables[0].column_names:
            raise DataError(f"{files[0]}: no column {column} among {', '.join(tables[0].column_names)}")
    episodes = _column(tables, "episode_index").astype(np.int64)
    order = np.lexsort((_column(tables, "frame_index"), episodes))
    episodes = episodes[order]
    _check(path, info, episodes)
    zeros = np.zeros(len(episodes), np.float32)
    rewards = _column(tables, "next.reward")[order] if "next.reward" in tables[0].column_names else zeros
    done = _column(tables, "next.done")[order].astype(bool) if "next.done" in tables[0].column_names else zeros > 0
    extra = {"timestamps": _column(tables, "timestamp")[order]} if "timestamp" in tables[0].column_names else {}
    starts = np.flatnonzero(np.diff(episodes, prepend=episodes[0] - 1))
    tasks: tuple[str, ...] = ()
    if "task_index" in tables[0].column_names and (names := _tasks(path, parquet)):
        tasks = tuple(names[int(task)] for task in _column(tables, "task_index")[order][starts])
    observations, actions = (_column(tables, name)[order] for name in (STATE, ACTION))
    return Trajectories(observations, actions, rewards, done, episodes, tasks, extra)


def _column(tables: list[Any], name: str) -> np.ndarray:
    return np.concatenate([np.stack(table[name].to_numpy(zero_copy_only=False).tolist()) for table in tables])


def _tasks(path: Path, parquet: Any) -> dict[int, str]:
    """Task numbers and words: of `tasks.jsonl` (version 2) or `tasks.parquet` (version 3)."""
    lines, table = path / "meta/tasks.jsonl", path / "meta/tasks.parquet"
    if lines.is_file():
        rows = [json.loads(line) for line in lines.read_text(encoding="utf8").splitlines() if line.strip()]
        return {int(row["task_index"]): str(row["task"]) for row in rows}
    if table.is_file():
        columns = parquet.read_table(table).to_pydict()
        words = next(values for name, values in columns.items() if name != "task_index")
        return dict(zip(map(int, columns["task_index"]), map(str, words), strict=True))
    return {}


def _check(path: Path, info: dict[str, Any], episodes: np.ndarray) -> None:
    found = {"total_frames": len(episodes), "total_episodes": len(np.unique(episodes))}
    for name, number in found.items():
        if name in info and info[name] != number:
            raise DataError(f"{path}: {number} of {name.split('_')[1]}, meta/info.json promises {info[name]}")
