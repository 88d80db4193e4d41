"""The project's own picture nets as they ship: they load, they are the nets of their reports, they name pictures."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import monochord as mc
from monochord.models import LoadError, entries
from monochord.models.shipped import SHIPPED

REPORTS = Path(__file__).parents[3] / "tools/zoo/reports"
HEADS = {  # the default set of classes, and how many there are
    "fashion-cnn": ("fashion-mnist", 10),
    "fashion-vit": ("fashion-mnist", 10),
    "picture-cnn": ("emoji", 10),
    "picture-vit": ("emoji", 10),
    **{f"noisy-cnn-{percent}": ("pictures", 30) for percent in (0, 5, 10, 20, 30)},
}
HEADS = {name: head for name, head in HEADS.items() if name in entries()}  # a net appears with its weights


def logits(name, images, **options):
    model = mc.load(name, **options)
    with torch.inference_mode():
        return model(**mc.processor(name)(images)).logits


def report_of(name):
    body = entries()[name].subfolder
    return json.loads((REPORTS / f"{body}.json").read_text(encoding="utf8"))


@pytest.mark.parametrize("name", HEADS)
def test_loads_at_once_with_named_classes(name):
    mc.load(name)
    begin = time.process_time()
    model = mc.load(name)
    assert time.process_time() - begin < 1
    entry, (_, n_classes) = entries()[name], HEADS[name]
    assert type(model).__name__ == entry.architecture and not model.training
    assert sum(value.numel() for value in model.parameters()) == entry.parameters
    assert entry.row()["present"] and entry.row()["size"] == 0
    grey, colour = np.zeros((2, 28, 28), np.uint8), np.full((2, 64, 64, 3), 255, np.uint8)
    for images in (grey, colour):
        pixels = mc.processor(name)(images)["pixel_values"]
        assert pixels.shape == (2, 3, 32, 32) and pixels.abs().max() <= 1
        with torch.inference_mode():
            assert model(pixel_values=pixels).logits.shape == (2, n_classes)
    assert len(model.config.id2label) == n_classes == len(set(model.config.id2label.values()))
    assert model.config.name_or_path == entry.subfolder


@pytest.mark.parametrize("name", HEADS)
def test_the_init_is_not_the_trained_net(name):
    init, final = (mc.load(name, checkpoint=c) for c in ("init", "final"))
    for (place, a), b in zip(init.named_parameters(), final.parameters(), strict=True):
        assert a.shape == b.shape and not torch.equal(a, b), place
    again = mc.load(name, checkpoint="init")
    assert all(torch.equal(a, b) for a, b in zip(init.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", HEADS)
def test_is_the_net_of_its_report(name):
    report, said = report_of(name), json.loads((SHIPPED / entries()[name].subfolder / "net.json").read_text())
    head, n_classes = HEADS[name]
    assert report["parameters"][head] == entries()[name].parameters and report["steps"] == said["steps"]
    assert len(said["labels"][head]) == n_classes
    for found in report["test"].values():
        metric = "accuracy" if "accuracy" in found else "mean_average_precision"
        assert found[metric] > 1.5 * found["chance"]
        assert abs(found[metric] - found[f"{metric}_before_storing"]) < 0.02


def test_other_checkpoints_and_labels_are_refused():
    with pytest.raises(LoadError, match=r"no checkpoint 'best': use 0 to 0, 'final' or 'init'"):
        mc.load("fashion-cnn", checkpoint="best")
    with pytest.raises(LoadError, match=r"no labels 'cars': use fashion-mnist, emoji, clip-art, or a list of names"):
        mc.load("picture-cnn", labels="cars")
    if "fashion-vit" in HEADS:
        with pytest.raises(ValueError, match="use 32"):
            mc.processor("fashion-vit", size=56)
    assert mc.processor("fashion-cnn", size=56).size == 56


def test_one_body_has_three_heads_and_takes_a_new_one():
    for body in [name for name in ("fashion-cnn", "fashion-vit") if name in HEADS]:
        counts = [mc.load(body, labels=labels).num_labels for labels in ("fashion-mnist", "emoji", "clip-art")]
        assert counts == [10, 10, 71]
        new = mc.load(body, labels=["cat", "dog"])
        assert new.config.id2label == {0: "cat", 1: "dog"}
        state, other = new.state_dict(), mc.load(body, labels="clip-art").state_dict()
        assert all(torch.equal(v, other[n]) for n, v in state.items() if not n.startswith("classifier"))


def test_the_noisy_family_differs_in_its_labels_alone():
    families = [mc.load(f"noisy-cnn-{percent}", checkpoint="init") for percent in (0, 30)]
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in families), strict=True))
    wrong = [report_of(f"noisy-cnn-{percent}")["training_pictures"]["wrong_labels"] for percent in (0, 5, 10, 20, 30)]
    assert all(abs(share - percent / 100) < 0.01 for share, percent in zip(wrong, (0, 5, 10, 20, 30), strict=True))


@pytest.mark.material("fashion-mnist")
@pytest.mark.parametrize("name", [name for name, (head, _) in HEADS.items() if head != "emoji"])
def test_names_clothes(name):
    test = mc.data("fashion-mnist")["test"].first(200)
    right = (logits(name, np.asarray(test["image"])).argmax(1).numpy() == test["label"]).mean()
    report = report_of(name)["test"]
    assert right > (report["fashion-mnist"]["accuracy"] if "fashion-mnist" in report else 0.8) - 0.1


@pytest.mark.material("emoji")
@pytest.mark.parametrize("name", [name for name, (head, _) in HEADS.items() if head == "emoji"])
def test_names_emoji_as_the_catalog_does(name):
    dataset = mc.data("emoji")
    assert tuple(mc.load(name).config.id2label.values()) == dataset.label_names
    test = dataset["test"]
    right = (logits(name, np.asarray(test["image"])).argmax(1).numpy() == test["label"]).mean()
    assert abs(right - report_of(name)["test"]["emoji"]["accuracy"]) < 0.02


@pytest.mark.material("clip-art")
def test_knows_the_keywords_of_clip_art():
    dataset = mc.data("clip-art")
    model = mc.load("picture-cnn", labels="clip-art")
    assert tuple(model.config.id2label.values()) == dataset.label_names
    test = dataset["test"]
    said = logits("picture-cnn", np.asarray(test["image"]), labels="clip-art").argmax(1)
    first = np.asarray(test["labels"])[np.arange(len(test)), said.numpy()].mean()
    assert first > 0.3  # the likeliest keyword holds; the most frequent one holds of 0.16
