"""How far two sets of pictures are from each other, in features of a net that knows pictures.

From "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", June 26, 2017, section 4.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def frechet_distance(one: np.ndarray | Tensor, other: np.ndarray | Tensor) -> float:
    """The squared Fréchet distance of two sets of features (n, d) and (m, d), each taken as a Gaussian.

    It falls with n and m: compare sets of the same sizes. Raises `ValueError` for sets that have no covariance or are
    of different widths.
    """
    sets = [np.asarray(features, np.float64) for features in (one, other)]
    if any(s.ndim != 2 or len(s) < 2 for s in sets) or sets[0].shape[1] != sets[1].shape[1]:
        raise ValueError(f"two sets of features (n, d) of at least 2 rows and one width, got {[s.shape for s in sets]}")
    first, second = (np.atleast_2d(np.cov(s.T)) for s in sets)
    # The trace of the root of a product is the sum of the roots of its eigenvalues, which are real and not negative.
    overlap = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0)).sum()
    means = np.square(sets[0].mean(0) - sets[1].mean(0)).sum()
    return float(max(means + np.trace(first) + np.trace(second) - 2 * overlap, 0.0))
