"""What methods are tried on: the same rows and batches for all, the rate by validation, a head beside every method."""

import numpy as np
import pytest
import torch

import monochord as mc
from monochord.adapt import BitFit
from monochord.data import DataError, Dataset, Split
from monochord.lab.problem import accuracy, classes, gradient


def dots(n, seed):
    """Grey pictures, bright on the left (class 3) or on the right (class 7)."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([3, 7, 9], n, p=[0.45, 0.45, 0.1])
    images = rng.integers(0, 60, (n, 32, 32)).astype(np.uint8)
    images[labels == 3, :, :16] += 150
    images[labels == 7, :, 16:] += 150
    return Split({"image": images, "label": labels.astype(np.int64)})


DATA = Dataset(
    "dots",
    "image-classification",
    {"train": dots(120, 0), "validation": dots(40, 1), "test": dots(60, 2)},
    tuple(str(i) for i in range(10)),
)


def problem(seed=0, **options):
    return classes("fashion-vit", DATA, seed=seed, train=64, validation=20, test=30, labels=[3, 7], **options)


def test_rows_are_drawn_by_the_seed_and_the_test_rows_are_the_same():
    first, again, other = problem(), problem(), problem(seed=1)
    assert torch.equal(first.batches(2)[1]["pixel_values"], again.batches(2)[1]["pixel_values"])
    assert not torch.equal(first.batches(2)[1]["pixel_values"], other.batches(2)[1]["pixel_values"])
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(first.test, other.test, strict=True))
    assert set(np.concatenate([b["labels"].numpy() for b in first.test])) == {0, 1}
    assert first.batches(1)[0]["pixel_values"].shape == (16, 3, 32, 32)


def test_the_rate_is_that_of_the_best_validation_and_the_head_is_not_counted():
    rates = (0.0, 3e-2)
    alone = [problem().best(BitFit, rates=(rate,), steps=10) for rate in rates]
    tried = problem().best(BitFit, rates, steps=10)
    chosen = max(alone, key=lambda one: one.validation)
    assert (tried.rate, tried.validation, tried.score) == (chosen.rate, chosen.validation, chosen.score)
    assert len({one.validation for one in alone}) > 1 and len(tried.losses) == 10
    vectors = sum(p.numel() for n, p in tried.model.named_parameters() if p.ndim == 1 and n.endswith("bias"))
    assert 0 < tried.trained <= vectors
    assert tried.score == accuracy(tried.model, problem().test)
    assert set(tried.measures("a_")) == {"a_score", "a_validation", "a_rate", "a_trained"}


def test_without_a_tuner_the_head_alone_learns():
    before = problem().model()
    tried = problem().best(lambda: None, rates=(1.0,), steps=2)
    assert tried.trained == 0 and tried.tuned is None
    changed = {
        name
        for (name, a), b in zip(before.named_parameters(), tried.model.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed and all(name.startswith("classifier.") for name in changed)


def test_a_head_has_its_own_rate_and_vectors_no_decay():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    update = gradient(0.5, list(model[1].parameters()), 0.25, weight_decay=0.1)
    update.setup(model)
    found = {
        id(p): (group["lr"], group["weight_decay"]) for group in update.optimizer.param_groups for p in group["params"]
    }
    assert found == {
        id(model[0].weight): (0.5, 0.1),
        id(model[0].bias): (0.5, 0.0),
        id(model[1].weight): (0.25, 0.1),
        id(model[1].bias): (0.25, 0.0),
    }


def test_another_start_and_classes_that_are_not_there():
    start = mc.load("fashion-vit", checkpoint="init")
    own = problem(start=lambda: start).model()
    assert torch.equal(own.vit.layernorm.weight, start.vit.layernorm.weight)
    with pytest.raises(DataError, match="no rows of the classes"):
        classes("fashion-vit", DATA, seed=0, labels=[1])
