"""The Fréchet distance: against its formula, and where it must be nothing."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from monochord.diffusion.frechet import frechet_distance


def test_it_is_that_of_two_gaussians():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(300, 6)), rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1
    first, second = np.cov(one.T), np.cov(other.T)
    means = np.square(one.mean(0) - other.mean(0)).sum()
    expected = means + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(torch.from_numpy(one), torch.from_numpy(other)) == pytest.approx(expected, rel=1e-8)


def test_of_a_set_to_itself_and_to_itself_moved():
    rows = np.random.default_rng(1).normal(size=(20, 40)).astype(np.float32)  # fewer rows than features
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(rows, rows + np.float32(0.5)) == pytest.approx(40 * 0.25, rel=1e-3)


@pytest.mark.parametrize("other", [np.zeros((1, 3)), np.zeros((5, 2)), np.zeros(5)])
def test_sets_that_do_not_fit_are_refused(other):
    with pytest.raises(ValueError, match="two sets of features"):
        frechet_distance(np.zeros((4, 3)), other)
