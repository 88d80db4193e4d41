"""Planar arms: geometry, the three tasks, what padding and signs do, and chunks of what the expert did."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monochord.data.arms import PACE, SPEED, TASKS, Arm, PlanarArms, expert
from monochord.data.chunks import RecedingHorizon, action_chunks
from monochord.data.dataset import DataError
from monochord.data.rollouts import rollout, success_rate
from monochord.data.trajectories import Trajectories

ARMS = (Arm((0.5, 0.5)), Arm((0.4, 0.35, 0.25)), Arm((0.3, 0.3, 0.2, 0.2), (1, -1, 1, -1)))


@given(st.lists(st.floats(0.1, 2), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_jacobian_is_the_derivative_of_the_tip(lengths, seed):
    arm = Arm(tuple(lengths))
    angles = np.random.default_rng(seed).uniform(-3, 3, arm.joints)
    steps = 1e-6 * np.eye(arm.joints)
    moved = (arm.positions(angles + steps)[:, -1] - arm.positions(angles - steps)[:, -1]) / 2e-6
    np.testing.assert_allclose(arm.jacobian(angles), moved.T, atol=1e-7)
    assert np.linalg.norm(arm.positions(angles)[-1]) <= sum(lengths) + 1e-9


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: str(arm.joints))
@pytest.mark.parametrize("task", TASKS)
def test_the_expert_does_every_task_with_every_arm_and_a_random_policy_does_not(arm, task):
    world = PlanarArms(arm, task, 60, width=5)
    assert success_rate(rollout(expert(world), world, 64)) > 0.9
    rng = np.random.default_rng(0)
    assert success_rate(rollout(lambda seen: rng.uniform(-1, 1, (60, 5)), world, 30)) < 0.4


def test_padding_does_nothing_and_a_sign_turns_the_other_way():
    turned = {}
    for signs in ((1, 1), (1, -1)):
        world = PlanarArms(Arm((0.5, 0.5), signs), "reach", 4, width=6)
        seen, _ = world.reset(seed=3)
        before, actions = world.angles.copy(), np.full((4, 6), 0.5)
        after = world.step(actions)[0]
        turned[signs] = world.angles - before
        world.reset(seed=3)
        actions[:, 2:] = 9
        assert (world.step(actions)[0] == after).all() and seen.shape == after.shape == (4, 23)
    np.testing.assert_allclose(turned[1, 1], SPEED / 2)
    np.testing.assert_allclose(turned[1, -1], [[SPEED / 2, -SPEED / 2]] * 4)


def test_a_push_needs_contact_and_what_is_carried_sticks():
    world = PlanarArms(ARMS[0], ("push", "carry"), 40)
    world.reset(seed=0)
    start, still = world.object.copy(), np.zeros((40, 2))
    for _ in range(3):
        world.step(still)
    far = np.linalg.norm(start - world.tip, axis=1) > 0.16
    assert (world.object[far] == start[far]).all() and far.any()
    world.reset(seed=0)
    act = expert(world)
    for _ in range(64):
        _, reward, ended, _, known = world.step(act(still))
        assert (ended == known["success"]).all() and (reward <= 0).all()
    assert world.held[1::2].all() and not world.held[::2].any()
    np.testing.assert_array_equal(world.object[1::2], world.tip[1::2])


def test_the_same_seed_is_the_same_episode_and_the_expert_keeps_its_pace():
    found = []
    for _ in range(2):
        world = PlanarArms(ARMS[2], TASKS, 9, noise=0.2)
        found.append(rollout(expert(world), world, 10, seed=5))
    np.testing.assert_array_equal(found[0].actions, found[1].actions)
    assert np.abs(found[0].actions).max() <= 1
    world = PlanarArms(ARMS[2], "reach", 20)
    world.reset(seed=1)
    before = world.tip
    world.step(expert(world)(before))
    assert np.linalg.norm(world.tip - before, axis=1).max() < 1.3 * PACE


@pytest.mark.parametrize(
    "make,message",
    [(lambda: Arm(()), "at least one link"), (lambda: Arm((1, 1), (1,)), "give 1 or -1 for each"),
     (lambda: PlanarArms(ARMS[0], "fly"), "use reach, push, carry"),
     (lambda: PlanarArms(ARMS[2], "reach", width=3), "arm of 4 joints"),
     (lambda: PlanarArms(ARMS[0], "reach", 2).step(np.zeros((2, 3))), r"takes \(2, 2\)"),
     (lambda: RecedingHorizon(lambda seen: seen, 0), "at least 1 step")],
)  # fmt: skip
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


def _counted():
    steps = np.array([0, 1, 2, 0, 1])
    return Trajectories(
        steps[:, None].astype(float), np.stack([steps + 1, -steps - 1], 1), np.zeros(5), np.zeros(5, bool),
        np.repeat([0, 1], [3, 2]),
    )  # fmt: skip


def test_chunks_stop_at_the_end_of_an_episode_and_are_padded():
    made = action_chunks(_counted(), 3, dims=3)
    assert made["actions"][:, :, 0].tolist() == [[1, 2, 3], [2, 3, 0], [3, 0, 0], [1, 2, 0], [2, 0, 0]]
    assert (made["actions"][:, :, 1] == -made["actions"][:, :, 0]).all() and not made["actions"][:, :, 2].any()
    assert made["condition"].tolist() == [[0], [1], [2], [0], [1]]
    with pytest.raises(DataError, match="room for 2 actions"):
        action_chunks(_counted(), 3, dims=1)


def test_a_receding_horizon_plans_anew_after_the_steps_it_carries_out():
    asked = []

    def plan(seen):
        asked.append(float(seen[0, 0]))
        return np.arange(4.0)[None, :, None] + 10 * len(asked)

    policy = RecedingHorizon(plan, 3)
    assert [float(policy(np.full((1, 1), t))[0, 0]) for t in range(7)] == [10, 11, 12, 20, 21, 22, 30]
    assert asked == [0, 3, 6]
