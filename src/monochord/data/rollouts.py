"""What a policy does in a simulated world: many episodes at once, as `Trajectories`.

    episodes = rollout(lambda seen: -seen, world, steps=50)
    episodes.extra["success"]

A world is spoken to as gymnasium's vector environments are, so those of gymnasium work as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.trajectories import Trajectories


class World(Protocol):
    """`num_envs` episodes that go on side by side."""

    num_envs: int

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """First observations (num_envs, ...) and what else is known."""

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Observations after `actions` (num_envs, dims), rewards, ended by itself, cut off, and what else is known.

        A world with a goal tells in `"success"` (num_envs,) who is at it.
        """


def rollout(
    policy: Callable[[np.ndarray], np.ndarray], world: World, steps: int, *, seed: int = 0, task: str = ""
) -> Trajectories:
    """An episode of each of the world's `num_envs`, of at most `steps` steps.

    `policy` takes observations (num_envs, ...) to actions (num_envs, dims). `next_observations` and `success` are in
    `extra`; success is false throughout where the world does not tell it.
    """
    if steps < 1:
        raise DataError(f"steps={steps}: let the episodes last at least 1")
    observation, _ = world.reset(seed=seed)
    rows: list[tuple[np.ndarray, ...]] = []
    going = np.ones(world.num_envs, bool)
    while going.any() and len(rows) < steps:
        actions = np.asarray(policy(observation))
        if actions.shape[:1] != (world.num_envs,):
            raise DataError(f"the policy gave actions of shape {actions.shape} for {world.num_envs} episodes")
        after, rewards, ended, cut, known = world.step(actions)
        success = np.asarray(known.get("success", np.zeros(world.num_envs, bool)), bool)
        rows.append((observation, actions, np.asarray(rewards), np.asarray(ended, bool), after, success, going))
        going = going & ~(np.asarray(ended, bool) | np.asarray(cut, bool))
        observation = after
    seen, acted, rewarded, done, following, succeeded, kept = (np.stack(c, 1) for c in zip(*rows, strict=True))
    return Trajectories(
        seen[kept],
        acted[kept],
        rewarded[kept],
        done[kept],
        np.nonzero(kept)[0],
        (task,) * world.num_envs if task else (),
        {"next_observations": following[kept], "success": succeeded[kept]},
    )


def success_rate(episodes: Trajectories) -> float:
    """The share of episodes that were at their goal at some step."""
    return float(np.logical_or.reduceat(episodes.extra["success"], episodes.starts).mean())
