"""Calibration error by hand."""

import pytest
import torch

from monochord.read.calibration import calibration_error


def test_by_hand():
    p = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.39, 0.61]])
    labels = torch.tensor([0, 1, 1, 1])  # of two at 0.95 one is right, of two near 0.63 both
    assert calibration_error(p, labels) == pytest.approx((2 * 0.45 + 2 * 0.37) / 4)
    assert calibration_error(p, labels, bins=1) == pytest.approx(abs(0.79 - 0.75), abs=1e-6)


def test_certain_and_right_is_calibrated_certain_and_wrong_is_not():
    p = torch.eye(3)
    assert calibration_error(p, torch.arange(3)) == 0 and calibration_error(p, torch.tensor([1, 2, 0])) == 1


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="do not fit"):
        calibration_error(torch.ones(3, 2), torch.zeros(2, dtype=torch.long))
