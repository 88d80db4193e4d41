"""Robots in simulation: episodes of scripted experts (Meta-World) and of random motion with any arm (robosuite).

From "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning", October 24, 2019, and
"robosuite: A Modular Simulation Framework and Benchmark for Robot Learning", September 25, 2020. Both need
`pip install 'monochord[robots]'`; robosuite 1.5.2 needs mujoco 3.3.0.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.formats._files import need
from monochord.data.trajectories import Trajectories, joined

ARMS = ("Panda", "Sawyer", "UR5e", "IIWA", "Jaco", "Kinova3")
AFTER = 10  # steps that an episode goes on when the task is done


def metaworld_tasks() -> tuple[str, ...]:
    """The names of the tasks that have a scripted expert: "reach-v3", "door-open-v3" and so on."""
    return tuple(sorted(need("metaworld.policies", "robots", "Meta-World").ENV_POLICY_MAP))


def metaworld_experts(
    task: str, episodes: int = 5, *, seed: int = 0, noise: float = 0.0, steps: int = 300
) -> Trajectories:
    """Episodes of a task's scripted expert: observations (steps, 39), actions (steps, 4) in -1 to 1.

    Each episode has another goal, from `seed`. `noise` is the sd of what is added to the expert's actions. Episodes
    end ten steps after success; `success` is in `extra`.
    """
    policies = need("metaworld.policies", "robots", "Meta-World").ENV_POLICY_MAP
    if task not in policies:
        near = ", ".join(get_close_matches(task, policies, 3, 0.3)) or ", ".join(sorted(policies)[:3])
        raise DataError(f"Meta-World has no task {task!r}: did you mean {near}?")
    need("metaworld", "robots", "Meta-World")  # registers its environments
    gymnasium, expert = need("gymnasium", "robots", "Meta-World"), policies[task]()
    rng, parts = np.random.default_rng(seed), []
    for episode in range(episodes):
        world = gymnasium.make("Meta-World/MT1", env_name=task, seed=seed + episode, disable_env_checker=True)
        first, _ = world.reset(seed=seed + episode)

        def act(seen: np.ndarray) -> np.ndarray:
            wanted = expert.get_action(seen)
            return np.clip(wanted + noise * rng.standard_normal(len(wanted)), -1, 1).astype(np.float32)

        def step(action: np.ndarray, world: Any = world) -> tuple[np.ndarray, float, bool]:
            seen, reward, _, _, info = world.step(action)
            return seen, float(reward), bool(info["success"])

        parts.append(_episode(first, act, step, steps, task))
        world.close()
    return joined(parts)


def robosuite_episodes(
    task: str = "Lift", arm: str = "Panda", episodes: int = 2, *, seed: int = 0, steps: int = 100
) -> Trajectories:
    """Episodes of smooth random motion of an arm, the same 7 action dimensions for each of `ARMS`.

    Observations are those of the robot and the object, joined; no package has demonstrations for robosuite.
    """
    if arm not in ARMS:
        raise DataError(f"no arm {arm!r}: use one of {', '.join(ARMS)}")
    suite = need("robosuite", "robots", "robosuite")
    options = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "control_freq": 20}
    rng, parts = np.random.default_rng(seed), []
    world = suite.make(task, robots=arm, seed=seed, **options)

    def flat(seen: Any) -> np.ndarray:
        return np.concatenate([np.ravel(seen[name]) for name in ("robot0_proprio-state", "object-state")])

    for _ in range(episodes):
        drift = np.zeros(world.action_dim)

        def act(seen: np.ndarray) -> np.ndarray:
            nonlocal drift
            drift = 0.9 * drift + 0.3 * rng.standard_normal(len(drift))
            return np.clip(drift, -1, 1).astype(np.float32)

        def step(action: np.ndarray) -> tuple[np.ndarray, float, bool]:
            seen, reward, _, _ = world.step(action)
            return flat(seen), float(reward), reward >= 1

        parts.append(_episode(flat(world.reset()), act, step, steps, f"{task} with {arm}"))
    world.close()
    return joined(parts)


def _episode(
    seen: np.ndarray,
    act: Callable[[np.ndarray], np.ndarray],
    step: Callable[[np.ndarray], tuple[np.ndarray, float, bool]],
    steps: int,
    task: str,
) -> Trajectories:
    """What is seen, done and got until the task has been done for a while, or for `steps`."""
    rows: list[tuple[np.ndarray, np.ndarray, float, bool, np.ndarray]] = []
    left = steps
    while left > 0:
        action = act(seen)
        after, reward, success = step(action)
        rows.append((seen, action, reward, success, after))
        seen, left = after, min(left - 1, AFTER) if any(row[3] for row in rows) else left - 1
    observations, actions, rewards, succeeded, after = (np.array(column) for column in zip(*rows, strict=True))
    done = np.zeros(len(rows), bool)
    done[-1] = bool(succeeded.any())
    extra = {"success": succeeded, "next_observations": after}
    return Trajectories(observations, actions, rewards, done, np.zeros(len(rows), np.int64), (task,), extra)
