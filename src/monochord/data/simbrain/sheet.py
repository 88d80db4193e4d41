"""The cortex of simulated subjects: a sheet of 64 by 64 cells with regions, warped in each subject, and random maps.

A map is a Gaussian random field; a subject's map is `sqrt(share)` of the population's, read through the subject's
warp, plus `sqrt(1 - share)` of a field of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from monochord.data.dataset import DataError

CELLS = 64
FRACTIONS = {"V1": 0.40 / 3, "V2": 0.40 / 3, "V3": 0.40 / 3, "MID": 0.15}
FRACTIONS |= {f"CAT_{k}": 0.06 for k in range(1, 6)} | {"SEM": 0.10, "NULL": 0.05}
ROIS = tuple(FRACTIONS)
WARP = 3.0  # cells
POPULATION = 1_000_003  # the population's place among the subjects' numbers


def roi_map() -> np.ndarray:
    """Region numbers (64, 64) of the unwarped sheet: bands from top to bottom, the CAT areas side by side in theirs."""
    names = np.empty((CELLS, CELLS), np.int64)
    top, sums = 0.0, {}
    for name in ("V1", "V2", "V3", "MID", "CAT", "SEM", "NULL"):
        sums[name] = FRACTIONS.get(name, 0.30)
        bottom = top + sums[name] * CELLS
        names[round(top) : round(bottom)] = -1 if name == "CAT" else ROIS.index(name)
        top = bottom
    first = ROIS.index("CAT_1")
    across = np.broadcast_to(first + np.arange(CELLS) * 5 // CELLS, names.shape)
    return np.where(names < 0, across, names)


@dataclass(frozen=True)
class Sheet:
    """One subject's cortex: where its `count` voxels are, in raster order, and the random maps read there."""

    seed: int
    subject: int
    count: int
    share: float
    rois: np.ndarray = field(init=False, repr=False)  # (64, 64) region numbers after warping
    cells: np.ndarray = field(init=False, repr=False)  # (voxels, 2) row and column
    _warp: np.ndarray = field(init=False, repr=False)  # (2, 64, 64) where each cell is read

    def __post_init__(self) -> None:
        from scipy.ndimage import gaussian_filter, map_coordinates

        rng = np.random.default_rng((self.seed, self.subject, crc32(b"warp")))
        shift = gaussian_filter(rng.standard_normal((2, CELLS, CELLS)), (0, 8, 8), mode="wrap")
        shift *= WARP / np.sqrt(np.square(shift).sum(axis=0)).max()
        object.__setattr__(self, "_warp", np.indices((CELLS, CELLS)) + shift)
        rois = map_coordinates(roi_map(), self._warp, order=0, mode="nearest")
        object.__setattr__(self, "rois", rois)
        chosen = []
        for number, count in enumerate(counts(self.count)):
            there = np.flatnonzero(rois == number)
            if count > len(there):
                raise DataError(f"{self.count} voxels do not fit: {ROIS[number]} has {len(there)} cells, not {count}")
            chosen.append(rng.choice(there, count, replace=False))
        raster = np.sort(np.concatenate(chosen))
        object.__setattr__(self, "cells", np.stack(np.divmod(raster, CELLS), axis=1))

    @property
    def roi(self) -> np.ndarray:
        """Region name of each voxel."""
        return np.array(ROIS)[self.rois[tuple(self.cells.T)]]

    def maps(self, name: str, channels: int) -> np.ndarray:
        """Random maps read at the voxels, (voxels, channels): smooth over the sheet, standard normal at each cell."""
        from scipy.ndimage import map_coordinates

        population, own = (_fields(self.seed, who, name, channels) for who in (POPULATION, self.subject))
        places = self._warp[:, self.cells[:, 0], self.cells[:, 1]]
        read = np.stack([map_coordinates(plane, places, order=1, mode="grid-wrap") for plane in population], axis=1)
        mine = own[:, self.cells[:, 0], self.cells[:, 1]].T
        return np.sqrt(self.share) * read + np.sqrt(1 - self.share) * mine

    def render(self, values: np.ndarray) -> np.ndarray:
        """A value a voxel as an image of the sheet (64, 64); every cell shows the nearest voxel's."""
        from scipy.spatial import cKDTree

        _, nearest = cKDTree(self.cells).query(np.indices((CELLS, CELLS)).reshape(2, -1).T)
        return np.asarray(values)[nearest].reshape(CELLS, CELLS)


def counts(voxels: int) -> list[int]:
    """How many of so many voxels each region has, in the order of `ROIS`; the largest remainders are rounded up."""
    exact = np.array(list(FRACTIONS.values())) * voxels
    floor = np.floor(exact + 1e-9).astype(int)
    floor[np.argsort(floor - exact, kind="stable")[: voxels - floor.sum()]] += 1
    return floor.tolist()


def _fields(seed: int, subject: int, name: str, channels: int) -> np.ndarray:
    """Gaussian random fields (channels, 64, 64), each of mean 0, sd 1 and a smoothing of 2 to 4 cells."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng((seed, subject, crc32(name.encode())))
    smoothing = np.random.default_rng((seed, crc32(name.encode()))).uniform(2, 4, channels)  # the same for everyone
    white = rng.standard_normal((channels, CELLS, CELLS))
    smooth = np.stack([gaussian_filter(w, sd, mode="wrap") for w, sd in zip(white, smoothing, strict=True)])
    smooth -= smooth.mean(axis=(1, 2), keepdims=True)
    return smooth / smooth.std(axis=(1, 2), keepdims=True)
