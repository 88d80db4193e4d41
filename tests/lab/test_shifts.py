"""Problems whose test is of another kind: rows are told apart as said, and the best rate is the one that is kept."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from monochord.adapt.levi import PerLayer
from monochord.lab import shifts

SIZES = {"pretraining": 20, "train": 10, "validation": 10, "test": 10}


def test_a_kind_is_left_out_or_alone() -> None:
    rows = {"labels": torch.arange(12.0).view(3, 4), "states": torch.arange(24.0).view(3, 4, 2)}
    assert shifts.without(rows, 1)["labels"].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert shifts.without(rows, 1)["states"].shape == (8, 2)
    assert shifts.only(rows, 1)["labels"].tolist() == [4, 5, 6, 7]


def test_clothes_have_their_splits() -> None:
    rows = shifts.clothes({"texture": 0.95}, {"border": 0.9}, SIZES, seed=0)
    assert {name: len(part["labels"]) for name, part in rows.items()} == {**SIZES, "ood": 10}
    pixels = rows["train"]["pixel_values"]
    assert pixels.shape == (10, 3, 32, 32)
    assert -1 <= float(pixels.min()) < float(pixels.max()) <= 1


def test_predictions_in_parts_are_those_of_the_whole() -> None:
    x = torch.randn(2 * shifts.PART + 7, 3)
    assert torch.equal(shifts.predicted(lambda x: 2 * x, {"x": x, "labels": torch.zeros(len(x))}), 2 * x)


class _Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.slope * x
        return out

    def layers(self, x: Tensor) -> Tensor:
        return self.forward(x)[None]


@pytest.mark.parametrize("rates", [(1e-4, 1e-1), (1e-1, 1e-4)])
def test_the_best_rate_is_kept(rates: tuple[float, float]) -> None:
    x = torch.linspace(-1, 1, 32)[:, None]
    train = {"x": x, "labels": 2 * x[:, 0]}
    best = shifts.best_of(train, _Line, PerLayer(shifts.squared), rates, partial(_closeness, train),
                          steps=40, batch=16, seed=0)  # fmt: skip
    assert abs(best.slope.item() - 2) < 0.5
    assert not best.training


def _closeness(rows: shifts.Rows, model: nn.Module) -> float:
    return -shifts.error(model, rows)
