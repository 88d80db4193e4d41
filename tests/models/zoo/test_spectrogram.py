"""The project's own audio-spectrogram transformer as it ships."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import monochord as mc
from monochord.data import Batches
from monochord.models import LoadError, entries

REPORT = Path(__file__).parents[3] / "tools/zoo/reports/speech-ast.json"


def test_loads_at_once_and_hears():
    mc.load("speech-ast")
    begin = time.process_time()
    model = mc.load("speech-ast")
    assert time.process_time() - begin < 1
    entry = entries()["speech-ast"]
    assert type(model).__name__ == entry.architecture and not model.training
    assert sum(value.numel() for value in model.parameters()) == entry.parameters
    wave = np.sin(np.arange(16_000) * 0.2).astype(np.float32) * 0.3
    given = mc.processor("speech-ast")([wave, wave[:6000]], sampling_rate=16_000, return_tensors="pt")
    assert given["input_values"].shape == (2, 128, 64) and given["input_values"].abs().max() < 3
    with torch.inference_mode():
        assert model(**given).logits.shape == (2, 20)
    assert mc.load("speech-ast", labels="spoken-prompts").config.id2label == dict(
        enumerate(("en", "es", "fr", "it", "ru"))
    )


def test_the_init_is_not_the_trained_net_and_others_are_refused():
    init, final = (mc.load("speech-ast", checkpoint=c) for c in ("init", "final"))
    for (place, a), b in zip(init.named_parameters(), final.parameters(), strict=True):
        assert not torch.equal(a, b), place
    with pytest.raises(LoadError, match="no checkpoint 1"):
        mc.load("speech-ast", checkpoint=1)
    with pytest.raises(LoadError, match=r"no labels 'digits': use spoken-letters, spoken-prompts, or a list of names"):
        mc.load("speech-ast", labels="digits")


@pytest.mark.material("spoken-letters")
def test_tells_languages_apart():
    dataset = mc.data("spoken-letters")
    model = mc.load("speech-ast")
    assert tuple(model.config.id2label.values()) == dataset.label_names
    batches = Batches(dataset["test"], mc.processor("speech-ast"), 64, shuffle=False)
    right = []
    with torch.inference_mode():
        for batch in batches:
            labels = batch.pop("labels")
            right.append(model(**batch).logits.argmax(1) == labels)
    report = json.loads(REPORT.read_text(encoding="utf8"))["test"]["spoken-letters"]
    assert abs(torch.cat(right).float().mean().item() - report["accuracy"]) < 0.02
