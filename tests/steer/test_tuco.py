"""Tuning's contribution: exact splits, both ways to have a base, steering by it."""

import copy

import pytest
import torch
import zoo

from monochord.adapt import LoRA
from monochord.steer.tuco import _paired, scaled_tuning, tuco

MODELS = ("llama", "gpt-neox", "gpt2", "gemma")


def tuned_lora(name):
    model = zoo.build(name).eval()
    base = copy.deepcopy(model)
    tuned = LoRA("blocks.*.mlp.**.weight", rank=2).attach(model)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
    return tuned, base


def ids(batch=3, seq=7):
    return torch.randint(3, 60, (batch, seq), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_parts_sum_to_the_state_and_both_bases_agree(name):
    tuned, base = tuned_lora(name)
    batch = {"input_ids": ids()}
    hidden = tuned.model(**batch, output_hidden_states=True).hidden_states
    with torch.inference_mode(), _paired(tuned, None, 1.0) as parts:
        logits = tuned.model(**batch).logits
    torch.testing.assert_close(logits, tuned.model(**batch).logits)
    total = hidden[0] + sum(parts.pretraining) + sum(parts.tuning)
    again = hidden[0] + sum(p + t for p, t in zip(parts.pretraining, parts.tuning, strict=True))
    torch.testing.assert_close(total, again, atol=1e-5, rtol=1e-5)
    if name == "llama":  # its last hidden state is normalised
        torch.testing.assert_close(tuned.model.model.norm(total), hidden[-1], atol=1e-5, rtol=1e-5)
    one, two = tuco(tuned, None, batch), tuco(tuned.model, base, batch)
    torch.testing.assert_close(one.tuco, two.tuco, atol=1e-5, rtol=1e-5)
    assert bool((one.tuco > 0).all()) and bool((one.tuco < 1).all()) and one.by_block.shape == (2, 3)
    torch.testing.assert_close(one.preco, 1 - one.tuco)


def test_no_tuning_contributes_nothing():
    model = zoo.build("llama").eval()
    assert tuco(model, copy.deepcopy(model), {"input_ids": ids()}).tuco.tolist() == [0, 0, 0]


def test_padding_and_batches_change_nothing():
    tuned, _ = tuned_lora("llama")
    rows, pad = ids(1, 5), torch.zeros(1, 3, dtype=torch.long)
    alone = tuco(tuned, None, {"input_ids": rows}).tuco
    for parts, mask in (((rows, pad), [1] * 5 + [0] * 3), ((pad, rows), [0] * 3 + [1] * 5)):
        mask = torch.tensor([mask, [1] * 8])
        batch = {"input_ids": torch.cat([torch.cat(parts, 1), ids(1, 8)]), "attention_mask": mask}
        batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        torch.testing.assert_close(tuco(tuned, None, batch).tuco[:1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_scaling_goes_from_base_to_tuned_and_beyond(name):
    tuned, base = tuned_lora(name)
    batch = {"input_ids": ids()}
    with torch.inference_mode():
        plain, wanted = tuned.model(**batch).logits, base(**batch).logits
        for alpha, target in ((1.0, plain), (0.0, wanted)):
            with scaled_tuning(tuned, None, alpha):
                torch.testing.assert_close(tuned.model(**batch).logits, target, atol=1e-5, rtol=1e-5)
        with scaled_tuning(tuned.model, base, 1.5):
            beyond = tuned.model(**batch).logits
        torch.testing.assert_close(tuned.model(**batch).logits, plain)  # nothing is left
    assert (beyond - wanted).norm() > (plain - wanted).norm()


def test_generation_with_a_cache_equals_generation_without():
    tuned, _ = tuned_lora("llama")
    found = []
    for cached in (True, False):
        with torch.inference_mode(), scaled_tuning(tuned, None, 0.4):
            found.append(tuned.model.generate(ids(2, 5), max_new_tokens=6, do_sample=False, use_cache=cached))
    assert torch.equal(*found)


def test_bad_pairs_are_refused():
    model = zoo.build("llama")
    with pytest.raises(ValueError, match="must be an attached tuner"):
        tuco(model, None, {"input_ids": ids()})
    with pytest.raises(ValueError, match="of one kind"):
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        tuco(model, LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64)), {"input_ids": ids()})
