"""Episodes of simulated robots, with the simulators replaced by small ones of the same interface."""

import sys
import types

import numpy as np
import pytest

from monochord.data import DataError, robots


class Expert:
    """Goes straight for the goal, which is the last three of 39 numbers."""

    def get_action(self, seen):
        return np.append(5 * (seen[-3:] - seen[:3]), 0)


class World:
    """A hand that moves by a tenth of each action towards a goal of the seed's."""

    action_space = None

    def __init__(self, seed=0, **options):
        self.seed, self.closed = seed, False

    def reset(self, seed=None):
        self.hand, self.goal = np.zeros(3), np.random.default_rng(seed).uniform(-1, 1, 3)
        return self._seen(), {}

    def step(self, action):
        assert action.shape == (4,) and np.abs(action).max() <= 1
        self.hand = self.hand + 0.1 * action[:3]
        far = np.linalg.norm(self.hand - self.goal)
        return self._seen(), -far, False, False, {"success": float(far < 0.1)}

    def _seen(self):
        return np.concatenate([self.hand, np.zeros(33), self.goal])

    def close(self):
        self.closed = True


@pytest.fixture
def metaworld(monkeypatch):
    policies = types.ModuleType("metaworld.policies")
    policies.ENV_POLICY_MAP = {"reach-v3": Expert, "push-v3": Expert}
    package = types.ModuleType("metaworld")
    package.policies = policies
    gymnasium = types.ModuleType("gymnasium")
    gymnasium.make = lambda name, **options: World(**options)
    for name, module in (("metaworld", package), ("metaworld.policies", policies), ("gymnasium", gymnasium)):
        monkeypatch.setitem(sys.modules, name, module)


def test_experts_reach_their_goals(metaworld):
    assert robots.metaworld_tasks() == ("push-v3", "reach-v3")
    found = robots.metaworld_experts("reach-v3", 3, seed=4)
    assert len(found) == 3 and found.observations.shape[1] == 39 and found.actions.shape[1] == 4
    assert found.tasks == ("reach-v3",) * 3
    for episode in found:
        first = np.flatnonzero(episode.extra["success"])[0]
        assert len(episode.rewards) == first + 1 + robots.AFTER and episode.done[-1] and not episode.done[:-1].any()
        assert np.array_equal(episode.extra["next_observations"][:-1], episode.observations[1:])
    goals = [episode.observations[0, -3:] for episode in found]
    assert not np.allclose(goals[0], goals[1])
    again = robots.metaworld_experts("reach-v3", 3, seed=4)
    assert np.array_equal(again.observations, found.observations)
    noisy = robots.metaworld_experts("reach-v3", 3, seed=4, noise=0.5)
    assert not np.allclose(noisy.actions[:5], found.actions[:5])
    short = robots.metaworld_experts("reach-v3", 1, steps=2)
    assert len(short.rewards) == 2 and not short.done.any()


def test_unknown_tasks_and_arms_are_named(metaworld):
    with pytest.raises(DataError, match="no task 'reach': did you mean reach-v3"):
        robots.metaworld_experts("reach")
    with pytest.raises(DataError, match="no arm 'Pandas': use one of Panda, Sawyer"):
        robots.robosuite_episodes(arm="Pandas")


def test_a_missing_simulator_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    monkeypatch.setitem(sys.modules, "metaworld.policies", None)
    with pytest.raises(DataError, match=r"needs metaworld: pip install 'monochord\[robots\]'"):
        robots.metaworld_tasks()


def test_arms_move_at_random_in_the_same_actions(monkeypatch):
    class Arm:
        action_dim = 7

        def __init__(self, task, robots, seed, **options):
            assert (task, robots) == ("Lift", "UR5e") and not options["use_camera_obs"]

        def reset(self):
            self.place = np.zeros(7)
            return self._seen()

        def step(self, action):
            self.place = self.place + action
            return self._seen(), 0.25, False, {}

        def _seen(self):
            return {"robot0_proprio-state": self.place, "object-state": np.zeros(10), "other": np.zeros(3)}

        def close(self):
            pass

    suite = types.ModuleType("robosuite")
    suite.make = lambda task, **options: Arm(task, **options)
    monkeypatch.setitem(sys.modules, "robosuite", suite)
    found = robots.robosuite_episodes(arm="UR5e", steps=20)
    assert len(found) == 2 and found.observations.shape == (40, 17) and found.actions.shape == (40, 7)
    assert np.allclose(found.observations[1, :7], found.actions[0]) and found.tasks[0] == "Lift with UR5e"
    assert not np.array_equal(found.actions[:20], found.actions[20:])
