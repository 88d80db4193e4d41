"""Simulated scans: the same subjects looking at a stream of stimuli, sampled every 1.5 s, by voxels or by parcels.

What a voxel computes is smeared by the haemodynamic response; noise is autocorrelated, drifts and has motion spikes.
Parcels belong to networks that follow different banks of features, and are coupled by a connectome at rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.neural import NeuralData
from monochord.data.simbrain.brain import SimBrain, rows_of
from monochord.data.simbrain.responses import Banks
from monochord.data.simbrain.scenes import Stimuli

TR = 1.5  # seconds
SHOWN = 2  # scans that a stimulus stays
AUTOCORRELATION = 0.3
DRIFT, SPIKES, SPIKE_SIZE = 0.3, 0.01, 4.0  # sd of the drift; share of scans with motion; its sd; in sd of the noise
NETWORKS = {"VIS": 0.25, "DAN": 0.15, "AUD": 0.15, "LAN": 0.15, "DMN": 0.30}  # shares of the parcels
FOLLOWED = {"VIS": "energies", "DAN": "patches", "LAN": "meanings", "DMN": "meanings", "AUD": "audio"}
PARCELS = 94
SENSITIVITY = 0.5  # ncsnr of a parcel for a single scan
COUPLING = 0.9  # how strongly parcels drive each other; below 1, so that activity dies out


def haemodynamic_response(tr: float = TR, seconds: float = 32.0) -> np.ndarray:
    """The double-gamma response to a brief event every `tr` seconds, of sum 1: peak at 5 s, undershoot at 15 s."""
    from scipy.stats import gamma

    times = np.arange(0, seconds, tr)
    response = gamma.pdf(times, 6) - gamma.pdf(times, 16) / 6
    return response / response.sum()


def convolved(drive: np.ndarray, tr: float = TR) -> np.ndarray:
    """A drive (scans, voxels) as seen through the haemodynamic response; nothing comes before the first scan."""
    from scipy.signal import lfilter

    return lfilter(haemodynamic_response(tr), [1.0], drive, axis=0)


def series(brain: SimBrain, subject: int, scans: int = 400, run: int = 1) -> NeuralData:
    """One run of scans, (scans, voxels), in which the subject's own stimuli are shown for 3 s each, one by one.

    Every voxel's signal has its gain as sd, and ncsnr is that of a scan. `stimulus_ids` is what was on the screen when
    the scan began; `events` has the onsets. Runs show different stimuli.
    """
    made, rng = brain.subject(subject), np.random.default_rng((brain.seed, subject, run, crc32(b"series")))
    ids, shown = _stream(brain, subject, scans, run)
    drive = made.truth.of(shown)
    signal = _with_sd(convolved(drive), np.where(made.truth.ncsnr > 0, made.truth.tuning.gains, 0))
    noise = _noise(rng, scans, drive.shape[1])
    sd = made.truth.tuning.gains / np.where(made.truth.ncsnr > 0, made.truth.ncsnr, 1)
    data = made.data
    return NeuralData(
        signal + sd * noise,
        shown,
        data.roi,
        data.ncsnr,
        data.coords,
        data.subject,
        TR,
        np.full(scans, run),
        _events(ids),
    )


def parcels(
    brain: SimBrain,
    subject: int,
    scans: int = 400,
    run: int = 1,
    *,
    connectome: np.ndarray | None = None,
    audio: np.ndarray | None = None,
) -> NeuralData:
    """One run as parcels, (scans, parcels); `roi` is each parcel's network.

    VIS follows Gabor energies, DAN the CNN's patches, LAN and DMN the caption, AUD `audio`, one row of features a scan
    (silence without). `connectome` (parcels, parcels), weights of a real one, couples the parcels at rest; without,
    they are independent. Parcels' weights are shared between subjects as voxels' are.
    """
    count = PARCELS if connectome is None else len(connectome)
    networks = np.repeat(list(NETWORKS), _sizes(count))
    rng = np.random.default_rng((brain.seed, subject, run, crc32(b"parcels")))
    ids, shown = _stream(brain, subject, scans, run)
    unique, index = np.unique(shown, return_inverse=True)
    banks = _summaries(Banks.of(_shown(brain, subject, unique), brain.features))
    drive = np.zeros((scans, count))
    for name, bank in FOLLOWED.items():
        here = networks == name
        features = audio if bank == "audio" else banks[bank][index]
        if features is not None:
            if len(features) != scans:
                raise DataError(f"audio has {len(features)} rows for {scans} scans")
            drive[:, here] = features @ _weights(brain, subject, name, features.shape[1], here.sum()).T
    signal = _with_sd(convolved(drive), np.full(count, SENSITIVITY))
    rest = _noise(rng, scans, count) @ _mixing(connectome, count).T
    heard = np.where((networks == "AUD") & (audio is None), 0.0, SENSITIVITY)
    return NeuralData(
        responses=signal + rest / rest.std(axis=0),
        stimulus_ids=shown,
        roi=networks,
        ncsnr=heard,
        subject=f"subj{subject + 1:02d}",
        tr=TR,
        runs=np.full(scans, run),
        events=_events(ids),
    )


def _stream(brain: SimBrain, subject: int, scans: int, run: int) -> tuple[np.ndarray, np.ndarray]:
    """The stimuli of a run, one after the other, and what is shown at each scan."""
    needed = -(-scans // SHOWN)
    if scans < 20:
        raise DataError(f"{scans} scans are too few for a haemodynamic response: take at least 20")
    own = brain.ids(subject)[brain.shared :]
    order = np.random.default_rng((brain.seed, crc32(b"stream"))).permutation(len(own))
    ids = own[order[(np.arange(needed) + (run - 1) * needed) % len(own)]]
    return ids, np.repeat(ids, SHOWN)[:scans]


def _shown(brain: SimBrain, subject: int, ids: np.ndarray) -> Stimuli:
    return brain.stimuli(subject).take(rows_of(brain.ids(subject), ids))


def _events(ids: np.ndarray) -> Mapping[str, np.ndarray]:
    onsets = np.arange(len(ids)) * SHOWN * TR
    return {"onset": onsets, "duration": np.full(len(ids), SHOWN * TR), "trial_type": ids.astype(str)}


def _noise(rng: np.random.Generator, scans: int, columns: int) -> np.ndarray:
    """Noise of sd about 1, (scans, columns): autocorrelated, with slow drifts and spikes at scans with motion."""
    from scipy.signal import lfilter

    white = rng.standard_normal((scans + 20, columns)) * np.sqrt(1 - AUTOCORRELATION**2)
    noise = lfilter([1.0], [1.0, -AUTOCORRELATION], white, axis=0)[20:]
    times = np.linspace(0, 1, scans)[:, None]
    waves = np.concatenate([np.cos(np.pi * k * times) for k in (1, 2, 3)], axis=1)
    noise += DRIFT * np.sqrt(2 / 3) * waves @ rng.standard_normal((3, columns))
    moved = rng.random(scans) < SPIKES
    noise[moved] += SPIKE_SIZE * rng.standard_normal((int(moved.sum()), 1)) * rng.uniform(0.5, 1, columns)
    return noise


def _with_sd(values: np.ndarray, sd: np.ndarray) -> np.ndarray:
    found = values.std(axis=0)
    return (values - values.mean(axis=0)) * (sd / np.where(found > 1e-9, found, np.inf))


def _summaries(banks: Banks) -> dict[str, np.ndarray]:
    """A row of z-scored features a stimulus; pictures are averaged over four quarters."""
    found = {"meanings": banks.meanings}
    for name in ("energies", "patches"):
        bank = getattr(banks, name)
        found[name] = bank.reshape(*bank.shape[:2], 2, 8, 2, 8).mean(axis=(3, 5)).reshape(len(bank), -1)
    return {name: (rows - rows.mean(axis=0)) / (rows.std(axis=0) + 1e-6) for name, rows in found.items()}


def _weights(brain: SimBrain, subject: int, network: str, features: int, parcels: int) -> np.ndarray:
    name = crc32(network.encode())
    everyone = np.random.default_rng((brain.seed, name)).standard_normal((parcels, features))
    own = np.random.default_rng((brain.seed, name, subject)).standard_normal((parcels, features))
    return np.sqrt(brain.share) * everyone + np.sqrt(1 - brain.share) * own


def _mixing(connectome: np.ndarray | None, count: int) -> np.ndarray:
    """Where activity ends up that spreads along the connections: the inverse of `1 - coupling * weights`.

    With the mean connectome of seven people of the Human Connectome Project the correlations that this makes at rest
    go with the measured ones at r = 0.61, and are as strong: 0.56 along the strongest 5 % of connections and 0.28
    elsewhere, 0.54 and 0.28 measured.
    """
    if connectome is None:
        return np.eye(count)
    weights = np.asarray(connectome, float)
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or not np.isfinite(weights).all():
        raise DataError(f"a connectome must be a square table of numbers, got {weights.shape}")
    weights = np.maximum(weights, 0) * (1 - np.eye(count))
    largest = np.abs(np.linalg.eigvals(weights)).max() or 1.0
    return np.linalg.inv(np.eye(count) - COUPLING / largest * weights)


def _sizes(count: int) -> list[int]:
    ends = np.round(np.cumsum(list(NETWORKS.values())) * count).astype(int)
    return np.diff(ends, prepend=0).tolist()
