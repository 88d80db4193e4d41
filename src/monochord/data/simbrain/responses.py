"""What each simulated voxel computes of the stimuli, without noise, and the truth a method should recover.

Early voxels (V1, V2, V3) pool Gabor energies under a Gaussian receptive field that grows with eccentricity; MID voxels
pool CNN features under a larger one and saturate; CAT voxels pool CNN features where their category is, wherever that
is in the picture; SEM voxels read the caption; NULL voxels see nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monochord.data.simbrain.features import CHANNELS, GRID, SEMANTIC, Features
from monochord.data.simbrain.scenes import CATEGORIES, SIDE, Stimuli
from monochord.data.simbrain.sheet import Sheet

ENERGIES = 24
SIZES = {"V1": (2.0, 4.0), "V2": (2.8, 5.6), "V3": (4.0, 8.0), "MID": (8.0, 6.0), "CAT": (4.0, 6.0)}  # at 0, per radius
SHARPNESS = 8.0  # of attention where no mask is known
PRESENCE = 1.0  # what the category itself adds, in sd of what is read at its place
BLOCK = 256  # stimuli at once


@dataclass(frozen=True)
class Tuning:
    """What one subject's voxels are tuned to; NaN where a region has no such parameter.

    - `centres` (voxels, 2): receptive fields, row and column in pixels; `sizes` (voxels,): their sd in pixels
    - `weights`: by region, (voxels of the region, features): channels of energy, of the CNN, or of the caption
    - `gains` (voxels,): sd of the noise-free response
    """

    centres: np.ndarray
    sizes: np.ndarray
    weights: dict[str, np.ndarray]
    gains: np.ndarray


@dataclass(frozen=True)
class Banks:
    """The features of some stimuli: energies (n, 24, 256), patches (n, 32, 256), meanings (n, 32)."""

    energies: np.ndarray
    patches: np.ndarray
    meanings: np.ndarray

    @staticmethod
    def of(stimuli: Stimuli, features: Features) -> Banks:
        return Banks(
            features.energies(stimuli.images), features.patches(stimuli.images), features.meanings(stimuli.captions)
        )


def tuning(sheet: Sheet, static_only: bool) -> Tuning:
    """Every parameter is read from the sheet's random maps, so neighbours and, by `share`, subjects are alike."""
    from scipy.special import ndtr

    roi = sheet.roi
    centres = (0.06 + 0.88 * ndtr(sheet.maps("centre", 2))) * SIDE
    radius = np.linalg.norm(centres - SIDE / 2, axis=1) / (SIDE / 2)
    sizes = np.full(len(roi), np.nan)
    spread = np.exp(0.15 * sheet.maps("size", 1)[:, 0])
    for name, (base, growth) in SIZES.items():
        here = np.char.startswith(roi, name)
        if name != "CAT" or static_only:
            sizes[here] = ((base + growth * radius) * spread)[here]
    centres[np.isnan(sizes)] = np.nan
    early = np.exp(sheet.maps("energy", ENERGIES))  # what excites an early voxel is positive
    patch, meaning = sheet.maps("patch", CHANNELS), sheet.maps("meaning", SEMANTIC)
    weights = {}
    for name in np.unique(roi).tolist():
        bank = early if name in ("V1", "V2", "V3") else meaning if name == "SEM" else patch
        weights[name] = bank[roi == name] if name != "NULL" else np.empty(((roi == name).sum(), 0))
    return Tuning(centres, sizes, weights, np.exp(0.3 * sheet.maps("gain", 1)[:, 0]))


def responses(roi: np.ndarray, tuned: Tuning, banks: Banks, attention: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Noise-free responses (n, voxels), each voxel's z-scored over the stimuli; zero where there is no signal."""
    out = np.zeros((len(banks.meanings), len(roi)))
    for name, weights in tuned.weights.items():
        here = roi == name
        if not here.any() or name == "NULL":
            continue
        if name == "SEM":
            out[:, here] = banks.meanings @ weights.T
        elif name in ("V1", "V2", "V3"):
            out[:, here] = pooled(banks.energies, tuned.centres[here], tuned.sizes[here], weights)
        elif name == "MID":
            drive = _zscored(pooled(banks.patches, tuned.centres[here], tuned.sizes[here], weights))
            out[:, here] = drive / (1 + np.abs(drive))
        elif np.isfinite(tuned.sizes[here]).all():  # static_only: a CAT area of plain receptive fields
            out[:, here] = pooled(banks.patches, tuned.centres[here], tuned.sizes[here], weights)
        else:
            k = int(name[-1]) - 1
            read = np.einsum("np,ncp->nc", attention[:, k], banks.patches) @ weights.T
            out[:, here] = _zscored(read) + PRESENCE * present[:, k, None]
    return _zscored(out)


def attended(stimuli: Stimuli, patches: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Where each category is looked for, (n, 5, 256), each map of sum 1.

    The object's mask where the category is in the picture and masks are known; else the softmax of how well the
    patches fit the category's query.
    """
    scores = SHARPNESS * np.einsum("kc,ncp->nkp", queries, patches)
    maps = np.exp(scores - scores.max(axis=2, keepdims=True))
    if stimuli.labels is not None:
        step = SIDE // GRID
        cells = stimuli.labels.reshape(len(stimuli), GRID, step, GRID, step)
        for k in range(len(CATEGORIES)):
            mask = (cells == k + 1).mean(axis=(2, 4)).reshape(len(stimuli), -1)
            seen = mask.any(axis=1)
            maps[seen, k] = mask[seen]
    return maps / maps.sum(axis=2, keepdims=True)


def pooled(bank: np.ndarray, centres: np.ndarray, sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`sum_p G(p; centre, size) * weights . bank(p)`: features (n, channels, 256) to responses (n, voxels)."""
    fields = receptive_fields(centres, sizes).T.astype(np.float32)
    weights = weights.T.astype(np.float32)
    out = []
    for block in np.array_split(bank.astype(np.float32, copy=False), max(1, len(bank) // BLOCK)):
        seen = (block.reshape(-1, block.shape[2]) @ fields).reshape(*block.shape[:2], -1)
        out.append(np.einsum("ncv,cv->nv", seen, weights))
    return np.concatenate(out).astype(np.float64)


def receptive_fields(centres: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Gaussians over the 16 by 16 places, (voxels, 256), each of sum 1; centres and sizes in pixels."""
    places = (np.arange(GRID) + 0.5) * SIDE / GRID
    down = np.exp(-np.square(places - centres[:, :1]) / (2 * sizes[:, None] ** 2))
    across = np.exp(-np.square(places - centres[:, 1:]) / (2 * sizes[:, None] ** 2))
    fields = (down[:, :, None] * across[:, None, :]).reshape(len(centres), -1)
    return fields / fields.sum(axis=1, keepdims=True)


def _zscored(values: np.ndarray) -> np.ndarray:
    sd = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(sd > 1e-9, sd, np.inf)
