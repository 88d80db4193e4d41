"""Train an audio-spectrogram transformer of about a million parameters to tell spoken languages.

    python tools/zoo/speech.py                 # trains (or goes on), ships, measures

After "AST: Audio Spectrogram Transformer", April 5, 2021. One body for two sets: letters and syllables in twenty
languages, and prompts in five. The spoken captions of Tux Paint, in thirteen languages by other speakers, are left
out for those who tune it.
"""

from __future__ import annotations

import argparse
from functools import cache
from typing import Any

import numpy as np
import torch
from classify import Net, Part, train
from torch import Tensor, nn

import monochord as mc
from monochord.data import Dataset
from monochord.models.shipped import initialised
from monochord.models.zoo.spectrogram import FRAMES, MELS, extractor

SEED = 0
SETS = ("spoken-letters", "spoken-prompts")
LONGEST = 400  # frames of a clip that training draws from


def net() -> Net:
    """Six layers of 128, patches of 16 by 16."""
    return Net("speech-ast", transformer, parts, "input_values", steps=600, rate=2e-3, muon=True)


@cache
def sounds(name: str) -> Dataset:
    """A data set of the catalog."""
    return mc.data(name)


def parts() -> dict[str, Part]:
    """Both sets, half a batch each."""
    return {name: part(name, 32) for name in SETS}


def part(name: str, rows: int, split: str = "train") -> Part:
    """A split of a set: 1.28 seconds from anywhere in a clip while training, else its beginning."""
    dataset = sounds(name)
    clips = dataset[split]["audio"]
    process = extractor()
    mels: dict[int, np.ndarray] = {}

    def inputs(items: np.ndarray, generator: np.random.Generator | None) -> Tensor:
        if generator is None:
            waves = [clips.waves([item])[0] for item in items]
            begun: Tensor = process(waves, sampling_rate=clips.rate, return_tensors="pt")["input_values"]
            return begun
        for item in set(items.tolist()) - mels.keys():
            mels[item] = frames(process, clips.waves([item])[0])
        return torch.from_numpy(np.stack([changed(mels[item], process, generator) for item in items.tolist()]))

    return Part(dataset.label_names, np.asarray(dataset[split]["label"]), inputs, rows)


def frames(process: Any, wave: np.ndarray) -> np.ndarray:
    """The log-mel frames of a whole clip (frames, mels), by the extractor's own means."""
    count = max(1, min(LONGEST, 1 + (len(wave) - 400) // 160))
    mel: np.ndarray = np.asarray(process._extract_fbank_features(wave, max_length=count), np.float32)
    return mel


def changed(mel: np.ndarray, process: Any, generator: np.random.Generator) -> np.ndarray:
    """A stretch of the clip, up to 6 dB louder or softer, one band of mels and one of frames at the mean."""
    begin = generator.integers(0, max(1, len(mel) - FRAMES + 1))
    cut = mel[begin : begin + FRAMES] + np.float32(generator.uniform(-1.4, 1.4))
    out = np.zeros((FRAMES, MELS), np.float32)  # silence behind a short clip is 0, as the extractor has it
    out[: len(cut)] = cut
    out = (out - process.mean) / (2 * process.std)
    wide, long = generator.integers(0, 9), generator.integers(0, 17)
    low, early = generator.integers(0, MELS - wide), generator.integers(0, FRAMES - long)
    out[:, low : low + wide] = 0
    out[early : early + long] = 0
    return out.astype(np.float32)


def labels() -> list[str]:
    """The classes of both heads, in their order."""
    return [f"{name}: {label}" for name in SETS for label in sounds(name).label_names]


def transformer() -> nn.Module:
    """The random initialisation."""
    from transformers import ASTConfig

    config = ASTConfig(
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        num_mel_bins=MELS,
        max_length=FRAMES,
        patch_size=16,
        frequency_stride=16,
        time_stride=16,
        initializer_range=0.05,
        num_labels=len(labels()),
        architectures=["ASTForAudioClassification"],
    )
    return initialised(config, SEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--train-only", action="store_true", help="neither ship nor measure")
    train(net())
    if not parser.parse_args().train_only:
        from classified import ship_and_measure

        ship_and_measure(net(), {name: (name, part(name, 1, "test")) for name in SETS})


if __name__ == "__main__":
    main()
