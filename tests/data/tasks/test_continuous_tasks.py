"""Regression, parity, pictures and streams against what can be computed from their truth."""

import numpy as np
import pytest

from monochord.data import DataError, data
from monochord.data.tasks.concept_shapes import ConceptShapes
from monochord.data.tasks.linear_regression import LinearRegression
from monochord.data.tasks.power_law_stream import ENVIRONMENTS, PowerLawStream
from monochord.data.tasks.sparse_parity import SparseParity


def rng():
    return np.random.default_rng(0)


def test_regression_without_noise_is_solved_by_least_squares():
    problems = LinearRegression(points=12, features=5, noise=0).draw(20, rng())
    for row in range(20):
        x, y = problems["x"][row], problems["y"][row]
        weight = np.linalg.lstsq(x[:-1], y[:-1], rcond=None)[0]
        assert np.allclose(weight, problems["weight"][row], atol=1e-4)
        assert np.isclose(x[-1] @ weight, problems["clean"][row], atol=1e-3)
        other = np.linalg.lstsq(x, problems["counterfactual_y"][row], rcond=None)
        assert other[1].sum() < 1e-6 and not np.allclose(other[0], weight, atol=0.1)
    with pytest.raises(DataError, match="noise above 0"):
        LinearRegression(noise=0).bayes(problems["x"], problems["y"])


def test_the_best_predictor_is_best_where_its_prior_holds():
    errors = {}
    for share in (0.0, 0.5, 1.0):
        task = LinearRegression(points=6, features=6, noise=0.7, discrete=share, fixed_tasks=16)
        problems = task.draw(3000, rng())
        assert abs(problems["is_discrete"].mean() - share) < 0.05
        fixed = {tuple(w) for w in task.tasks().astype(np.float32)}
        told = [tuple(w) in fixed for w in problems["weight"]]
        assert told == problems["is_discrete"].tolist()
        errors[share] = [((p - problems["clean"]) ** 2).mean() for p in task.bayes(problems["x"], problems["y"])]
    assert errors[0.0][0] < errors[0.0][1] and errors[1.0][1] < 0.5 * errors[1.0][0]
    assert np.isclose(errors[0.0][2], errors[0.0][0]) and np.isclose(errors[1.0][2], errors[1.0][1])
    assert errors[0.5][2] < 0.9 * min(errors[0.5][:2])


def test_ridge_is_the_continuous_prediction():
    from sklearn.linear_model import Ridge

    task = LinearRegression(points=10, features=4, noise=0.5, spread=2.0)
    problems = task.draw(10, rng())
    said = task.bayes(problems["x"], problems["y"])[0]
    for row in range(10):
        x, y = problems["x"][row].astype(float), problems["y"][row].astype(float)
        ridge = Ridge(alpha=0.5**2 / 2.0**2, fit_intercept=False).fit(x[:-1], y[:-1])
        assert np.isclose(ridge.predict(x[-1:])[0], said[row], atol=1e-5)


def test_parity_depends_on_its_subset_alone():
    task = SparseParity(bits=20, relevant=4, task_seed=2)
    problems = task.draw(2000, rng())
    on = problems["x"][:, task.subset] < 0
    assert np.array_equal(problems["label"], on.sum(1) % 2) and 0.45 < problems["label"].mean() < 0.55
    assert np.array_equal(task.label(problems["counterfactual_x"]), 1 - problems["label"])
    assert np.array_equal(task.label(problems["irrelevant_x"]), problems["label"])
    for name, bit in (("counterfactual_x", "flipped"), ("irrelevant_x", "irrelevant")):
        row, where = np.nonzero(problems["x"] != problems[name])
        assert len(row) == 2000 and np.array_equal(where, problems[bit])
    assert set(problems["flipped"]) == set(task.subset) and not set(problems["irrelevant"]) & set(task.subset)
    correlation = np.abs((problems["x"] * (problems["label"] * 2 - 1)[:, None]).mean(0))
    assert correlation.max() < 0.1  # no bit alone tells anything
    with pytest.raises(DataError, match="relevant=20"):
        SparseParity(bits=20, relevant=20)


@pytest.mark.parametrize("shapes", [False, True])
def test_shapes_show_their_factors(shapes):
    task = ConceptShapes(shapes=shapes, held_out=(1, 1, 1) if shapes else (1, 1))
    problems = task.draw(200, rng())
    images, factors = problems["image"] / 255, problems["factors"]
    background = factors[:, 6][:, None, None]
    ink = (background - images[..., 1]) / (background - 0.4)  # green is 0.4 in every object: how much it covers
    area = ink.clip(0, 1).sum((1, 2)) / 32**2
    assert np.abs(area / (np.pi * factors[:, 2] ** 2) - 1).max() < 0.05
    inside = ink > 0.99
    for channel, factor in ((0, 3), (2, 5)):
        mean = (images[..., channel] * inside).sum((1, 2)) / inside.sum((1, 2))
        assert np.abs(mean - factors[:, factor]).max() < 0.02
    at = (np.arange(32) + 0.5) / 32
    middle = np.stack([(ink * at[:, None]).sum((1, 2)), (ink * at).sum((1, 2))], 1) / ink.sum((1, 2))[:, None]
    assert np.abs(middle - factors[:, :2]).max() < 0.02
    bluer = images[..., 2].mean((1, 2)) > images[..., 0].mean((1, 2))
    assert np.array_equal(bluer, problems["concepts"][:, 0] == 1)
    small = area < np.pi * 0.2**2
    assert np.array_equal(small, problems["concepts"][:, 1] == 1)
    assert set(problems["concepts"][:, 2]) == ({0, 1} if shapes else {0})


def test_the_held_out_combination_is_in_the_test_split_only():
    dataset = data("concept-shapes", n=100, held_out=(0, 1))
    for name, split in dataset.splits.items():
        combinations = set(map(tuple, split["concepts"][:, :2]))
        assert combinations == ({(0, 1)} if name == "test" else {(0, 0), (1, 0), (1, 1)})
    strong, weak = (ConceptShapes(colour_signal=s).draw(50, rng())["factors"] for s in (0.8, 0.2))
    assert np.ptp(strong[:, 3]) > 3 * np.ptp(weak[:, 3])
    with pytest.raises(DataError, match="held_out="):
        ConceptShapes(held_out=(1, 1, 1))


def test_power_law_counts():
    stream = PowerLawStream(tasks=6, rehearsed=300)
    for phase in range(6):
        counts = stream.counts(phase)
        assert counts.sum() == (300 if phase else 0)
        share = np.arange(phase, 0, -1) ** -1.0
        assert np.abs(counts - 300 * share / max(share.sum(), 1)).max(initial=0) < 1
    assert PowerLawStream(rehearsed=300, environment="uniform").counts(3).tolist() == [100, 100, 100]
    assert PowerLawStream(rehearsed=300, environment="recent").counts(3).tolist() == [0, 0, 300]
    assert PowerLawStream(environment="none").counts(3).tolist() == [0, 0, 0]
    ratio = PowerLawStream(rehearsed=10**6, environment="exponential", exponent=0.5).counts(5)
    assert np.allclose(ratio[1:] / ratio[:-1], np.exp(0.5), rtol=1e-3)
    with pytest.raises(DataError, match="unknown environment 'log'"):
        PowerLawStream(environment="log")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_phases_permute_and_come_back(environment):
    x, label = rng().random((40, 4, 4)), np.arange(40)
    stream = PowerLawStream(tasks=4, rehearsed=12, environment=environment, mix="after", seed=1)
    phases = stream.phases(x, label)
    for number, phase in enumerate(phases):
        split = phase["train"]
        assert np.bincount(split["task"], minlength=4)[:number].tolist() == stream.counts(number).tolist()
        assert (split["task"][:40] == number).all() and sorted(split["label"][:40]) == list(range(40))
        for values, one, task in zip(split["x"], split["label"], split["task"], strict=True):
            assert np.array_equal(values, x[one].ravel()[stream.permutation(task, 16)])
    mixed = PowerLawStream(tasks=2, rehearsed=40, seed=1).phases(x, label)[1]["train"]["task"]
    assert 5 < mixed[:40].sum() < 35


def test_streams_of_the_catalog():
    dataset = data("power-law-stream", n=50, tasks=3, rehearsed=10)
    assert {name: len(split) for name, split in dataset.splits.items() if "phase" in name} == {
        "phase-0": 50,
        "phase-1": 60,
        "phase-2": 60,
    }
    one, two = (np.sort(dataset[f"test-{k}"]["x"], axis=1) for k in (0, 2))
    assert np.array_equal(one, two) and not np.array_equal(dataset["test-0"]["x"], dataset["test-2"]["x"])
    with pytest.raises(DataError, match="needs image or x"):
        data("power-law-stream", dataset="induction")
