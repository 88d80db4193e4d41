"""The small denoiser under a condition: shapes, what it standardises, and that it learns from condition and time."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

import monochord as mc
from monochord.core.objective import Loss, Objective
from monochord.models.nets.film_denoiser import FiLMDenoiser


def net(**options):
    torch.manual_seed(0)
    examples = 100 + 3 * torch.randn(200, 5, generator=Generator().manual_seed(0))
    return FiLMDenoiser((4, 2), examples, **{"width": 16, "layers": 2, **options})


def test_predictions_have_the_shape_of_what_is_noised():
    assert net()(torch.randn(3, 4, 2), torch.tensor([0, 10, 49]), torch.full((3, 5), 100.0)).shape == (3, 4, 2)


def test_conditions_are_standardised_and_buffers_travel_with_the_weights():
    one, two = net(), FiLMDenoiser((4, 2), torch.zeros(2, 5), width=16, layers=2)
    two.load_state_dict(one.state_dict())
    given = torch.randn(3, 4, 2), torch.tensor([1, 2, 3]), 100 + torch.randn(3, 5)
    torch.testing.assert_close(one(*given), two(*given), rtol=0, atol=0)
    assert one.mean.mean() == pytest.approx(100, abs=1) and one.std.mean() == pytest.approx(3, abs=0.5)


def test_rows_do_not_see_each_other():
    noisy, times, condition = torch.randn(3, 4, 2), torch.tensor([1, 20, 49]), 100 + torch.randn(3, 5)
    whole = net()(noisy, times, condition)
    torch.testing.assert_close(whole[1:2], net()(noisy[1:2], times[1:2], condition[1:2]))


def test_it_learns_what_only_condition_and_time_tell():
    class Told(Objective):
        def loss(self, model, batch, step):
            noisy, times, condition = batch["noisy"], batch["times"], batch["condition"]
            target = ((condition[:, :1] - 100) / 3 + times[:, None] / 50)[..., None].expand_as(noisy)
            return Loss((model(noisy, times, condition) - target).square().mean())

    g = Generator().manual_seed(1)
    batches = [
        {
            "noisy": torch.randn(64, 4, 2, generator=g),
            "times": torch.randint(50, (64,), generator=g),
            "condition": 100 + 3 * torch.randn(64, 5, generator=g),
        }
        for _ in range(80)
    ]
    history = mc.fit(net(), batches, Told(), steps=80, lr=1e-2, progress=False, device="cpu")
    assert history.losses[-1] < 0.1 * history.losses[0]


def test_examples_must_be_rows_of_features():
    with pytest.raises(ValueError, match="n, features"):
        FiLMDenoiser((4, 2), torch.zeros(5))
