"""An arm of two joints, seen as pictures among distractors, whose hand must come to a place.

From the same family of worlds as `PixelPointMass`, with a state that is not where the goal is: joints in radians.

    world = PixelReacher(100, patches, visible=True)
    demonstrations(world, steps=40)
"""

from __future__ import annotations

import numpy as np

from monochord.data.point_mass import PixelWorld

LENGTHS = (0.5, 0.45)


class PixelReacher(PixelWorld):
    """The base is in the middle of a square from -1 to 1, the first joint turns freely, the second between 0.4 and 2.6.

    An action turns each joint by at most `step_size`; the elbow bends one way, so that a hand has one pair of joints.
    """

    near = 0.12

    def draw(self, n: int) -> np.ndarray:
        return np.stack([self.rng.uniform(-np.pi, np.pi, n), self.rng.uniform(0.5, 2.5, n)], 1)

    def bounded(self, state: np.ndarray) -> np.ndarray:
        return np.stack([_turned(state[:, 0]), state[:, 1].clip(0.4, 2.6)], 1)

    def towards(self) -> np.ndarray:
        way = self.goals - self.state
        return np.stack([_turned(way[:, 0]), way[:, 1]], 1) * 0.5  # joints are further apart than places

    def place(self, state: np.ndarray) -> np.ndarray:
        return self.elbow(state) + LENGTHS[1] * _direction(state.sum(1))

    def elbow(self, state: np.ndarray) -> np.ndarray:
        return LENGTHS[0] * _direction(state[:, 0])

    def cover(self, state: np.ndarray) -> np.ndarray:
        elbow = self.elbow(state)
        parts = [self.rod(np.zeros_like(elbow), elbow), self.rod(elbow, self.place(state))]
        return np.maximum(*parts)

    def rod(self, one: np.ndarray, other: np.ndarray, radius: float = 1.0) -> np.ndarray:
        """A line of `radius` pixels to each side, with round ends: (n, side, side)."""
        start, end = self.pixels(one), self.pixels(other)
        ruler = np.arange(self.side, dtype=np.float32)
        across = ruler[None, None, :] - start[:, 0, None, None]
        down = ruler[None, :, None] - start[:, 1, None, None]
        x, y = ((end - start)[:, axis, None, None] for axis in (0, 1))
        share = ((across * x + down * y) / (x * x + y * y)).clip(0, 1)
        return (radius + 0.5 - np.sqrt((across - share * x) ** 2 + (down - share * y) ** 2)).clip(0, 1)


def _direction(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _turned(angle: np.ndarray) -> np.ndarray:
    """The same angle between -pi and pi."""
    return (angle + np.pi) % (2 * np.pi) - np.pi
