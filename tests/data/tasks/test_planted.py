"""Planted truths are really in the models."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from monochord.data import DataError
from monochord.data.tasks.planted import plant_direction, plant_low_rank


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def test_low_rank_changes_are_what_was_added(model):
    before = {name: value.clone() for name, value in model.named_parameters()}
    truth = plant_low_rank(model, "*.q_proj.weight", rank=3, scale=0.5, seed=1)
    assert set(truth.factors) == {f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)}
    for name, value in truth.model.named_parameters():
        change = value - before[name]
        if name not in truth.factors:
            assert not change.any()
            continue
        up, down = truth.factors[name]
        assert torch.allclose(change, up @ down, atol=1e-6)
        values = torch.linalg.svdvals(change)
        assert torch.allclose(values[:3], values[0].expand(3), rtol=1e-3) and values[3] < 1e-5 * values[0]
        assert torch.isclose(change.norm(), 0.5 * before[name].norm(), rtol=1e-3)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])
    again, other = (plant_low_rank(model, "*.q_proj.weight", rank=3, seed=seed) for seed in (1, 2))
    name = next(iter(truth.factors))
    assert torch.equal(again.factors[name][1], truth.factors[name][1])
    assert not torch.allclose(other.factors[name][1], truth.factors[name][1])
    with pytest.raises(DataError, match="no matrix of more than 2"):
        plant_low_rank(model, "nothing.*")


def test_a_planted_direction_is_cause_and_effect(model):
    truth = plant_direction(model, triggers=(7, 9), answer=3, strength=6.0, seed=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight  # the given model stays tied
    plain = torch.tensor([[10, 11, 12], [10, 11, 13]])
    marked = torch.tensor([[10, 11, 7], [10, 11, 9]])
    with torch.inference_mode():
        logits = {name: truth.model(input_ids=ids).logits[:, -1] for name, ids in (("no", plain), ("yes", marked))}
        stream = {
            name: truth.model.model(input_ids=ids).last_hidden_state[:, -1] @ truth.direction
            for name, ids in (("no", plain), ("yes", marked))
        }
    assert (logits["yes"].argmax(-1) == 3).all() and logits["yes"][:, 3].min() > 3 * logits["no"][:, 3].abs().max()
    assert stream["yes"].min() > 3 * stream["no"].abs().max()
    assert torch.isclose(truth.direction.norm(), torch.tensor(1.0))
    kept = model.model.embed_tokens.weight.clone()
    kept[[7, 9]] += truth.strength * truth.direction
    assert torch.allclose(truth.model.model.embed_tokens.weight, kept, atol=1e-6)
    with pytest.raises(DataError, match="no input and output embeddings"):
        plant_direction(torch.nn.Linear(2, 2), (0,), 1)
