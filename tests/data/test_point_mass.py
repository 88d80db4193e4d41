"""Worlds of pixels: what is drawn is where it is, moves as said, and hides what it should."""

import numpy as np
import pytest

from monochord.data.dataset import DataError
from monochord.data.pixel_reacher import LENGTHS, PixelReacher
from monochord.data.point_mass import BODY, MARK, PixelPointMass, demonstrations
from monochord.data.rollouts import rollout, success_rate

WORLDS = [PixelPointMass, PixelReacher]
PATCHES = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3)).astype(np.uint8)


@pytest.mark.parametrize("world", WORLDS)
def test_the_seed_decides_everything_and_patches_drift_apart_from_the_body(world):
    one, other = (demonstrations(world(4, PATCHES), 6, seed=3) for _ in range(2))
    assert (one.observations == other.observations).all() and (one.actions == other.actions).all()
    assert one.observations.shape == (24, 32, 32, 3) and one.observations.dtype == np.uint8
    assert (demonstrations(world(4, PATCHES), 6, seed=4).observations != one.observations).any()
    bare = demonstrations(world(4), 6, seed=3)
    assert (bare.observations[0] != one.observations[0]).any()
    still = world(4, PATCHES)
    still.step_size, still.noise = 0.0, 0.0
    first, _ = still.reset(seed=0)
    assert (still.step(np.zeros((4, 2)))[0] != first).any()


def test_the_disc_is_drawn_where_the_state_is():
    world = PixelPointMass(200, noise=0.0)
    picture, known = world.reset(seed=1)
    cover = (picture.astype(float) - 105) @ (np.array(BODY) - 105)  # how far from the ground towards the body's colour
    weights = cover / cover.sum((1, 2), keepdims=True)
    ruler = np.arange(32)
    found = np.stack([(weights.sum(1) * ruler).sum(1), (weights.sum(2) * ruler).sum(1)], 1)
    np.testing.assert_allclose((found - 2) / 27 * 2 - 1, known["position"], atol=0.01)
    np.testing.assert_allclose(world.pixels(np.array([[-1.0, 1.0]])), [[2, 29]])


@pytest.mark.parametrize("world", WORLDS)
def test_dynamics_are_of_first_order_and_bounded(world):
    made = world(50, noise=0.0)
    made.reset(seed=0)
    made.state = made.state * 0.0 + 1.0
    made.step(np.full((50, 2), 0.5))
    np.testing.assert_allclose(made.state, 1.0 if world is PixelPointMass else 1.0 + 0.5 * world.step_size)
    before = made.state * 0.0 + 0.8
    made.state = before
    made.step(np.full((50, 2), -5.0))  # no further than an action of -1
    np.testing.assert_allclose(made.state, before - world.step_size)


@pytest.mark.parametrize("world", WORLDS)
def test_the_expert_comes_to_the_goal_and_who_stands_still_does_not(world):
    made = world(100, PATCHES[:1], distractors=1)
    assert success_rate(demonstrations(made, 50, noise=0.0, seed=1)) == 1.0
    assert success_rate(rollout(lambda seen: np.zeros((100, 2)), made, 50, seed=1)) < 0.2


@pytest.mark.parametrize("world", WORLDS)
def test_a_hidden_goal_is_not_in_the_picture_and_a_visible_one_is(world):
    goals = np.full((3, 2), 0.7)
    hidden = [world(3, PATCHES, goals=g).reset(seed=2)[0] for g in (goals, goals - 0.5)]
    assert (hidden[0] == hidden[1]).all()
    shown = world(3, goals=goals, visible=True)
    picture, _ = shown.reset(seed=2)
    column, row = np.rint(shown.pixels(shown.place(goals))[0]).astype(int)
    assert np.abs(picture[0, row, column] - np.array(MARK)).max() < 40
    assert (shown.goals == goals).all()


def test_what_is_beside_the_pictures_belongs_to_them():
    found = demonstrations(PixelPointMass(5, noise=0.0), 8, noise=0.0, seed=7)
    state = found.extra["state"].reshape(5, 8, 2)
    moved = found.actions.reshape(5, 8, 2)[:, :-1] * PixelPointMass.step_size
    np.testing.assert_allclose(np.diff(state, axis=1), moved, atol=1e-6)
    assert found.transitions(3)["action"].shape == (25, 2)


def test_the_arm_is_as_long_as_it_is_and_turns_over():
    world = PixelReacher(100)
    hand, elbow = world.place(world.state), world.elbow(world.state)
    np.testing.assert_allclose(np.linalg.norm(elbow, axis=1), LENGTHS[0])
    np.testing.assert_allclose(np.linalg.norm(hand - elbow, axis=1), LENGTHS[1])
    world.state, world.goals = np.full((100, 2), 3.1), np.full((100, 2), -3.1)
    assert (world.towards()[:, 0] > 0).all()  # the short way round


def test_bad_worlds_are_refused():
    with pytest.raises(DataError, match="at least 1"):
        PixelPointMass(0)
    with pytest.raises(DataError, match=r"goals of shape \(3, 2\) for 4 episodes"):
        PixelPointMass(4, goals=np.zeros((3, 2)))
    with pytest.raises(DataError, match="s at most 32"):
        PixelPointMass(4, np.zeros((2, 40, 40, 3)))
