"""Episodes of a policy in a world of many places at once."""

from __future__ import annotations

import numpy as np
import pytest

from monochord.data.dataset import DataError
from monochord.data.rollouts import rollout, success_rate


class Line:
    """Points on a line that start at 1, 2, 3; the one that comes to 0 is done."""

    num_envs = 3

    def reset(self, *, seed=None):
        self.at = np.arange(1.0, 4.0)[:, None] + (seed or 0)
        return self.at, {}

    def step(self, actions):
        self.at = self.at + actions
        there = self.at[:, 0] <= 0
        return self.at, -self.at[:, 0], there, np.zeros(3, bool), {"success": there}


def test_an_episode_ends_where_the_world_says_and_none_outlasts_the_steps():
    found = rollout(lambda seen: -np.ones_like(seen), Line(), steps=2, task="go home")
    assert np.bincount(found.episodes).tolist() == [1, 2, 2]
    assert found.done.tolist() == [True, False, True, False, False]
    assert found.observations[:, 0].tolist() == [1, 2, 1, 3, 2]
    assert found.extra["next_observations"][:, 0].tolist() == [0, 1, 0, 2, 1]
    assert success_rate(found) == pytest.approx(2 / 3)
    assert found.tasks == ("go home",) * 3


def test_bad_policies_and_lengths_are_refused():
    with pytest.raises(DataError, match=r"shape \(2, 1\) for 3 episodes"):
        rollout(lambda seen: seen[:2], Line(), steps=2)
    with pytest.raises(DataError, match="at least 1"):
        rollout(lambda seen: seen, Line(), steps=0)
