"""Action chunks: what demonstrations say will be done next, and a policy that plans several steps at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.trajectories import Trajectories


def action_chunks(episodes: Trajectories, horizon: int, dims: int | None = None) -> dict[str, np.ndarray]:
    """Of every step its observation as `condition` and the next `horizon` actions, `actions` (steps, horizon, dims).

    After an episode's end actions are 0. Fewer than `dims` actions are padded with zeros, as a vector that several
    robots share.
    """
    own = episodes.actions.shape[1]
    dims = own if dims is None else dims
    if horizon < 1 or dims < own:
        raise DataError(f"horizon={horizon}, dims={dims}: use at least 1, and room for {own} actions")
    ends = np.append(episodes.starts[1:], len(episodes.episodes))
    last = np.repeat(ends, np.diff([*episodes.starts, len(episodes.episodes)]))
    rows = np.arange(len(last))[:, None] + np.arange(horizon)
    inside = rows < last[:, None]
    chunks = np.where(inside[..., None], episodes.actions[np.minimum(rows, len(last) - 1)], 0).astype(np.float32)
    return {
        "condition": episodes.observations.astype(np.float32),
        "actions": np.pad(chunks, ((0, 0), (0, 0), (0, dims - own))),
    }


class RecedingHorizon:
    """A policy of single actions from one of chunks: `plan(observation)`, (n, horizon, dims), is asked anew after every
    `execute` of its steps. Of one episode: make a new one for the next.
    """

    def __init__(self, plan: Callable[[np.ndarray], np.ndarray], execute: int) -> None:
        if execute < 1:
            raise DataError(f"execute={execute}: carry out at least 1 step of a chunk")
        self.plan, self.execute = plan, execute
        self._chunk: np.ndarray | None = None
        self._step = 0

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        if self._chunk is None or self._step == min(self.execute, self._chunk.shape[1]):
            self._chunk, self._step = self.plan(observation), 0
        self._step += 1
        action: np.ndarray = self._chunk[:, self._step - 1]
        return action
