"""Waves to log-mel frames for an audio-spectrogram transformer, however short they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import ASTFeatureExtractor

WINDOW = 400  # samples, 25 ms


class SpectrogramExtractor(ASTFeatureExtractor):
    """Transformers' extractor, which fails on a wave shorter than a window: here it is followed by silence first."""

    def __call__(
        self, raw_speech: Any, sampling_rate: int | None = None, return_tensors: Any = None, **kwargs: Any
    ) -> Any:
        """`raw_speech`: one wave (samples,) or several, between -1 and 1."""
        alone = isinstance(raw_speech, np.ndarray) and raw_speech.ndim == 1
        waves = [np.asarray(wave, np.float32) for wave in ([raw_speech] if alone else raw_speech)]
        padded = [np.pad(wave, (0, max(0, WINDOW - len(wave)))) for wave in waves]
        return super().__call__(padded, sampling_rate=sampling_rate, return_tensors=return_tensors, **kwargs)
