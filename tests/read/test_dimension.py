"""Intrinsic dimension of clouds whose dimension is known."""

import numpy as np
import pytest
import torch

from monochord.read.dimension import MLE, Local, LocalPCA, TwoNN, distinct


def cube(d, n=2000, ambient=50, seed=0):
    g = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(ambient, d, generator=g, dtype=torch.float64)).Q
    return torch.rand(n, d, generator=g, dtype=torch.float64) @ frame.T


def two_nn_by_hand(points, discard=0.1):
    x = points.numpy()
    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    near = np.sort(distances, 1)[:, 1:3]
    logs = np.sort(np.log(near[:, 1] / near[:, 0]))[: int(len(x) * (1 - discard))]
    heights = -np.log(1 - np.arange(len(logs)) / len(x))
    return (logs * heights).sum() / (logs**2).sum()


@pytest.mark.parametrize(("d", "error"), [(1, 0.1), (2, 0.1), (5, 0.12), (10, 0.2)])
def test_the_dimension_of_cubes(d, error):
    assert TwoNN()(cube(d)) == pytest.approx(d, rel=error)
    assert MLE()(cube(d)) == pytest.approx(d, rel=0.25)
    assert LocalPCA()(cube(d)) == d


def test_two_nn_is_its_definition():
    points = cube(3, n=200)
    assert TwoNN()(points) == pytest.approx(two_nn_by_hand(points), rel=1e-9)
    cloud = points[None]
    squared = (cloud[:, :, None] - cloud[:, None]).square().sum(-1)
    assert float(TwoNN().of_distances(squared)) == pytest.approx(two_nn_by_hand(points), rel=1e-9)


def test_nothing_depends_on_place_size_or_direction():
    points = cube(3, n=400, ambient=8)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    moved = 7 * points @ turn + 3
    assert TwoNN()(moved) == pytest.approx(TwoNN()(points), rel=1e-6)
    torch.testing.assert_close(Local(neighbours=40)(moved), Local(neighbours=40)(points), rtol=1e-5, atol=1e-6)


def test_local_dimension_is_that_of_each_neighbourhood():
    points = cube(2, n=150, ambient=6)
    found = Local(neighbours=30)(points)
    squared = (points[:, None] - points[None]).square().sum(-1)
    for i in (0, 77, 149):
        near = squared[i].argsort()[1:31]
        assert float(found[i]) == pytest.approx(two_nn_by_hand(points[near]), rel=1e-6)


def test_a_line_and_a_ball_are_told_apart():
    line = (
        torch.rand(600, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ torch.ones(1, 10).double()
    )
    ball = torch.randn(600, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ball = torch.nn.functional.pad(ball, (0, 5)) + 100
    local = Local(neighbours=60)(torch.cat([line, ball]))
    assert local[:600].mean() < 1.4 and local[600:].mean() > 3


def test_local_means_rise_with_the_dimension():
    means = [float(Local(neighbours=64)(cube(d, n=1200)).mean()) for d in (1, 2, 5, 10)]
    assert means == sorted(means) and all(abs(m / d - 1) < 0.3 for m, d in zip(means, (1, 2, 5, 10), strict=True))


def test_duplicates_are_dropped_and_too_few_points_refused():
    points = cube(2, n=100)
    twice = torch.cat([points, points[:50]])
    assert torch.equal(distinct(twice, 1), points) and TwoNN()(twice) == TwoNN()(points)
    with pytest.raises(ValueError, match="9 distinct points are too few: at least 10"):
        TwoNN()(points[:9])
    with pytest.raises(ValueError, match=r"points must be \(n, d\), got \(3,\)"):
        TwoNN()(torch.zeros(3))
