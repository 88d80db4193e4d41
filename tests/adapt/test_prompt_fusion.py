"""A short prompt fused with changes of the embeddings: what it equals, positions, padding, caches, counts."""

import copy

import pytest
import torch
import zoo
from zoo import logits, moved

import monochord as mc
from monochord import testing
from monochord.adapt import PromptTokens
from monochord.adapt.prompt_fusion import FusedPrompt, PromptFusion, settled
from monochord.core.position_delta import PositionDelta
from monochord.core.sites import SiteError, resolve

RECIPES = (
    PromptFusion(3, rank=2, positions=8, bottleneck=3, spaces=2),
    PromptFusion(3, rank=2, positions=8, spaces=0, fusion=False),
    PromptFusion(0, rank=2, positions=8),
)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "gpt-neox", "vit"])
@pytest.mark.parametrize("recipe", RECIPES, ids=["fused", "decomposed", "no prompt"])
def test_conformance(name, recipe):
    testing.check_tuner(lambda: recipe, zoo.build(name).eval(), zoo.batch(name))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_untrained_it_is_a_plain_prompt_and_without_one_the_base(name):
    model, batch = zoo.build(name).eval(), zoo.batch(name)
    base = logits(model, **batch)
    with PromptTokens(3).attach(model):
        plain = logits(model, **batch)
    with RECIPES[0].attach(model):
        torch.testing.assert_close(logits(model, **batch), plain, atol=1e-6, rtol=1e-6)
    with RECIPES[2].attach(model):
        torch.testing.assert_close(logits(model, **batch), base, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_settled_it_is_a_plain_prompt_and_the_changes(name):
    model, batch = zoo.build(name).eval(), zoo.batch(name)
    tuned = moved(RECIPES[0].attach(model))
    wanted, placements = logits(model, **batch), settled(tuned)
    tuned.detach()
    assert not torch.allclose(logits(model, **batch), wanted, atol=1e-2)
    with mc.attach(model, placements):
        torch.testing.assert_close(logits(model, **batch), wanted, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="attach a PromptFusion first"):
        settled(PromptTokens(2).attach(model))


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("left", [True, False])
def test_padding_is_left_alone_on_either_side(name, left):
    if name == "bert" and left:
        pytest.skip("an encoder's positions are absolute")
    model = zoo.build(name).eval()
    moved(RECIPES[0].attach(model))
    ids, pad = torch.arange(5, 11)[None], torch.full((1, 2), 9)
    padded = torch.cat([pad, ids] if left else [ids, pad], 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]] if left else [[1, 1, 1, 1, 1, 1, 0, 0]])
    options = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if left else {}
    together = logits(model, input_ids=padded, attention_mask=mask, **options)
    torch.testing.assert_close(together[mask.bool()], logits(model, input_ids=ids)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("masked", [True, False])
def test_cached_tokens_keep_their_places(name, masked):
    model = zoo.build(name).eval()
    moved(RECIPES[0].attach(model), 0.6)
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(0))
    found = [model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*found)  # beyond the last position too
    mask = {"attention_mask": torch.ones(2, 4, dtype=torch.long)} if masked else {}
    first = model(ids[:, :4], use_cache=True, **mask)
    mask = {"attention_mask": torch.ones(2, 5, dtype=torch.long)} if masked else {}
    next_one = logits(model, input_ids=ids[:, 4:], past_key_values=first.past_key_values, **mask)
    torch.testing.assert_close(next_one[:, 0], logits(model, input_ids=ids)[:, 4], atol=1e-5, rtol=1e-4)


def test_embeddings_given_by_the_caller_change_too():
    model = zoo.build("llama").eval()
    moved(RECIPES[0].attach(model))
    ids = torch.arange(5, 11)[None]
    embeds = zoo.build("llama").get_input_embeddings()(ids)
    torch.testing.assert_close(logits(model, inputs_embeds=embeds), logits(model, input_ids=ids), atol=1e-6, rtol=1e-5)


def test_the_change_is_the_row_of_the_position_whatever_the_token():
    delta = moved_delta = PositionDelta(4, 2, 6, scale=0.5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        moved_delta.right.normal_()
    found = delta.at(torch.tensor([[-1, 0, 3, 4]]))
    table = delta.table()
    assert torch.equal(found[0, 0], torch.zeros(6)) and torch.equal(found[0, 3], torch.zeros(6))
    torch.testing.assert_close(found[0, 1:3], table[[0, 3]])
    torch.testing.assert_close(table, 0.5 * delta.left @ delta.right)


def test_gate_and_counts_are_those_of_the_formulas():
    model, d = zoo.build("bert"), 32
    counts = [3 * d + 2 * (8 + d) + 4 * 3 * d + 2 * (2 * 3 * d + d), 3 * d + 2 * (8 + d), 2 * (8 + d)]
    for recipe, wanted in zip(RECIPES, counts, strict=True):
        assert recipe.attach(copy.deepcopy(model)).n_trainable == wanted
    tuned = moved(RECIPES[0].attach(model))
    (prompt,) = [change for _, change in tuned.placements if isinstance(change, FusedPrompt)]
    gate = prompt.weights().detach()
    assert float(gate.sum()) == pytest.approx(1, abs=1e-6)
    fused = prompt.fused()
    inner = [torch.nn.functional.gelu(fused @ prompt.down[k].T) @ prompt.up[k].T for k in range(2)]
    torch.testing.assert_close(prompt.table(), fused + gate[0] * inner[0] + gate[1] * inner[1], atol=1e-5, rtol=1e-4)


def test_what_can_not_be_is_refused():
    model = zoo.build("llama")
    with pytest.raises(ValueError, match="rank, positions and bottleneck must be at least 1"):
        PromptFusion(rank=0).attach(model)
    with pytest.raises(SiteError):
        PromptFusion().attach(zoo.build("convnext"))
    assert resolve(model, "embed:out")
