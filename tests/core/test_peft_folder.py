"""PEFT's LoRA folder both ways, against the `peft` package itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import zoo
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from monochord.adapt import BitFit, DoRA, FullTuning, LoRA, PromptTokens
from monochord.core.tuner import Tuned, Tuner
from monochord.testing import check_save_and_load

warnings.filterwarnings("ignore", module="peft")


class ConvNet(nn.Module):
    """Convolutions, an embedding of labels and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.label = nn.Embedding(10, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        x = self.mix(self.stem(pixels).relu()).relu().mean((2, 3))
        return self.head(x + self.label(labels))


def convnet() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    pixels = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).sin()
    return ConvNet().eval(), {"pixels": pixels, "labels": torch.tensor([3, 7])}


def classifier() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = hf.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, num_labels=3
    )
    return hf.BertForSequenceClassification(config).eval(), zoo.text_batch()


def from_zoo(name: str) -> Callable[[], tuple[nn.Module, dict[str, Tensor]]]:
    return lambda: (zoo.build(name), zoo.batch(name))


def sequential() -> tuple[nn.Module, dict[str, Tensor]]:
    """Layers `0`, `10` and `body.0`: names that end alike."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8), *[nn.Identity()] * 9, nn.Linear(8, 8)]
    model = nn.Sequential(*layers)
    model.add_module("body", nn.Sequential(nn.Linear(8, 8)))
    return model.eval(), {"input": torch.linspace(-1, 1, 16).reshape(2, 8)}


Build = Callable[[], tuple[nn.Module, dict[str, Tensor]]]
OURS: dict[str, tuple[Build, Tuner]] = {
    "llama": (from_zoo("llama"), LoRA(rank=4)),
    "llama everywhere": (from_zoo("llama"), LoRA(rank=2, sites="blocks.**.weight")),
    "embedding": (from_zoo("llama"), LoRA(rank=3, sites=("embed.weight", "blocks.0.mlp.up.weight"))),
    "unembedding": (from_zoo("gpt2"), LoRA(rank=3, sites="unembed.weight")),
    "rank stabilised": (from_zoo("llama"), LoRA(rank=3, alpha=7.3, stabilised=True)),
    "two ranks": (from_zoo("llama"), LoRA(rank=2, sites="**.q.weight") | LoRA(rank=5, alpha=3, sites="**.up.weight")),
    "gpt2 whole": (from_zoo("gpt2"), LoRA(rank=3, sites=("blocks.*.attn.o.weight", "blocks.*.mlp.up.weight"))),
    "gpt2 slices": (from_zoo("gpt2"), LoRA(rank=3)),
    "gpt2 unequal slices": (from_zoo("gpt2"), LoRA(rank=3, sites="**.q.weight") | LoRA(rank=2, sites="**.v.weight")),
    "bert head": (classifier, LoRA(rank=4) | FullTuning(sites="classifier.**")),
    "convolutions": (convnet, LoRA(rank=2, sites="{stem,mix}.weight")),
    "convolutions and head": (convnet, LoRA(rank=2, sites=("mix.weight", "label.weight")) | FullTuning("head.**")),
    "names that end alike": (sequential, LoRA(rank=2, sites="0.weight")),
    "dora": (from_zoo("llama"), DoRA(rank=2)),
    "dora gpt2 slices": (from_zoo("gpt2"), DoRA(rank=2)),
    "dora convolutions": (convnet, DoRA(rank=2, sites="{stem,mix}.weight")),
}


def disturb(parameters: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", OURS)
def test_ours_to_peft_and_back(case: str, tmp_path: Path) -> None:
    build, tuner = OURS[case]
    model, batch = build()
    before = zoo.run(model, batch)
    with tuner.attach(model) as tuned:
        disturb(tuned.parameters())
        wanted, trained = zoo.run(model, batch), tuned.n_trainable
        tuned.save(tmp_path / "peft", format="peft")
    assert (wanted - before).abs().max() > 1e-2
    peft = PeftModel.from_pretrained(build()[0], tmp_path / "peft").eval()
    close(zoo.run(peft, batch), wanted)
    with Tuned.load(model, tmp_path / "peft") as loaded:
        close(zoo.run(model, batch), wanted)
        if "slices" not in case:  # those become changes of the whole weight
            assert loaded.n_trainable == trained
            assert torch.equal(zoo.run(model, batch), wanted)
        exact = zoo.run(model, batch)
        loaded.save(tmp_path / "again", format="peft")
        loaded.save(tmp_path / "ours")
    one, two = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("peft", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    configs = [json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("peft", "again")]
    assert configs[0] == configs[1]
    with Tuned.load(model, tmp_path / "ours"):  # its recipe is one of registered methods
        assert torch.equal(zoo.run(model, batch), exact)
    assert torch.equal(zoo.run(model, batch), before)


TARGETS: dict[str, tuple[Build, dict[str, Any]]] = {
    "llama": (from_zoo("llama"), {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 7}),
    "llama all": (from_zoo("llama"), {"target_modules": "all-linear", "lora_dropout": 0.1}),
    "llama regex": (from_zoo("llama"), {"target_modules": r".*layers\.1.*(q|v)_proj"}),
    "llama one layer": (from_zoo("llama"), {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "llama patterns": (
        from_zoo("llama"),
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"layers.0.*": 5}},
    ),
    "embedding": (from_zoo("llama"), {"target_modules": ["embed_tokens", "v_proj"]}),
    "rank stabilised": (from_zoo("llama"), {"target_modules": ["v_proj"], "use_rslora": True, "r": 5}),
    "gpt2": (from_zoo("gpt2"), {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "bert head": (classifier, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "bert task": (classifier, {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "convolutions": (convnet, {"target_modules": ["stem", "mix", "label"], "modules_to_save": ["head"], "r": 3}),
    "dora": (from_zoo("llama"), {"target_modules": ["q_proj"], "use_dora": True}),
    "dora convolutions": (convnet, {"target_modules": ["stem", "mix", "head"], "use_dora": True, "r": 3}),
}


@pytest.mark.parametrize("case", TARGETS)
def test_peft_to_ours_and_back(case: str, tmp_path: Path) -> None:
    build, options = TARGETS[case]
    model, batch = build()
    peft = get_peft_model(build()[0], LoraConfig(**options)).eval()
    disturb(p for p in peft.parameters() if p.requires_grad)
    wanted = zoo.run(peft, batch)
    peft.save_pretrained(tmp_path / "theirs")
    trained = sum(p.numel() for p in peft.parameters() if p.requires_grad)
    with Tuned.load(model, tmp_path / "theirs", name="adapter") as tuned:
        assert tuned.name == "adapter" and tuned.n_trainable == trained
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in tuned.parameters()}
        close(zoo.run(model, batch), wanted)
        tuned.save(tmp_path / "ours", format="peft")
    theirs, ours = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("theirs", "ours"))
    assert all(torch.equal(theirs[n], ours[n]) for n in ours)
    assert all("base_layer" in n for n in theirs.keys() - ours.keys())
    close(zoo.run(PeftModel.from_pretrained(build()[0], tmp_path / "ours").eval(), batch), wanted)


def test_the_recipe_reads_like_one_written_by_hand(tmp_path: Path) -> None:
    model = zoo.build("llama")
    with LoRA(rank=4, alpha=7.3, dropout=0.1).attach(model) as tuned:
        tuned.save(tmp_path, format="peft")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 7.3, ["q_proj", "v_proj"])
    with Tuned.load(model, tmp_path) as loaded:
        assert loaded.tuner == LoRA(
            ("blocks.*.attn.q.weight", "blocks.*.attn.v.weight"), rank=4, alpha=7.3, dropout=0.1
        )


def test_what_is_loaded_holds_every_invariant_of_saving(tmp_path: Path) -> None:
    model, batch = classifier()
    with (LoRA(rank=4) | FullTuning(sites="classifier.**")).attach(model) as tuned:
        tuned.save(tmp_path, format="peft")
    with Tuned.load(model, tmp_path) as loaded:
        recipe = loaded.tuner
    check_save_and_load(lambda: recipe, model, batch)


GROUPED = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten())


@pytest.mark.parametrize(
    ("build", "tuner", "words"),
    [
        (classifier, LoRA() | BitFit(), "no equivalent for .*bias trained in place"),
        (classifier, BitFit(), "without a low-rank change"),
        (classifier, LoRA() | PromptTokens(), "no equivalent for Prompt at embed:out"),
        (classifier, LoRA() | DoRA(sites="blocks.*.mlp.up.weight"), "more than one use of DoRA"),
        (classifier, LoRA() | LoRA(sites="**.up.weight", dropout=0.5), "more than one dropout"),
        (from_zoo("mixtral"), LoRA(sites="**.experts.*"), "no equivalent for a change of blocks.0.experts"),
        (from_zoo("multihead"), LoRA(sites="**.o.weight"), "no equivalent for a change of blocks.0.attn.o.weight"),
        (convnet, DoRA(sites="label.weight"), "columns of an embedding"),
        (lambda: (GROUPED, {}), LoRA(rank=2, sites="0.weight"), "not grouped"),
        (sequential, LoRA(rank=2, sites="10.weight") | FullTuning("0.**"), "names end alike"),
    ],
)
def test_what_peft_has_not_is_named(build: Build, tuner: Tuner, words: str, tmp_path: Path) -> None:
    with tuner.attach(build()[0]) as tuned, pytest.raises(ValueError, match=words) as error:
        tuned.save(tmp_path / "peft", format="peft")
    assert "\n" not in str(error.value) and not (tmp_path / "peft").exists()


# ---------------------------------------------------------------- damaged and foreign folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with (LoRA(rank=2) | FullTuning("classifier.**")).attach(classifier()[0]) as tuned:
        tuned.save(tmp_path / "peft", format="peft")
    return tmp_path / "peft"


def refused(folder: Path, words: str, model: nn.Module | None = None) -> None:
    """Loading says so in one line and leaves the model as it was."""
    model = model if model is not None else classifier()[0]
    before, flags = {n: v.clone() for n, v in model.state_dict().items()}, [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=words) as error:
        Tuned.load(model, folder)
    assert "\n" not in str(error.value)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags


def edit(folder: Path, **options: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


def exchange(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


QUERY = "base_model.model.bert.encoder.layer.1.attention.self.query"


def test_a_missing_layer_is_named(folder: Path) -> None:
    exchange(folder, lambda t: [t.pop(n) for n in list(t) if n.startswith(QUERY)])
    refused(folder, r"lacks the tensors of 'bert.encoder.layer.1.attention.self.query' \(1 layers missing\)")


def test_a_missing_factor_is_named(folder: Path) -> None:
    exchange(folder, lambda t: t.pop(f"{QUERY}.lora_B.weight"))
    refused(folder, "lacks the tensor 'bert.encoder.layer.1.attention.self.query.lora_B.weight'")


def test_a_missing_tensor_of_a_whole_module_is_named(folder: Path) -> None:
    exchange(folder, lambda t: t.pop("base_model.model.classifier.bias"))
    refused(folder, "lacks 1 tensors of modules_to_save, the first is 'classifier.bias'")


def test_a_tensor_without_a_place_is_named(folder: Path) -> None:
    exchange(folder, lambda t: t.update({"base_model.model.extra.weight": torch.ones(2)}))
    refused(folder, "'extra.weight', which has no place")


def test_a_magnitude_in_a_folder_without_dora_is_refused(folder: Path) -> None:
    exchange(folder, lambda t: t.update({f"{QUERY}.lora_magnitude_vector": torch.ones(32)}))
    refused(folder, "magnitude_vector', which has no place")


def test_a_layer_the_model_has_not_is_named(folder: Path) -> None:
    exchange(folder, lambda t: t.update({"base_model.model.bert.other.lora_A.weight": torch.ones(2, 2)}))
    refused(folder, "has tensors of 'bert.other'")


def test_another_shape_is_named(folder: Path) -> None:
    exchange(folder, lambda t: t.update({f"{QUERY}.lora_B.weight": torch.ones(32, 3)}))
    refused(folder, r"query.lora_B.weight is \(32, 3\) in .*, \(32, 2\) here")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"peft_type": "IA3"}, "adapter of the type IA3: only LORA"),
        ({"bias": "all"}, "bias='all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"r": "8"}, "r='8', which is no number"),
        ({"r": 64, "rank_pattern": {}}, "rank=64 does not fit"),
        ({"target_modules": "(q"}, "no regular expression"),
    ],
)
def test_an_option_that_is_no_low_rank_change_is_named(folder: Path, options: dict[str, Any], words: str) -> None:
    edit(folder, **options)
    refused(folder, words)


def test_another_kind_of_adapter_of_peft(tmp_path: Path) -> None:
    peft = get_peft_model(zoo.build("llama"), IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    peft.save_pretrained(tmp_path)
    refused(tmp_path, "type IA3", zoo.build("llama"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_a_damaged_configuration(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_text(text)
    refused(folder, "is no configuration of PEFT")


def test_damaged_tensors(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    refused(folder, "truncated")
    path.write_bytes(b"\x80\x02" + whole)
    refused(folder, "pickle|truncated")
    path.unlink()
    refused(folder, "does not exist")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02")
    refused(folder, "holds a pickle")


def test_another_base_is_refused_unless_asked_for(folder: Path) -> None:
    model, _ = classifier()
    with torch.no_grad():
        model.bert.pooler.dense.weight.add_(1)
    refused(folder, "was tuned from base", model)
    with Tuned.load(model, folder, strict=False) as tuned:
        assert tuned.n_trainable == 2 * 2 * 2 * 2 * 32 + 3 * 33


def test_a_resized_vocabulary_is_refused(tmp_path: Path) -> None:
    peft = get_peft_model(zoo.build("llama"), LoraConfig(target_modules=["embed_tokens", "v_proj"]))
    peft.save_pretrained(tmp_path)
    exchange(tmp_path, lambda t: t.update({n: v + 1 for n, v in t.items() if "base_layer" in n}))
    refused(tmp_path, "another model.embed_tokens.weight than this model", zoo.build("llama"))


def test_saving_twice_replaces_the_folder(folder: Path) -> None:
    model, batch = classifier()
    with LoRA(rank=3, sites="**.k.weight").attach(model) as tuned:
        disturb(tuned.parameters())
        tuned.save(folder, format="peft")
        wanted = zoo.run(model, batch)
    with Tuned.load(model, folder):
        assert torch.equal(zoo.run(model, batch), wanted)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
