"""A point that acts on velocity, seen as pictures among distractors: a world of many episodes at once, in numpy.

    world = PixelPointMass(300, patches)           # patches (n, side, side, 3) of real pictures that drift about
    episodes = demonstrations(world, steps=50)     # the expert knows the goal, the picture does not show it
    rollout(policy, world, steps=30)

The suite follows the point mass of "Inverse Dynamics Pretraining Learns Good Representations for Multitask
Imitation", May 26, 2023, at 32 pixels. Worlds speak gymnasium's vector interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.rollouts import rollout
from monochord.data.trajectories import Trajectories

BODY, MARK, GROUND = (255.0, 20.0, 200.0), (40.0, 90.0, 220.0), 105.0


class PixelWorld(ABC):
    """`num_envs` bodies moved by first-order dynamics, `state + step * action + noise`, with actions from -1 to 1.

    Observations are (num_envs, side, side, 3), uint8. `patches` (n, s, s, 3), uint8, are pasted `distractors` at a time
    under the body and drift each on its own. `goals` (num_envs, 2), states to come to, are drawn anew at each reset
    where none are given; `visible` marks them in the picture. An episode is at its goal within `near`. What is known
    beside the picture are `state`, `position` and `success`, each with a row an environment.
    """

    step_size = 0.2
    near = 0.1

    def __init__(
        self,
        num_envs: int,
        patches: np.ndarray | None = None,
        *,
        goals: np.ndarray | None = None,
        visible: bool = False,
        distractors: int = 3,
        side: int = 32,
        noise: float = 0.01,
    ) -> None:
        if num_envs < 1:
            raise DataError(f"num_envs={num_envs}: a world needs at least 1")
        if goals is not None and np.shape(goals) != (num_envs, 2):
            raise DataError(f"goals of shape {np.shape(goals)} for {num_envs} episodes: use ({num_envs}, 2)")
        self.patches = np.zeros((0, 1, 1, 3), np.uint8) if patches is None else np.asarray(patches)
        if self.patches.ndim != 4 or self.patches.shape[1] != self.patches.shape[2] or self.patches.shape[1] > side:
            raise DataError(f"patches of shape {self.patches.shape}: use (n, s, s, 3) with s at most {side}")
        self.num_envs, self.given, self.visible, self.side, self.noise = num_envs, goals, visible, side, noise
        self.distractors = distractors if len(self.patches) else 0
        self.reset(seed=0)

    @abstractmethod
    def draw(self, n: int) -> np.ndarray:
        """Random states (n, 2)."""

    @abstractmethod
    def bounded(self, state: np.ndarray) -> np.ndarray:
        """States (n, 2) as the world allows them."""

    @abstractmethod
    def towards(self) -> np.ndarray:
        """The way from each state to its goal, (num_envs, 2)."""

    @abstractmethod
    def place(self, state: np.ndarray) -> np.ndarray:
        """Where the body is that must come to its goal, (n, 2) from -1 to 1."""

    @abstractmethod
    def cover(self, state: np.ndarray) -> np.ndarray:
        """How much of each pixel the body covers, (n, side, side) from 0 to 1."""

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """New places, distractors and, unless they were given, goals."""
        if seed is not None or not hasattr(self, "rng"):
            self.rng = np.random.default_rng(seed)
        self.goals = self.draw(self.num_envs) if self.given is None else np.asarray(self.given, np.float64)
        self.state = self.draw(self.num_envs)
        shape, room = (self.num_envs, self.distractors), self.side - self.patches.shape[1]
        self.shown = self.rng.integers(max(len(self.patches), 1), size=shape)
        self.at = self.rng.uniform(0, room, (*shape, 2))
        self.speed = self.rng.uniform(-1.5, 1.5, (*shape, 2))
        return self.render(), self.known()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Rewards are minus the distance to the goal. No episode ends by itself."""
        noise = self.noise * self.rng.standard_normal((self.num_envs, 2))
        self.state = self.bounded(self.state + self.step_size * np.clip(actions, -1, 1) + noise)
        room = self.side - self.patches.shape[1]
        moved = self.at + self.speed
        self.speed = np.where((moved < 0) | (moved > room), -self.speed, self.speed)
        self.at = moved.clip(0, room)
        known, never = self.known(), np.zeros(self.num_envs, bool)
        return self.render(), -known["distance"], never, never, known

    def known(self) -> dict[str, np.ndarray]:
        position = self.place(self.state)
        distance = np.linalg.norm(position - self.place(self.goals), axis=1)
        return {"state": self.state, "position": position, "distance": distance, "success": distance < self.near}

    def expert(self, gain: float = 5.0, noise: float = 0.0) -> np.ndarray:
        """Actions of who knows state and goal, (num_envs, 2); `noise` is the sd of what is added to them."""
        wanted = np.clip(gain * self.towards(), -1, 1)
        return np.clip(wanted + noise * self.rng.standard_normal(wanted.shape), -1, 1)

    def render(self) -> np.ndarray:
        canvas = np.full((self.num_envs, self.side, self.side, 3), GROUND, np.float32)
        size, every = np.arange(self.patches.shape[1]), np.arange(self.num_envs)[:, None, None]
        for i in range(self.distractors):
            x, y = np.rint(self.at[:, i]).astype(int).T
            canvas[every, y[:, None, None] + size[:, None], x[:, None, None] + size] = self.patches[self.shown[:, i]]
        if self.visible:
            _paint(canvas, self.disc(self.place(self.goals), 1.5), MARK)
        _paint(canvas, self.cover(self.state), BODY)
        return np.rint(canvas).astype(np.uint8)

    def disc(self, position: np.ndarray, radius: float) -> np.ndarray:
        """A disc of `radius` pixels at each position, its edge smooth: (n, side, side)."""
        across, down = (axis[:, :, None] for axis in self.pixels(position).T[:, :, None])
        ruler = np.arange(self.side, dtype=np.float32)
        distance = np.sqrt((ruler[None, None, :] - across) ** 2 + (ruler[None, :, None] - down) ** 2)
        return (radius + 0.5 - distance).clip(0, 1)

    def pixels(self, position: np.ndarray) -> np.ndarray:
        """Column and row of places from -1 to 1, two pixels from the border at the ends."""
        return (2 + (np.asarray(position) + 1) / 2 * (self.side - 5)).astype(np.float32)


class PixelPointMass(PixelWorld):
    """A disc of two pixels' radius in a square from -1 to 1; its state is where it is."""

    def draw(self, n: int) -> np.ndarray:
        return self.rng.uniform(-0.9, 0.9, (n, 2))

    def bounded(self, state: np.ndarray) -> np.ndarray:
        return state.clip(-1, 1)

    def towards(self) -> np.ndarray:
        return self.goals - self.state

    def place(self, state: np.ndarray) -> np.ndarray:
        return state

    def cover(self, state: np.ndarray) -> np.ndarray:
        return self.disc(state, 2.0)


def demonstrations(world: PixelWorld, steps: int = 50, *, noise: float = 0.5, seed: int = 0) -> Trajectories:
    """An episode of the expert in each of the world's environments, with `state` and `position` in `extra`."""
    seen: list[dict[str, np.ndarray]] = []

    def act(_: np.ndarray) -> np.ndarray:
        seen.append(world.known())
        return world.expert(noise=noise)

    found = rollout(act, world, steps, seed=seed)
    beside = {
        name: np.stack([known[name] for known in seen], 1).reshape(-1, 2).astype(np.float32)
        for name in ("state", "position")
    }
    kept = {name: column for name, column in found.extra.items() if name != "next_observations"}
    return replace(found, actions=found.actions.astype(np.float32), extra={**kept, **beside})


def _paint(canvas: np.ndarray, cover: np.ndarray, colour: tuple[float, float, float]) -> None:
    canvas += cover[..., None] * (np.array(colour, np.float32) - canvas)
