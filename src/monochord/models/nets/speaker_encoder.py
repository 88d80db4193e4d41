"""A speaker encoder: an LSTM over mel frames whose last state says who speaks, and the mel frames that it reads.

From "Generalized End-to-End Loss for Speaker Verification", October 28, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, relu

RATE, MELS, FRAMES, WINDOW, HOP = 16_000, 40, 160, 400, 160
LOUDNESS = 10 ** (-30 / 20)  # root mean square, -30 dB of full scale


class SpeakerEncoder(nn.Module):
    """`input_features` (batch, frames, 40) to embeddings (batch, 256), none negative and of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=256)
        self.lstm = nn.LSTM(MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, input_features: Tensor) -> Tensor:
        states, _ = self.lstm(input_features)
        return normalize(relu(self.linear(states[:, -1])), dim=-1)


class SpeakerProcessor:
    """16 kHz waves to `input_features` (batch, 160, 40): mel power of the 1.6 s around the middle, at equal loudness.

    Called like the feature extractors of transformers. Short waves are padded with silence.
    """

    def __init__(self) -> None:
        from transformers.audio_utils import mel_filter_bank

        bank = mel_filter_bank(WINDOW // 2 + 1, MELS, 0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
        self.filters = torch.from_numpy(bank).float()
        self.window = torch.hann_window(WINDOW)

    def __call__(
        self, waves: np.ndarray | Sequence[np.ndarray], sampling_rate: int = RATE, return_tensors: str = "pt"
    ) -> dict[str, Tensor]:
        """`waves`: one (samples,) or several, between -1 and 1."""
        if sampling_rate != RATE:
            raise ValueError(f"sampling_rate={sampling_rate}: resample to {RATE}")
        if return_tensors != "pt":
            raise ValueError("this processor gives tensors of torch only")
        if isinstance(waves, np.ndarray) and waves.ndim == 1:
            waves = [waves]
        return {"input_features": torch.stack([self._frames(np.asarray(wave)) for wave in waves])}

    def _frames(self, wave: np.ndarray) -> Tensor:
        samples = torch.from_numpy(wave.astype(np.float32))
        samples = samples * (LOUDNESS / samples.square().mean().sqrt().clamp(min=1e-8))
        wanted = FRAMES * HOP
        begin = max(0, (len(samples) - wanted) // 2)
        samples = samples[begin : begin + wanted]
        samples = pad(samples, (0, wanted - len(samples)))
        spectrum = torch.stft(samples, WINDOW, HOP, window=self.window, pad_mode="constant", return_complex=True)
        return (spectrum.abs().square().T @ self.filters)[:FRAMES]
