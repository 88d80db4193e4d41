"""The project's own image-text models: two towers, one space."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import monochord as mc
from monochord.models import LoadError, entries
from monochord.models.nets.image_text import ImageText, ImageTextProcessor, contrastive
from monochord.models.shipped import SHIPPED, write_weights

REPORTS = Path(__file__).parents[3] / "tools/zoo/reports"
NETS = [name for name in ("image-text", "image-text-small") if name in entries()]
THINGS = ["red apple", "dog face", "automobile", "flag: japan"]


class Tower(nn.Module):
    """Some features of each token or patch."""

    def __init__(self, width):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=width)
        self.embed = nn.Embedding(10, width)

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(last_hidden_state=self.embed(input_ids.long()))


def joined():
    torch.manual_seed(0)
    return ImageText(Tower(6), Tower(8), 4)


def test_logits_are_scaled_cosines_and_padding_does_not_count():
    net = joined()
    pixels = torch.randint(10, (3, 5)).float()
    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    out = net(ids, pixels, mask)
    assert out.logits_per_image.shape == (3, 2) and torch.equal(out.logits_per_text, out.logits_per_image.T)
    assert torch.allclose(out.image_embeds.norm(dim=1), torch.ones(3))
    cosines = torch.cosine_similarity(out.image_embeds[:, None], out.text_embeds[None], -1)
    assert torch.allclose(out.logits_per_image, net.logit_scale.exp() * cosines, atol=1e-5)
    assert torch.allclose(net.get_text_features(ids[1:, :2]), out.text_embeds[1:], atol=1e-6)
    assert out.loss is None


def test_the_loss_is_of_both_directions():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    alone = -torch.log_softmax(logits, 1)[0, 0]
    assert torch.allclose(contrastive(logits), alone)
    assert contrastive(logits.flip(0)) > contrastive(logits)
    assert torch.allclose(contrastive(torch.zeros(5, 5)), torch.tensor(5.0).log())
    net = joined()
    loss = net(torch.tensor([[1, 2], [3, 4]]), torch.randint(10, (2, 5)).float(), return_loss=True).loss
    loss.backward()
    assert net.visual_projection.weight.grad.any() and net.text_projection.weight.grad.any()


def test_the_processor_takes_either_or_both():
    process = ImageTextProcessor(lambda text, **_: {"input_ids": text}, lambda images, **_: {"pixel_values": images})
    assert process(text=["a"]) == {"input_ids": ["a"]} and process(images=[1]) == {"pixel_values": [1]}
    assert set(process(text="a", images=[1])) == {"input_ids", "pixel_values"}
    with pytest.raises(ValueError, match="pass text, images or both"):
        process()


@pytest.mark.parametrize("name", NETS)
def test_the_report_is_of_the_stored_projections_and_above_chance(name):
    report = json.loads((REPORTS / f"{name}.json").read_text(encoding="utf8"))
    assert report["parameters"] == entries()[name].parameters
    assert json.loads((SHIPPED / name / "net.json").read_text())["steps"] == [report["steps"]]
    for found in report["test"].values():
        if "candidates" in found:
            assert found["projections"]["recall_5"] > 2 * found["chance"]["recall_5"]


@pytest.mark.material("minilm", "dinov2-s")
@pytest.mark.parametrize("name", NETS)
def test_loads_and_joins(name):
    net, process = mc.load(name), mc.processor(name)
    assert sum(value.numel() for value in net.parameters()) == entries()[name].parameters and not net.training
    given = process(text=THINGS, images=np.full((2, 64, 64, 3), 255, np.uint8))
    with torch.inference_mode():
        out = net(given["input_ids"], given["pixel_values"], given["attention_mask"])
    assert out.logits_per_image.shape == (2, 4)
    init = mc.load(name, checkpoint="init")
    assert not torch.allclose(init.visual_projection.weight, net.visual_projection.weight)
    assert torch.equal(
        init.text_model.embeddings.word_embeddings.weight, net.text_model.embeddings.word_embeddings.weight
    )
    with pytest.raises(LoadError, match="no checkpoint 5"):
        mc.load(name, checkpoint=5)


@pytest.mark.material("minilm", "dinov2-s", "emoji")
@pytest.mark.parametrize("name", NETS)
def test_finds_the_name_of_an_emoji(name):
    test = mc.data("emoji")["test"].take(np.arange(0, 191, 5))
    net, process = mc.load(name), mc.processor(name)
    given = process(text=test["text"], images=np.asarray(test["image"]))
    with torch.inference_mode():
        logits = net(given["input_ids"], given["pixel_values"], given["attention_mask"]).logits_per_image
    first = (logits.argmax(1) == torch.arange(len(test))).float().mean().item()
    assert first > (0.25 if name == "image-text" else 0.08)  # of 39 names: chance is 0.026


def test_weights_that_are_not_projections_are_refused(tmp_path, monkeypatch):
    from monochord.models.zoo import image_text

    (tmp_path / "net.json").write_text('{"seed": 0, "steps": [1]}')
    write_weights({"text_projection.weight": torch.ones(4, 8)}, tmp_path / "step-1.safetensors")
    monkeypatch.setattr(image_text, "towers", lambda vision, dtype: joined())
    with pytest.raises(LoadError, match=r"visual_projection\.weight, .* expected, found text_projection\.weight"):
        image_text.load(tmp_path, None, vision="any")
