"""The project's own audio-spectrogram transformer, 1.2 million parameters, trained to tell spoken languages.

One body for two sets of classes: `labels="spoken-letters"`, twenty languages of letters and syllables (the default),
or `"spoken-prompts"`, five of telephone prompts; a list of names gives a new head to train. tools/zoo/speech.py
trains it; tools/zoo/reports has what was measured.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from monochord.models.classifiers import load_classifier
from monochord.models.shipped import Shipped, trained

MELS, FRAMES = 64, 128
MEAN, STD = -6.5, 5.4  # of the training clips' log-mel energies


def extractor(folder: Path | None = None, **options: Any) -> Any:
    """Waves at 16 kHz to `input_values` (batch, 128, 64): the log-mel energies of the first 1.28 seconds.

    Transformers' `ASTFeatureExtractor`; a shorter clip is followed by zeros.
    """
    from monochord.models.nets.spectrogram import SpectrogramExtractor

    made: Any = SpectrogramExtractor
    return made(**{"num_mel_bins": MELS, "max_length": FRAMES, "mean": MEAN, "std": STD, **options})


ENTRIES = trained(
    Shipped(
        name="speech-ast",
        kind="audio-classifier",
        title="our own AST with 6 layers of 128, for spoken languages",
        licence="Apache-2.0, ours; its sounds are GPL-2.0-or-later and CC-BY-SA-3.0",
        package=None,
        parameters=1_230_228,
        architecture="ASTForAudioClassification",
        load=partial(load_classifier, labels="spoken-letters"),
        processor=extractor,
    )
)
