"""How far a classifier's confidence is from its accuracy.

The expected calibration error of "On Calibration of Modern Neural Networks", June 14, 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 10) -> float:
    """The mean gap between confidence and accuracy, over equal bins of confidence weighted by their examples.

    `probabilities` are (examples, classes), `labels` (examples,). Raises `ValueError` where they do not fit.
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(f"probabilities {tuple(probabilities.shape)} do not fit labels {tuple(labels.shape)}")
    confidence, guess = probabilities.double().max(1)
    right = (guess == labels).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=labels.device).index_add(0, place, right - confidence)
    return float(gap.abs().sum() / len(labels))
