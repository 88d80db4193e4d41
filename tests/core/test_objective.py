"""Objectives add, scale and share a forward; the logits-to-loss path is one, and means are over the global batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from monochord.core.objective import BatchTransform, Loss, Objective, OwnLoss, Step, token_cross_entropy, unwrap
from monochord.core.schedules import Ramp, Rate


class Mean(Objective):
    """The mean of the model's output, times `factor`."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def loss(self, model, batch, step):
        value = self.factor * step.forward(model, batch).mean()
        return Loss(value, {self.name: value.item()})


class Counting(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x


BATCH = {"x": torch.tensor([1.0, 3.0])}


def test_objectives_add_and_scale_on_one_forward():
    model = Counting()
    loss = (Mean() + 0.5 * Mean(3) + Mean(1) * 2)(model, BATCH)
    assert loss.total.item() == 2 + 3 + 4 and model.calls == 1
    assert loss.terms == {"mean": 2, "mean'": 6, "mean''": 2}
    assert sum([Mean(), Mean(2)])(model, BATCH).total == 6


def test_a_weight_may_follow_the_step_and_at_zero_is_not_computed():
    model, objective = Counting(), Ramp(0, 1, 4) * Mean()
    assert [objective(model, BATCH, Step(i)).total.item() for i in (1, 2, 4, 9)] == [0.5, 1, 2, 2]
    model.calls = 0
    assert (Ramp(1, 0, 4) * Mean())(model, BATCH, Step(4)).total == 0 and model.calls == 0


def test_ramps_and_rates():
    assert Ramp(0, 2, 4, begin=2, shape="cosine")(4) == pytest.approx(1)
    assert [Rate("cosine", 10, 0.2)(i) for i in (0, 1, 2, 6)] == pytest.approx([0.5, 1, 1, 0.5])
    with pytest.raises(ValueError, match="'linear' or 'cosine', got 'square'"):
        Ramp(0, 1, 2, shape="square")(1)


def test_streams_and_flags_of_a_sum_are_those_of_its_parts():
    class Other(Mean):
        streams = ("retain",)
        extra_forwards = 1
        differentiable = False

    both = 0.1 * Other() + Mean()
    assert both.streams == ("retain",) and both.extra_forwards == 1 and not both.differentiable


def test_token_cross_entropy_shifts_masks_and_computes_in_float32():
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 5, 7, generator=g), torch.randint(0, 7, (2, 5), generator=g)
    labels[0, 2:] = -100
    by_hand = [
        -F.log_softmax(logits[row, place].double(), -1)[labels[row, place + 1]]
        for row in range(2)
        for place in range(4)
        if labels[row, place + 1] != -100
    ]
    assert token_cross_entropy(logits, labels).item() == pytest.approx((sum(by_hand) / len(by_hand)).item())
    assert token_cross_entropy(logits, labels, count=50).item() == pytest.approx(sum(by_hand).item() / 50)
    half = token_cross_entropy(logits.bfloat16(), labels)
    assert half.dtype == torch.float32 and half == token_cross_entropy(logits.bfloat16().float(), labels)
    assert token_cross_entropy(logits, torch.full((2, 5), -100)) == 0
    with pytest.raises(ValueError, match=r"logits \(2, 5, 7\) do not fit labels \(2, 4\)"):
        token_cross_entropy(logits, labels[:, 1:])


def test_transforms_draw_the_same_for_a_step_however_often():
    class Noisy(BatchTransform):
        def transform(self, batch, generator):
            return {"x": batch["x"] + torch.rand(2, generator=generator)}

    objective = Noisy()(Mean())

    def value(index, seed=0):
        return objective(Counting(), BATCH, Step(index, seed=seed)).total.item()

    assert value(1) == value(1) != value(2)
    assert value(1, seed=1) != value(1)
    assert (Noisy()(Mean()) + Mean())(Counting(), BATCH).terms["mean'"] == 2


def test_a_models_own_loss_needs_labels():
    class Own(nn.Module):
        def forward(self, x, labels=None):
            return {"loss": (x - labels).mean()}

    batch = {"x": torch.ones(2), "labels": torch.zeros(2)}
    assert OwnLoss()(Own(), batch).total == 1
    with pytest.raises(ValueError, match="the batch has no labels, only x"):
        OwnLoss()(Own(), {"x": torch.ones(2)})


def test_unwrap_finds_the_model_but_not_a_child_that_is_called_module():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    holder = Holder()
    assert unwrap(holder) is holder
    assert unwrap(nn.DataParallel(holder)) is holder
    assert unwrap(torch.compile(holder)) is holder
