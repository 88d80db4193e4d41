"""Generated sequences obey their equations, depend on their seed alone, and are as chaotic as is known."""

import numpy as np
import pytest

from monochord.data import DataError, data
from monochord.data.sequences import henon, lorenz, lorenz96, mackey_glass, narma, rossler


@pytest.mark.parametrize("make", [mackey_glass, lorenz, lorenz96, rossler, henon])
def test_the_same_seed_gives_the_same_sequence(make):
    one, again, other = make(150, 3), make(150, 3), make(150, 4)
    assert np.array_equal(one, again) and not np.allclose(one, other)
    assert np.allclose(make(100, 3), one[:100]) and len(one) == 150


@pytest.mark.parametrize(
    ("make", "flow"),
    [
        (lorenz, lambda s: [10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]]),
        (rossler, lambda s: [-s[1] - s[2], s[0] + 0.2 * s[1], 0.2 + s[2] * (s[0] - 5.7)]),
    ],
)
def test_flows_have_the_slope_of_their_equation(make, flow):
    h = 1e-3
    states = make(3, h=h)
    slope = (states[2] - states[0]) / (2 * h)
    assert np.allclose(slope, flow(states[1]), rtol=1e-3, atol=1e-3)


def test_the_integrator_is_of_fourth_order():
    """Halving the step divides the error by about sixteen: compared with a much finer one, from the same start."""
    from monochord.data.sequences import _integrated

    flow = lambda x: np.array([x[1], -x[0]])
    errors = []
    for h in (0.2, 0.1):
        end = _integrated(flow, np.array([1.0, 0.0]), round(2 / h) + 1, h, 0)[-1]
        errors.append(np.linalg.norm(end - [np.cos(2.0), -np.sin(2.0)]))
    assert 13 < errors[0] / errors[1] < 19


def test_mackey_glass_obeys_its_delay():
    fine = mackey_glass(400, 0)[:, 0]
    assert 0.2 < fine.min() < 0.5 and 1.2 < fine.max() < 1.5
    middle = fine[18:-1]
    slope = (fine[19:] - fine[17:-2]) / 2
    past = fine[1:-18]
    drive = 0.2 * past / (1 + past**10) - 0.1 * middle
    assert np.corrcoef(slope, drive)[0, 1] > 0.99
    still = mackey_glass(400, 0, tau=3.0)[-100:, 0]
    assert still.std() < 1e-3 and fine.std() > 0.15  # a short delay settles
    with pytest.raises(DataError, match="positive multiple"):
        mackey_glass(10, tau=0.05)


def test_lorenz_forgets_its_start_at_the_known_rate():
    """Neighbours part as exp(0.9 t): the largest exponent is 0.906."""
    from monochord.data.sequences import _integrated

    flow = lambda s: np.array([10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]])
    growth = []
    for start in lorenz(2000, 0)[::250]:
        near, far = (_integrated(flow, start + offset, 400, 0.02, 0) for offset in (0, np.array([1e-8, 0, 0])))
        growth.append(np.log(np.linalg.norm(near[-1] - far[-1]) / 1e-8) / 8)
    assert np.mean(growth) == pytest.approx(0.906, abs=0.35)


def test_maps_obey_their_recursion():
    xy = henon(50)
    assert np.allclose(xy[1:, 0], 1 - 1.4 * xy[:-1, 0] ** 2 + xy[:-1, 1]) and np.allclose(xy[1:, 1], 0.3 * xy[:-1, 0])
    u, y = (part[:, 0] for part in narma(300, 1))
    assert u.min() >= 0 and u.max() <= 0.5
    for t in range(10, 299):
        assert y[t + 1] == pytest.approx(
            0.3 * y[t] + 0.05 * y[t] * y[t - 9 : t + 1].sum() + 1.5 * u[t - 9] * u[t] + 0.1
        )
    assert np.abs(narma(500, order=20)[1]).max() < 1


def test_ring_of_lorenz_96_has_its_neighbours():
    x = lorenz96(200, variables=12, h=0.001)
    slope = (x[2] - x[0]) / 0.002
    middle = x[1]
    assert np.allclose(slope, (np.roll(middle, -1) - np.roll(middle, 2)) * np.roll(middle, 1) - middle + 8, atol=1e-2)
    with pytest.raises(DataError, match="at least 4"):
        lorenz96(10, variables=3)


def test_splits_follow_each_other_in_time():
    dataset = data("lorenz", steps=1000, seed=2)
    parts = [dataset[name]["value"] for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [700, 100, 200] and np.array_equal(np.concatenate(parts), lorenz(1000, 2))
    narma_10 = data("narma-10", steps=200)
    assert narma_10["test"].columns == ("input", "value")
    with pytest.raises(DataError, match="at least 100"):
        data("henon", steps=10)
