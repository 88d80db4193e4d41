"""How decodable a simulated subject is, and which `snr` leaves room for methods to differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.simbrain.brain import SimBrain
from monochord.data.simbrain.features import Features
from monochord.data.simbrain.recovery import row_correlations

Targets = Callable[[np.ndarray], np.ndarray]
ALPHAS = np.logspace(2, 6, 5)
COMPONENTS = 64
OTHER = 1  # the targets' CNN is not the simulator's


@dataclass(frozen=True)
class Calibration:
    """The `snr` at which ridge regression finds the picture among `candidates` in a share `top1` of the cases.

    `noise_free` is the same for responses without noise: no method can be expected to do better by much.
    """

    snr: float
    top1: float
    noise_free: float
    candidates: int


def calibrate(
    brain: SimBrain, subject: int = 0, *, low: float = 0.2, high: float = 0.6, targets: Targets | None = None
) -> Calibration:
    """Search the `snr` that brings ridge decoding of one subject to the middle of `low` to `high`.

    `targets(images)` gives what is decoded, (n, features); by default features of a CNN of another seed. Raises
    `DataError` where even responses without noise stay below `low`, or noise can't bring them below `high`.
    """
    decoder = _Decoder(brain, subject, targets)
    goal = (low + high) / 2
    noise_free = decoder.top1(np.inf)
    if noise_free < low:
        raise DataError(f"without noise {noise_free:.0%} are found, less than {low:.0%}: use more stimuli or voxels")
    below, above = np.log(1e-2), np.log(1e2)
    for _ in range(12):
        middle = (below + above) / 2
        found = decoder.top1(float(np.exp(middle)))
        if abs(found - goal) <= (high - low) / 8:
            break
        below, above = (middle, above) if found < goal else (below, middle)
    if not low <= found <= high:
        raise DataError(f"no snr gives {low:.0%} to {high:.0%}: the nearest, {np.exp(middle):.3g}, gives {found:.0%}")
    return Calibration(float(np.exp(middle)), found, noise_free, decoder.candidates)


class _Decoder:
    """Ridge decoding of one subject at any `snr`: the noise is there already and is only scaled."""

    def __init__(self, brain: SimBrain, number: int, targets: Targets | None) -> None:
        if brain.snr == 0:
            raise DataError("a subject of snr 0 has no signal to scale")
        subject = brain.subject(number)
        self.snr, self.parts = brain.snr, []
        targets = targets or _other_network(brain.seed)
        features = []
        for data in (subject.train.average(), subject.test.average()):
            clean = subject.truth.of(data.stimulus_ids)
            self.parts.append((clean, data.responses - clean))
            features.append(targets(brain.images(data.stimulus_ids)))
        mean, sd = features[0].mean(axis=0), features[0].std(axis=0) + 1e-6
        whitened = [(part - mean) / sd for part in features]
        _, _, axes = np.linalg.svd(whitened[0], full_matrices=False)
        self.targets = [part @ axes[:COMPONENTS].T for part in whitened]
        self.candidates = min(100, len(self.targets[1]))

    def top1(self, snr: float) -> float:
        """The mean over disjoint groups of `candidates` test stimuli; voxels are z-scored."""

        train, test = (clean + noise * (self.snr / snr) for clean, noise in self.parts)
        mean, sd = train.mean(axis=0), train.std(axis=0)
        sd = np.where(sd > 1e-9, sd, np.inf)
        predicted = _ridge((train - mean) / sd, self.targets[0])((test - mean) / sd)
        hits = []
        for start in range(0, len(test) - self.candidates + 1, self.candidates):
            rows = slice(start, start + self.candidates)
            found = row_correlations(predicted[rows], self.targets[1][rows]).argmax(axis=1)
            hits.append(found == np.arange(self.candidates))
        return float(np.mean(hits))


def _ridge(inputs: np.ndarray, targets: np.ndarray) -> Targets:
    """Ridge regression; its penalty is the one that predicts the last fifth of the rows best from the others."""
    from sklearn.linear_model import Ridge

    inputs, targets = inputs.astype(np.float32), targets.astype(np.float32)
    cut = len(inputs) * 4 // 5
    models = [Ridge(alpha, solver="cholesky") for alpha in ALPHAS]
    scores = [model.fit(inputs[:cut], targets[:cut]).score(inputs[cut:], targets[cut:]) for model in models]
    best = models[int(np.argmax(scores))].fit(inputs, targets)
    return lambda rows: best.predict(rows.astype(np.float32))


def _other_network(seed: int) -> Targets:
    features = Features(seed + OTHER)

    def targets(images: np.ndarray) -> np.ndarray:
        patches = features.patches(images).reshape(len(images), -1, 4, 4, 4, 4)
        return patches.mean(axis=(3, 5)).reshape(len(images), -1)

    return targets
