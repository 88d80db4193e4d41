"""Shipped classifiers whose body serves several sets of classes."""

import json

import pytest
import torch
from transformers import ASTConfig, ResNetConfig, ViTConfig

from monochord.models import LoadError
from monochord.models.classifiers import load_classifier
from monochord.models.shipped import initialised, load_shipped, save_shipped

LABELS = {"fruit": ["apple", "pear"], "tools": ["saw", "axe", "awl"]}
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 32}
CONFIGS = {
    "ViTForImageClassification": (ViTConfig, {**SMALL, "image_size": 16, "patch_size": 8}),
    "ResNetForImageClassification": (
        ResNetConfig,
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    ),
    "ASTForAudioClassification": (ASTConfig, {**SMALL, "num_mel_bins": 16, "max_length": 32, "patch_size": 8}),
}


def inputs(kind):
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {"input_values": pixels[:, 0].repeat(1, 2, 1)} if kind.startswith("AST") else {"pixel_values": pixels}


@pytest.fixture(params=CONFIGS)
def shipped(request, tmp_path):
    kind, sizes = CONFIGS[request.param]
    config = kind(**sizes, num_labels=5, architectures=[request.param])
    model = initialised(config, 0)
    with torch.no_grad():
        for value in model.parameters():
            value += 0.05
    save_shipped(config, {7: model.state_dict()}, tmp_path / "net", seed=0, steps=[7], labels=LABELS)
    return tmp_path / "net", inputs(request.param)


def test_each_set_has_its_rows_and_names(shipped):
    folder, given = shipped
    with torch.inference_mode():
        whole = load_shipped(folder, None).eval()(**given).logits
        for name, columns in (("fruit", slice(0, 2)), ("tools", slice(2, 5))):
            model = load_classifier(folder, None, labels=name).eval()
            assert torch.allclose(model(**given).logits, whole[:, columns], atol=1e-6)
            assert list(model.config.id2label.values()) == LABELS[name] and model.num_labels == len(LABELS[name])
            assert model.config.label2id[LABELS[name][1]] == 1
            labels = torch.tensor([0, 1, 1])
            loss = model(**given, labels=labels).loss
            assert torch.allclose(loss, torch.nn.functional.cross_entropy(whole[:, columns], labels), atol=1e-6)


def test_a_new_head_is_the_same_each_time_and_the_body_the_trained_one(shipped):
    folder, given = shipped
    one, again = (load_classifier(folder, None, labels=["a", "b", "c", "d"]).eval() for _ in range(2))
    known = load_classifier(folder, None, labels="fruit").eval()
    with torch.inference_mode():
        said = one(**given).logits
        assert said.shape == (3, 4) and torch.equal(said, again(**given).logits)
    bodies = [{n: v for n, v in m.state_dict().items() if not n.startswith("classifier")} for m in (one, known)]
    assert all(torch.equal(value, bodies[1][name]) for name, value in bodies[0].items())
    assert one.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}


def test_it_is_saved_and_loaded_by_transformers(shipped, tmp_path):
    folder, given = shipped
    model = load_classifier(folder, torch.bfloat16, labels="tools")
    model.save_pretrained(tmp_path / "saved")
    back = type(model).from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    with torch.inference_mode():
        assert torch.allclose(back(**given).logits, model.float().eval()(**given).logits, atol=1e-5)
    assert list(back.config.id2label.values()) == LABELS["tools"]


def test_what_it_does_not_know_is_refused(shipped):
    folder, _ = shipped
    with pytest.raises(LoadError, match=r"net has no labels 'cars': use fruit, tools, or a list of names"):
        load_classifier(folder, None, labels="cars")
    with pytest.raises(LoadError, match="at least two different names"):
        load_classifier(folder, None, labels=["a", "a"])
    with pytest.raises(LoadError, match="no checkpoint 3"):
        load_classifier(folder, None, labels="fruit", checkpoint=3)
    assert json.loads((folder / "net.json").read_text())["labels"] == LABELS


def test_the_init_has_other_weights(shipped):
    folder, _ = shipped
    init, final = (load_classifier(folder, None, labels="fruit", checkpoint=c) for c in ("init", "final"))
    for (name, a), b in zip(init.named_parameters(), final.parameters(), strict=True):
        assert torch.allclose(a + 0.05, b, atol=3e-3 + 0.01 * a.abs().max().item()), name
