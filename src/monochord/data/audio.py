"""Sounds of unequal length as one column: flat 16-bit samples, memory-mapped, and where each begins and ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import gcd
from pathlib import Path
from typing import Any, overload

import numpy as np

from monochord.data.dataset import DataError

RATE = 16_000


class Clips(Sequence[np.ndarray]):
    """Sounds of one sampling rate: `clips[3]` is an int16 array (samples,), `clips.take(rows)` other clips.

    `samples` (int16, flat) holds all sounds; `starts` and `stops` (int64) say where in it each one is.
    """

    def __init__(self, samples: np.ndarray, starts: np.ndarray, stops: np.ndarray, rate: int = RATE) -> None:
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise DataError(f"samples must be flat int16, got {samples.dtype} {samples.shape}")
        if len(starts) != len(stops) or (np.asarray(stops) < np.asarray(starts)).any():
            raise DataError("every clip needs a start and a stop behind it")
        if len(stops) and (int(np.max(stops)) > len(samples) or int(np.min(starts)) < 0):
            raise DataError(f"clips end at sample {np.max(stops)}, there are {len(samples)}: the file is cut off")
        self.samples, self.starts, self.stops, self.rate = samples, np.asarray(starts), np.asarray(stops), rate

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, row: slice) -> Clips: ...
    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        return self.samples[self.starts[row] : self.stops[row]]

    def take(self, rows: Sequence[int] | np.ndarray) -> Clips:
        """The given clips, in that order; no sample is copied."""
        rows = np.asarray(rows, np.int64)
        return Clips(self.samples, self.starts[rows], self.stops[rows], self.rate)

    @property
    def seconds(self) -> np.ndarray:
        """How long each clip is, float64 (clips,)."""
        return np.asarray((self.stops - self.starts) / self.rate)

    def waves(self, rows: Sequence[int] | np.ndarray, seconds: float | None = None) -> np.ndarray:
        """Clips as float32 (rows, samples) between -1 and 1, zeros behind the short ones.

        All are as long as the longest, or `seconds`: what is longer is cut at its end.
        """
        parts = [self[int(row)] for row in rows]
        length = max(map(len, parts)) if seconds is None else round(seconds * self.rate)
        waves = np.zeros((len(parts), length), np.float32)
        for wave, part in zip(waves, parts, strict=True):
            wave[: len(part)] = part[:length] / np.float32(32768)
        return waves


def read_sound(file: Path, rate: int = RATE) -> np.ndarray:
    """A WAV, Ogg or FLAC file as int16 (samples,), channels averaged, resampled to `rate`.

    WAV is read by scipy; the rest needs the library soundfile. Raises `DataError` where it is missing.
    """
    from scipy.signal import resample_poly

    if file.suffix == ".wav":
        from scipy.io import wavfile

        found, samples = wavfile.read(file)
        if samples.dtype != np.int16:
            raise DataError(f"{file.name}: WAV of 16 bit expected, got {samples.dtype}")
        wave = samples / 32768
    else:
        try:
            import soundfile
        except ImportError:
            raise DataError(
                f"{file.name}: reading {file.suffix} needs soundfile: pip install monochord[data]"
            ) from None
        wave, found = soundfile.read(file)
    wave = wave.mean(axis=1) if wave.ndim == 2 else wave
    if found != rate:
        step = gcd(found, rate)
        wave = resample_poly(wave, rate // step, found // step)
    rounded: np.ndarray = np.clip(np.round(wave * 32768), -32768, 32767).astype(np.int16)
    return rounded


def save_clips(folder: Path, sounds: Iterable[np.ndarray]) -> int:
    """Write sounds one after the other as `samples.npy` and `offsets.npy` (clips + 1,); how many there were."""
    offsets = [0]
    raw = folder / "samples.raw"
    with open(raw, "wb") as file:
        for sound in sounds:
            file.write(sound.astype("<i2").tobytes())
            offsets.append(offsets[-1] + len(sound))
    stored = np.lib.format.open_memmap(folder / "samples.npy", mode="w+", dtype="<i2", shape=(offsets[-1],))
    for begin, block in _blocks(raw, offsets[-1]):
        stored[begin : begin + len(block)] = block
    stored.flush()
    raw.unlink()
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    return len(offsets) - 1


def load_clips(folder: Path) -> Clips:
    """What `save_clips` wrote, memory-mapped."""
    offsets = np.load(folder / "offsets.npy")
    return Clips(np.load(folder / "samples.npy", mmap_mode="r"), offsets[:-1], offsets[1:])


def _blocks(raw: Path, count: int) -> Iterator[tuple[int, np.ndarray]]:
    if count:
        samples = np.memmap(raw, dtype="<i2", mode="r", shape=(count,))
        for begin in range(0, count, 1 << 22):
            yield begin, samples[begin : begin + (1 << 22)]
