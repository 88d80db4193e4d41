"""How much of a simulated subject's truth a method found."""

from __future__ import annotations

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.simbrain.brain import Truth

LEAST = 1.0  # percent: below this ceiling there is nothing to explain


def normalised_r2(predicted: np.ndarray, measured: np.ndarray, truth: Truth) -> dict[str, float]:
    """By region, the mean over voxels of squared correlation divided by the noise ceiling.

    `predicted` and `measured` (n, voxels): the latter are means over all repetitions. 1 is all that can be explained;
    negative correlations count as 0. Regions without signal are left out.
    """
    if predicted.shape != measured.shape or predicted.shape[1] != len(truth.roi):
        raise DataError(f"predicted {predicted.shape}, measured {measured.shape}, voxels {len(truth.roi)}: must agree")
    share = np.square(np.maximum(correlations(predicted, measured), 0)) / np.maximum(truth.ceiling / 100, 1e-9)
    seen = truth.ceiling > LEAST
    names = [name for name in np.unique(truth.roi).tolist() if (seen & (truth.roi == name)).any()]
    return {name: float(share[seen & (truth.roi == name)].mean()) for name in names}


def centre_error(centres: np.ndarray, truth: Truth) -> np.ndarray:
    """Distance in pixels of each voxel's found receptive field from the true one; NaN where there is none."""
    return np.linalg.norm(centres - truth.tuning.centres, axis=1)


def attention_iou(maps: np.ndarray, truth: Truth, present: np.ndarray) -> np.ndarray:
    """By category, how well attention maps (n, 5, 256) cover the objects: intersection over union.

    A found map counts as many of its highest places as the true one has; only stimuli with the category in them
    (`present`, (n, 5) bool) count.
    """
    scores = np.full(present.shape, np.nan)
    for row, k in np.argwhere(present):
        true = truth.attention[row, k] > 0
        found = np.zeros_like(true)
        found[np.argsort(-maps[row, k], kind="stable")[: true.sum()]] = True
        scores[row, k] = (true & found).sum() / (true | found).sum()
    return np.nanmean(scores, axis=0)


def weight_cosine(weights: np.ndarray, truth: Truth, region: str) -> np.ndarray:
    """Cosine of each voxel's found weights (voxels of the region, features) with its true ones."""
    true = truth.tuning.weights[region]
    norms = np.linalg.norm(weights, axis=1) * np.linalg.norm(true, axis=1)
    return np.einsum("vd,vd->v", weights, true) / np.maximum(norms, 1e-12)


def alignment_accuracy(aligned: np.ndarray, target: np.ndarray) -> float:
    """How often a row of `aligned` (n, voxels), mapped from another subject, is most like the same row of `target`."""
    return float((row_correlations(aligned, target).argmax(axis=1) == np.arange(len(target))).mean())


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of each column of `a` with the same column of `b`; 0 where one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norms = np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0))
    return np.einsum("nv,nv->v", a, b) / np.where(norms > 0, norms, np.inf)


def row_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of every row of `a` with every row of `b`."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    return a @ b.T
