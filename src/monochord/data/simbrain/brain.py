"""SimBrain: simulated subjects who look at pictures, with the truth beside every measured number.

    brain = SimBrain(seed=0)
    subject = brain.subject(0)
    subject.train, subject.test          # NeuralData: single trials, three a stimulus
    subject.truth.tuning.centres         # what a receptive-field model should find
    brain.images(subject.test.stimulus_ids)

After "Reconstructing the Mind's Eye: fMRI-to-Image with Contrastive Learning and Diffusion Priors", May 29, 2023, whose
subjects see 1,000 shared and 9,000 own scenes three times each; here 200 and 2,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.neural import NeuralData, noise_ceiling
from monochord.data.simbrain.features import Encode, Features, features_of
from monochord.data.simbrain.responses import Banks, Tuning, attended, responses, tuning
from monochord.data.simbrain.scenes import CATEGORIES, Stimuli, scenes
from monochord.data.simbrain.sheet import CELLS, Sheet

VOXELS = (1400, 1250, 1100, 950)
MEDIANS = {"V": 0.8, "M": 0.6, "C": 0.5, "S": 0.35, "N": 0.0}  # of ncsnr, by a region's first letter
NCSNR_SPREAD = 0.35  # sd of its logarithm
NOISE = {"smooth": 0.5, "white": 0.4, "global": 0.1}  # shares of the noise variance
FWHM = 2.0  # cells
CONTROLS = ("shuffle_stimuli", "scramble_voxels", "static_only")


@dataclass(frozen=True)
class Truth:
    """What is known of a simulated subject.

    - `stimulus_ids` (n,): the stimuli that the rows below are of, the shared ones first
    - `responses` (n, voxels): noise-free, gains included
    - `attention` (n, 5, 256): where each CAT area looks, on a 16 by 16 grid
    - `roi`, `ncsnr`, `ceiling` (voxels,): percent of variance, for means over all repetitions
    - `tuning`: receptive fields, weights and gains; `sheet`: cells and maps
    """

    stimulus_ids: np.ndarray
    responses: np.ndarray
    attention: np.ndarray
    roi: np.ndarray
    ncsnr: np.ndarray
    ceiling: np.ndarray
    tuning: Tuning
    sheet: Sheet

    def of(self, stimulus_ids: np.ndarray) -> np.ndarray:
        """Noise-free responses to the given stimuli, (len(stimulus_ids), voxels)."""
        return self.responses[rows_of(self.stimulus_ids, stimulus_ids)]


@dataclass(frozen=True)
class Subject:
    """One simulated subject: single trials in the order of presentation, and the truth.

    `train` has the stimuli that only this subject saw, `test` those that all saw.
    """

    data: NeuralData
    truth: Truth
    shared: int

    @property
    def train(self) -> NeuralData:
        return self.data.take(self.data.stimulus_ids >= self.shared)

    @property
    def test(self) -> NeuralData:
        return self.data.take(self.data.stimulus_ids < self.shared)

    def surface(self, values: np.ndarray) -> np.ndarray:
        """A value a voxel as an image of this subject's cortex, (64, 64)."""
        return self.truth.sheet.render(values)


class SimBrain:
    """Simulated subjects; everything is determined by the arguments.

    `stimuli` is one `Stimuli` (the first `shared` of which all subjects see, the rest in equal parts), or None for
    scenes made as they are needed, `unique` for each subject. `snr` scales every voxel's ncsnr (0 leaves noise alone),
    `share` is how much of the tuning is the population's. `controls` names what is spoilt on purpose:
    "shuffle_stimuli" (trials lose their stimulus), "scramble_voxels" (index order is random in each subject) and
    "static_only" (CAT areas have plain receptive fields). `encode` reads captions instead of MiniLM. Subjects are
    numbered from 0. Raises `DataError` for arguments that don't fit.
    """

    def __init__(
        self,
        stimuli: Stimuli | None = None,
        seed: int = 0,
        subjects: int = 4,
        voxels: Sequence[int] = VOXELS,
        snr: float = 1.0,
        share: float = 0.7,
        controls: Sequence[str] = (),
        *,
        shared: int = 200,
        unique: int = 2000,
        repetitions: int = 3,
        encode: Encode | None = None,
    ) -> None:
        if not 0 <= share <= 1 or snr < 0:
            raise DataError(f"share={share} must be in 0 to 1 and snr={snr} at least 0")
        if subjects < 1 or len(voxels) < subjects:
            raise DataError(f"{subjects} subjects need as many numbers of voxels, got {len(voxels)}")
        if unknown := set(controls) - set(CONTROLS):
            raise DataError(f"no control {', '.join(sorted(unknown))}: there are {', '.join(CONTROLS)}")
        if stimuli is not None:
            unique = (len(stimuli) - shared) // subjects
        if shared < 2 or unique < 1 or repetitions < 1:
            raise DataError(f"shared={shared}, unique={unique}, repetitions={repetitions}: too few stimuli")
        self.given, self.seed, self.subjects, self.voxels = stimuli, seed, subjects, tuple(voxels)
        self.snr, self.share, self.controls = snr, share, frozenset(controls)
        self.shared, self.unique, self.repetitions = shared, unique, repetitions
        self.features = features_of(seed, encode)
        self._subjects: dict[int, Subject] = {}
        self._parts: dict[int, Stimuli] = {}

    def subject(self, number: int) -> Subject:
        """One subject, made when first asked for."""
        if number not in self._subjects:
            if not 0 <= number < self.subjects:
                raise DataError(f"no subject {number}: there are 0 to {self.subjects - 1}")
            self._subjects[number] = self._make(number)
        return self._subjects[number]

    def stimuli(self, subject: int) -> Stimuli:
        """All that one subject sees: the shared stimuli, then the own ones."""
        ids = self.ids(subject)
        if self.given is not None:
            return self.given.take(ids)
        return self._look(ids)

    def ids(self, subject: int) -> np.ndarray:
        """Numbers of a subject's stimuli: 0 to `shared`, then its own."""
        start = self.shared + subject * self.unique
        return np.concatenate([np.arange(self.shared), np.arange(start, start + self.unique)])

    def images(self, stimulus_ids: np.ndarray) -> np.ndarray:
        """The pictures (n, 64, 64, 3), uint8, of the given stimulus numbers."""
        if self.given is not None:
            return self.given.images[stimulus_ids]
        return self._look(np.asarray(stimulus_ids)).images

    def captions(self, stimulus_ids: np.ndarray) -> list[str]:
        """The captions of the given stimulus numbers."""
        if self.given is not None:
            return [self.given.captions[i] for i in np.asarray(stimulus_ids).tolist()]
        return list(self._look(np.asarray(stimulus_ids)).captions)

    def order(self) -> np.ndarray:
        """In which order stimuli are shown, as rows of `stimuli(subject)`; the same for all subjects."""
        rows = np.tile(np.arange(self.shared + self.unique), self.repetitions)
        return np.random.default_rng((self.seed, crc32(b"order"))).permutation(rows)

    def respond(self, number: int, stimuli: Stimuli) -> np.ndarray:
        """A subject's noise-free responses to other stimuli, z-scored over these, times the voxels' gains."""
        truth = self.subject(number).truth
        return _respond(truth.roi, truth.tuning, stimuli, self.features)[0]

    def write(self, root: Path | str, format: str = "nsd", subjects: Sequence[int] | None = None, **sizes: int) -> Path:
        """Write subjects below an empty folder as "nsd", "algonauts", "bids" or "parcellated" data."""
        from monochord.data.simbrain.writing import write

        return write(self, root, format, subjects, **sizes)

    def _look(self, ids: np.ndarray) -> Stimuli:
        """Scenes by number, of parts that are made once: the shared ones (of other garments), and each subject's."""
        part = np.where(ids < self.shared, -1, (ids - self.shared) // self.unique)
        found = []
        for p in np.unique(part).tolist():
            if p not in self._parts:
                self._parts[p] = (
                    scenes(self.shared, self.seed, "test")
                    if p < 0
                    else scenes(self.unique, self.seed, start=p * self.unique)
                )
            offset = 0 if p < 0 else self.shared + p * self.unique
            found.append(self._parts[p].take(ids[part == p] - offset))
        order = np.argsort(np.concatenate([np.flatnonzero(part == p) for p in np.unique(part)]))
        return _concatenated(found).take(order)

    def _make(self, number: int) -> Subject:
        sheet = Sheet(self.seed, number, self.voxels[number], self.share)
        roi, tuned = sheet.roi, tuning(sheet, "static_only" in self.controls)
        clean, attention = _respond(roi, tuned, self.stimuli(number), self.features)
        rng = np.random.default_rng((self.seed, number, crc32(b"noise")))
        medians = np.array([MEDIANS[name[0]] for name in roi.tolist()])
        ncsnr = self.snr * medians * np.exp(NCSNR_SPREAD * rng.standard_normal(len(roi)))
        clean[:, ncsnr == 0] = 0
        noise_sd = tuned.gains / np.where(ncsnr > 0, ncsnr, 1)
        rows = self.order()
        betas = clean[rows] + noise_sd * _noise(rng, sheet.cells, len(rows))
        ids = self.ids(number)
        shown = ids[rows]
        if "shuffle_stimuli" in self.controls:
            swapped = ids.copy()  # among the shared and the own ones apart: no test stimulus gets into training
            rng.shuffle(swapped[: self.shared])
            rng.shuffle(swapped[self.shared :])
            shown = swapped[rows]
        truth = Truth(ids, clean, attention, roi, ncsnr, noise_ceiling(ncsnr, self.repetitions), tuned, sheet)
        name = f"subj{number + 1:02d}"
        data = NeuralData(betas, shown, roi, ncsnr, sheet.cells, name)
        if "scramble_voxels" in self.controls:
            data, truth = _scrambled(data, truth, rng)
        return Subject(data, truth, self.shared)

    @property
    def categories(self) -> tuple[str, ...]:
        """What the CAT areas stand for, in their order."""
        return CATEGORIES if self.given is None else self.given.categories


def rows_of(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """At which places of `known` the ids of `wanted` are."""
    order = np.argsort(known)
    rows = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
    if (known[rows] != wanted).any():
        raise DataError(f"this subject did not see stimulus {np.asarray(wanted)[known[rows] != wanted][0]}")
    return rows


def _respond(roi: np.ndarray, tuned: Tuning, stimuli: Stimuli, features: Features) -> tuple[np.ndarray, np.ndarray]:
    banks = Banks.of(stimuli, features)
    attention = attended(stimuli, banks.patches, features.queries)
    return tuned.gains * responses(roi, tuned, banks, attention, stimuli.present), attention


def _noise(rng: np.random.Generator, cells: np.ndarray, trials: int) -> np.ndarray:
    """Noise of sd 1, (trials, voxels): half of its variance is smooth over the sheet, a tenth common to all."""
    from scipy.ndimage import gaussian_filter1d

    blur = gaussian_filter1d(np.eye(CELLS), FWHM / 2.3548, axis=0, mode="wrap").astype(np.float32)
    scale = np.square(blur[0]).sum()  # sd after smoothing along both axes
    out = np.empty((trials, len(cells)), np.float32)
    for block in np.array_split(out, max(1, trials // 500)):
        white = rng.standard_normal((len(block), CELLS, CELLS), np.float32)
        smooth = np.matmul(blur, np.matmul(white, blur))[:, cells[:, 0], cells[:, 1]] / scale
        block[:] = np.sqrt(NOISE["smooth"]) * smooth
        block += np.sqrt(NOISE["white"]) * rng.standard_normal(block.shape, np.float32)
        block += np.sqrt(NOISE["global"]) * rng.standard_normal((len(block), 1), np.float32)
    return out


def _scrambled(data: NeuralData, truth: Truth, rng: np.random.Generator) -> tuple[NeuralData, Truth]:
    """The same voxels under other numbers."""
    from dataclasses import replace

    order = rng.permutation(data.shape[1])
    tuned, roi = truth.tuning, truth.roi
    weights = {}
    for name, values in tuned.weights.items():
        place = np.full(len(roi), -1)
        place[roi == name] = np.arange(len(values))
        weights[name] = values[place[order][roi[order] == name]]
    tuned = Tuning(tuned.centres[order], tuned.sizes[order], weights, tuned.gains[order])
    sheet = replace(truth.sheet)
    object.__setattr__(sheet, "cells", truth.sheet.cells[order])
    per_voxel = {name: getattr(truth, name)[order] for name in ("roi", "ncsnr", "ceiling")}
    truth = replace(truth, responses=truth.responses[:, order], tuning=tuned, sheet=sheet, **per_voxel)
    voxels = {name: getattr(data, name)[order] for name in ("roi", "ncsnr", "coords")}
    return replace(data, responses=data.responses[:, order], **voxels), truth


def _concatenated(parts: Sequence[Stimuli]) -> Stimuli:
    if len(parts) == 1:
        return parts[0]
    labels = None if parts[0].labels is None else np.concatenate([p.labels for p in parts if p.labels is not None])
    images, present = (np.concatenate([getattr(p, name) for p in parts]) for name in ("images", "present"))
    return Stimuli(images, present, labels, tuple(c for p in parts for c in p.captions), parts[0].categories)
