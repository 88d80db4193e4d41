"""Planar arms that reach, push and carry: many episodes at once in numpy, for policies of several embodiments.

    world = PlanarArms(Arm((0.5, 0.5)), ("reach", "push", "carry"), num_envs=300)
    episodes = rollout(expert(world), world, steps=50)

An arm is a chain of links of any number and lengths from the origin; an action is the speed of each joint, from -1 to
1, padded with zeros to `width` so that arms of different numbers of joints share one vector. The world is spoken to as
gymnasium's vector environments are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monochord.data.dataset import DataError

TASKS = ("reach", "push", "carry")
SPEED = 0.15  # of a joint at action 1, in radians a step
PACE = 0.06  # how far the expert moves the tip in a step
CONTACT, GRIP = 0.15, 0.06  # from the tip to the middle of the object: where it is pushed, and where it sticks


@dataclass(frozen=True)
class Arm:
    """A chain of links of the given `lengths`; `signs` (1 or -1 each) say which way a motor turns its joint."""

    lengths: tuple[float, ...]
    signs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) <= 0:
            raise DataError(f"lengths={self.lengths}: give at least one link, each longer than 0")
        if self.signs and (len(self.signs) != len(self.lengths) or {*self.signs} - {1, -1}):
            raise DataError(f"signs={self.signs} for {len(self.lengths)} links: give 1 or -1 for each")

    @property
    def joints(self) -> int:
        return len(self.lengths)

    def positions(self, angles: np.ndarray) -> np.ndarray:
        """Where each link ends, (..., joints, 2); every angle is from the link before."""
        absolute = np.cumsum(angles, -1)
        steps = np.stack([np.cos(absolute), np.sin(absolute)], -1) * np.array(self.lengths)[:, None]
        return np.cumsum(steps, -2)

    def jacobian(self, angles: np.ndarray) -> np.ndarray:
        """How the tip moves with each angle, (..., 2, joints)."""
        ends = self.positions(angles)
        bases = np.concatenate([np.zeros_like(ends[..., :1, :]), ends[..., :-1, :]], -2)
        arms = ends[..., -1:, :] - bases
        return np.stack([-arms[..., 1], arms[..., 0]], -2)


class PlanarArms:
    """`num_envs` places with the same arm; place i does task i, in turn, of `tasks`.

    - reach: bring the tip to the goal; push: shove a disc there; carry: touch a thing, which then sticks, and bring it
    - observations (num_envs, features): cosine and sine of each joint, padded to `width`; the tip; from the tip to the
      object and to the goal; from the object to the goal; which task it is. A reach has no object: zeros
    - an episode ends where the goal is within `tolerance`; `noise` is the deviation of what the motors add to actions
    """

    def __init__(
        self,
        arm: Arm,
        tasks: str | Sequence[str] = TASKS,
        num_envs: int = 1,
        *,
        width: int | None = None,
        noise: float = 0.0,
        tolerance: float = 0.07,
    ) -> None:
        self.tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise DataError(f"unknown task {unknown[0]!r}: use {', '.join(TASKS)}")
        self.arm, self.num_envs, self.width = arm, num_envs, arm.joints if width is None else width
        if self.width < arm.joints:
            raise DataError(f"width={self.width} is too small for an arm of {arm.joints} joints")
        self.noise, self.tolerance = noise, tolerance
        self.mask = np.arange(self.width) < arm.joints  # of the action: which numbers move a joint
        self._signs = np.array(arm.signs or (1,) * arm.joints)
        self.task = np.resize([TASKS.index(task) for task in self.tasks], num_envs)

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """First observations, with angles, objects and goals drawn by the seed."""
        self._rng = rng = np.random.default_rng(seed)
        n = self.num_envs
        self.angles = rng.uniform(-1.2, 1.2, (n, self.arm.joints))
        self.angles[:, 0] = rng.uniform(0.2 * np.pi, 0.8 * np.pi, n)
        size = sum(self.arm.lengths)
        self.goal = _around(rng, n, 0.35 * size, 0.8 * size)
        self.object = _around(rng, n, 0.35 * size, 0.8 * size)
        pushed = self.task == TASKS.index("push")
        middle = _around(rng, n, 0.55 * size, 0.65 * size)  # a disc is pushed a short way, so that no arm must let go
        way = rng.uniform(0, 2 * np.pi, n)
        self.goal[pushed] = (middle + 0.15 * size * np.stack([np.cos(way), np.sin(way)], 1))[pushed]
        self.object[pushed] = (middle - 0.15 * size * np.stack([np.cos(way), np.sin(way)], 1))[pushed]
        self.held = np.zeros(n, bool)
        return self._observations(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Move; the reward is minus what is left of the way to the goal. Padding in the actions does nothing."""
        if actions.shape != (self.num_envs, self.width):
            raise DataError(f"actions of shape {actions.shape}: this world takes {(self.num_envs, self.width)}")
        turned = np.clip(actions[:, self.mask], -1, 1)
        turned = turned + self.noise * self._rng.standard_normal(turned.shape)
        self.angles = self.angles + SPEED * self._signs * turned
        tip = self.tip
        away = self.object - tip
        distance = np.linalg.norm(away, axis=1)
        shoved = (self.task == TASKS.index("push")) & (distance < CONTACT)
        push_to = tip + CONTACT * away / np.maximum(distance, 1e-9)[:, None]
        self.object = np.where(shoved[:, None], push_to, self.object)
        self.held |= (self.task == TASKS.index("carry")) & (distance < GRIP)
        self.object = np.where(self.held[:, None], tip, self.object)
        moved = np.where((self.task == TASKS.index("reach"))[:, None], tip, self.object)
        left = np.linalg.norm(self.goal - moved, axis=1)
        success = left < self.tolerance
        return self._observations(), -left, success, np.zeros(self.num_envs, bool), {"success": success}

    @property
    def tip(self) -> np.ndarray:
        """The end of the last link, (num_envs, 2)."""
        return self.arm.positions(self.angles)[:, -1]

    def _observations(self) -> np.ndarray:
        padding = ((0, 0), (0, self.width - self.arm.joints))
        joints = [np.pad(function(self.angles), padding) for function in (np.cos, np.sin)]
        there = (self.task != TASKS.index("reach"))[:, None]
        tip, thing = self.tip, [(self.object - self.tip), (self.goal - self.object)]
        parts = [*joints, tip, self.goal - tip, *(there * part for part in thing), np.eye(len(TASKS))[self.task]]
        return np.concatenate(parts, 1).astype(np.float32)


def expert(world: PlanarArms) -> Callable[[np.ndarray], np.ndarray]:
    """A policy that does the tasks of `world`, whose state it reads: the tip's way, by damped least squares."""

    def act(observation: np.ndarray) -> np.ndarray:
        tip, goal, thing = world.tip, world.goal, world.object
        carried = np.where(world.held[:, None], goal, thing)
        targets = np.stack([goal, _behind(tip, thing, goal), carried])  # in the order of TASKS
        way = targets[world.task, np.arange(world.num_envs)] - tip
        way *= np.minimum(1, PACE / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9))
        jacobian = world.arm.jacobian(world.angles)
        square = jacobian @ jacobian.swapaxes(1, 2) + 0.02 * np.eye(2)
        turn = (jacobian.swapaxes(1, 2) @ np.linalg.solve(square, way[:, :, None]))[:, :, 0]
        action = turn * world._signs / SPEED
        action /= np.maximum(1, np.abs(action).max(1, keepdims=True))
        return np.pad(action, ((0, 0), (0, world.width - world.arm.joints))).astype(np.float32)

    return act


def _behind(tip: np.ndarray, thing: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Where a tip goes that pushes `thing` to `goal`: round it, behind it, through it, without a jump."""
    ahead = goal - thing
    ahead /= np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-9)
    across = np.stack([-ahead[:, 1], ahead[:, 0]], 1)
    seen = tip - thing
    distance = np.maximum(np.linalg.norm(seen, axis=1), 1e-9)
    along, aside = (seen * ahead).sum(1), (seen * across).sum(1)
    astray = np.arctan2(aside, -along)  # 0 where the tip is right behind the thing
    through = np.clip(2 - np.abs(astray) / 0.35, 0, 1) * np.clip((2 * CONTACT - distance) / (0.5 * CONTACT), 0, 1)
    onward = astray - np.sign(astray) * np.minimum(np.abs(astray), 0.9)  # along a circle, a part of the way
    circle = 1.25 * CONTACT * (np.sin(onward)[:, None] * across - np.cos(onward)[:, None] * ahead)
    return thing + (1 - through)[:, None] * circle + 0.5 * CONTACT * through[:, None] * ahead


def _around(rng: np.random.Generator, n: int, nearest: float, farthest: float) -> np.ndarray:
    """Points (n, 2) above the origin, even in angle and distance."""
    angle, distance = rng.uniform(0.1 * np.pi, 0.9 * np.pi, n), rng.uniform(nearest, farthest, n)
    return distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
