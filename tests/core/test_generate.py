"""Interventions act at every step of cached generation, with padding and in batches, as without a cache."""

import pytest
import torch
import zoo
from torch import nn

from monochord.adapt import IA3, BottleneckAdapter, DoRA, LoRA, PromptTokens
from monochord.core.attach import attach
from monochord.core.modification import Ablate, Add, Scale

CACHED = tuple(m for m in zoo.CAUSAL if m not in ("mamba", "mamba2"))
PROMPTS = (torch.tensor([[7, 8, 9, 10, 11, 12]]), torch.tensor([[21, 22, 23]]))


def padded() -> dict[str, torch.Tensor]:
    ids, mask = torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 6, dtype=torch.long)
    for i, prompt in enumerate(PROMPTS):
        ids[i, 6 - prompt.shape[1] :] = prompt
        mask[i, 6 - prompt.shape[1] :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def generate(
    model: nn.Module, given: dict[str, torch.Tensor], use_cache: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens (batch, 5) and their scores (batch, 5, vocabulary)."""
    greedy = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "use_cache": use_cache}
    returned = {"output_logits": True, "return_dict_in_generate": True}
    out = model.generate(**given, max_new_tokens=5, min_new_tokens=5, **greedy, **returned)
    return out.sequences[:, -5:], torch.stack(out.logits, 1)


STEERS = {
    "vector": {"blocks.0:out": Add(torch.linspace(-1, 1, 32))},
    "tokens from the third on": {"blocks.0:out[tokens=2:]": Add(torch.linspace(-1, 1, 32))},
    "one absolute token": {"blocks.1:out[tokens=7]": Ablate()},
    "one head": {"blocks.0.attn:heads[heads=1]": Ablate()},
    "pattern": {"blocks.1.attn:pattern[heads=0]": Scale(0.3)},
    "scores": {"blocks.0.attn:scores": Scale(2.0)},
}


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("steer", STEERS)
def test_cached_equals_uncached_with_padding_in_a_batch(name: str, steer: str) -> None:
    model, given = zoo.build(name), padded()
    plain = generate(model, given)[1]
    with attach(model, STEERS[steer]):
        tokens, logits = generate(model, given)
        slow_tokens, slow = generate(model, given, use_cache=False)
    assert torch.equal(tokens, slow_tokens)
    torch.testing.assert_close(logits, slow, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits, plain, atol=1e-4)
    assert torch.equal(generate(model, given)[1], plain)


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("steer", ["vector", "tokens from the third on", "one absolute token"])
def test_a_padded_batch_equals_its_examples_alone(name: str, steer: str) -> None:
    model = zoo.build(name)
    with attach(model, STEERS[steer]):
        together = generate(model, padded())[1]
        alone = [generate(model, {"input_ids": p, "attention_mask": torch.ones_like(p)})[1] for p in PROMPTS]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_newest_token_at_every_step() -> None:
    """`tokens=-1` touches the last prompt token and then each new one; without a cache only the newest of all."""
    model, given = zoo.build("llama"), padded()
    touched: list[int] = []

    def count(value: torch.Tensor) -> torch.Tensor:
        touched.append(value.shape[1])
        return value

    with attach(model, {"blocks.0:out[tokens=-1]": count}):
        generate(model, given)
    assert touched == [1] * 5


TUNERS = {
    "lora": lambda: LoRA(rank=2),
    "dora": lambda: DoRA(rank=2, sites="blocks.*.mlp.up.weight"),
    "adapter": lambda: BottleneckAdapter(bottleneck=4),
    "prompt": lambda: PromptTokens(3),
    "ia3": IA3,
    "all": lambda: LoRA(rank=2) | PromptTokens(2),
}


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("tuner", TUNERS)
def test_tuned_models_generate_alike_with_and_without_a_cache(name: str, tuner: str) -> None:
    if name == "mixtral" and tuner in ("dora", "adapter"):
        tuner = "lora"
    model, given = zoo.build(name), padded()
    plain = generate(model, given)[1]
    with TUNERS[tuner]().attach(model) as tuned:
        with torch.no_grad():
            for i, parameter in enumerate(tuned.parameters()):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        tokens, logits = generate(model, given)
        slow_tokens, slow = generate(model, given, use_cache=False)
        alone = [generate(model, {"input_ids": p, "attention_mask": torch.ones_like(p)})[1] for p in PROMPTS]
    assert torch.equal(tokens, slow_tokens)
    torch.testing.assert_close(logits, slow, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits, plain, atol=1e-4)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_recurrent_models_too(name: str) -> None:
    model = zoo.build(name)
    given = {"input_ids": PROMPTS[0]}
    plain = generate(model, given)[1]
    for change in (lambda: attach(model, {"blocks.0:out": Scale(0.5)}), lambda: PromptTokens(3).attach(model)):
        with change():
            cached = generate(model, given)[1]
            torch.testing.assert_close(cached, generate(model, given, use_cache=False)[1], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(cached, plain, atol=1e-4)
        assert torch.equal(generate(model, given)[1], plain)


def test_encoder_decoders_too() -> None:
    model = zoo.build("t5")
    given = {k: v for k, v in zoo.batch("t5").items() if k != "decoder_input_ids"}
    for change in ({"decoder.blocks.0:out": Scale(0.5)}, {"encoder.blocks.1:out[tokens=0]": Ablate()}):
        plain = generate(model, given)[1]
        with attach(model, change):
            cached = generate(model, given)[1]
            torch.testing.assert_close(cached, generate(model, given, use_cache=False)[1], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(cached, plain, atol=1e-4)
