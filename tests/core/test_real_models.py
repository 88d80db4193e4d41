"""The core on real pretrained models: sites by meaning, tuners by the kit, steering by what the model says."""

import pytest
import torch
from torch import nn

import monochord as mc
from monochord.adapt import IA3, BottleneckAdapter, LoRA, PromptTokens
from monochord.testing import check_detach_restores, check_tuner, check_untrained_changes_nothing


def inputs(name: str) -> dict[str, torch.Tensor]:
    if name in ("minilm", "smollm2"):
        tokenizer = mc.processor(name)
        return dict(tokenizer(["The capital of France is Paris.", "A short one."], padding=True, return_tensors="pt"))
    if name == "dinov2-s":
        return {"pixel_values": torch.linspace(-2, 2, 2 * 3 * 56 * 56).reshape(2, 3, 56, 56).sin()}
    features = torch.linspace(-1, 1, 80 * 3000).reshape(1, 80, 3000).sin()
    return {"input_features": features, "decoder_input_ids": torch.tensor([[50257, 50362, 770]])}


SHAPES = {"minilm": (6, 12, 384), "smollm2": (30, 9, 576), "dinov2-s": (12, 6, 384), "whisper-tiny": (4, 6, 384)}


@pytest.fixture(scope="module", params=SHAPES)
def real(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, mc.load(request.param, progress=False)


def test_sites_mean_what_they_say(real: tuple[str, nn.Module]) -> None:
    name, model = real
    layers, heads, width = SHAPES[name]
    prefix = "decoder." if name == "whisper-tiny" else ""
    ports = ["blocks.*:in", "blocks.*:out", "blocks.*.attn:out", "blocks.*.attn:heads", "blocks.*.attn:pattern"]
    with torch.no_grad(), mc.capture(model, [f"{prefix}{p}" for p in ports]) as acts:
        model(**inputs(name))
    assert sum(n.endswith("attn:out") for n in acts) == layers
    for i in range(layers):
        block = f"{prefix}blocks.{i}"
        pattern, split = acts[f"{block}.attn:pattern"], acts[f"{block}.attn:heads"]
        assert split.shape[2:] == (heads, width // heads) and pattern.shape[1] == heads
        row = pattern.sum(-1)
        assert bool((torch.isclose(row, torch.ones(()), atol=1e-4) | (row == 0)).all())
        output = model.get_submodule(mc.resolve(model, f"{block}.attn.o.weight")[0].module)
        torch.testing.assert_close(output(split.flatten(-2)), acts[f"{block}.attn:out"], atol=1e-4, rtol=1e-4)
        if i:
            assert torch.equal(acts[f"{block}:in"], acts[f"{prefix}blocks.{i - 1}:out"])


@pytest.mark.parametrize("tuner", [LoRA(rank=2), BottleneckAdapter(bottleneck=4), IA3(), PromptTokens(2)], ids=repr)
@pytest.mark.parametrize("name", ["minilm", "dinov2-s"])
def test_tuners_hold_every_invariant_on_encoders(name: str, tuner: mc.Tuner) -> None:
    check_tuner(lambda: tuner, mc.load(name, progress=False), inputs(name), tolerance=1e-4)


@pytest.mark.parametrize("name", ["smollm2", "whisper-tiny"])
def test_the_larger_ones_are_restored_after_training(name: str) -> None:
    """One check of the kit stands for all here: every pass of these models takes a second."""
    model, tuner = mc.load(name, progress=False), LoRA(rank=2, sites="*.blocks.{0,1}.attn.{q,v}.weight")
    check_untrained_changes_nothing(lambda: tuner, model, inputs(name), atol=1e-5)
    check_detach_restores(lambda: tuner, model, inputs(name))


def test_steering_moves_what_smollm2_says() -> None:
    """Adding the difference of two names' activations to the last token turns the capital of one into the other's."""
    model, tokenizer = mc.load("smollm2", progress=False), mc.processor("smollm2")

    def last(country: str) -> torch.Tensor:
        with torch.no_grad(), mc.capture(model, "blocks.*:out[tokens=-1]") as acts:
            model(**tokenizer(f"The capital of {country} is", return_tensors="pt"))
        return acts["blocks.24:out[tokens=-1]"][0, 0]

    prompt = tokenizer("The capital of France is", return_tensors="pt")
    paris, tokyo = (tokenizer(f" {city}").input_ids[0] for city in ("Paris", "Tokyo"))
    plain = model(**prompt).logits[0, -1]
    assert int(plain.argmax()) == paris
    with torch.no_grad(), mc.attach(model, {"blocks.24:out[tokens=-1]": mc.Add(last("Japan") - last("France"))}):
        steered = model(**prompt).logits[0, -1]
    assert float(steered[tokyo] - steered[paris]) > float(plain[tokyo] - plain[paris]) + 5
    assert torch.equal(model(**prompt).logits[0, -1], plain)
