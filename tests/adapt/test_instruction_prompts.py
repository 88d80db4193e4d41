"""Prompts written by generators that read the instruction: what they see, padding, caches, counts, the rational."""

import copy

import pytest
import torch
import zoo
from torch.nn import functional as F
from zoo import logits, moved

from monochord import testing
from monochord.adapt.instruction_prompts import InstructionPrompts, PromptGenerator, Rational, _gelu, activations
from monochord.core.bilevel import Bilevel
from monochord.core.fit import fit
from monochord.core.update import Gradient

RECIPE = InstructionPrompts(3, bottleneck=4)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("recipe", [RECIPE, InstructionPrompts(2, 4, share_every=2, activation="relu")], ids=str)
def test_conformance(name, recipe):
    testing.check_tuner(lambda: recipe, zoo.build(name).eval(), zoo.batch(name))


def test_the_response_changes_nothing_that_is_written_and_the_instruction_does():
    model = zoo.build("llama").eval()
    tuned = moved(RECIPE.attach(model))
    written = []
    for _, change in tuned.placements:
        if isinstance(change, PromptGenerator):
            change.register_forward_hook(lambda m, args, out: written[-1].append(out.detach()))
    ids = torch.arange(5, 13)[None]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])
    other, answered = ids.clone(), ids.clone()
    other[0, 1], answered[0, 6] = 40, 40
    for row in (ids, answered, other):
        written.append([])
        logits(model, input_ids=row, attention_mask=torch.ones_like(row), instruction_mask=mask)
    assert len(written[0]) == 2
    assert all(torch.equal(a, b) for a, b in zip(written[0], written[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(written[0], written[2], strict=True))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_padding_and_company_change_nothing(name):
    model = zoo.build(name).eval()
    moved(RECIPE.attach(model))
    ids = torch.arange(5, 11)[None]
    padded = torch.cat([ids, torch.full((1, 2), 9)], 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]])
    both = torch.cat([padded, torch.arange(20, 28)[None]])
    masks = torch.cat([mask, torch.ones_like(mask)])
    alone = logits(model, input_ids=ids)
    together = logits(model, input_ids=both, attention_mask=masks)
    torch.testing.assert_close(together[0, :6], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_decoding_with_a_cache_writes_nothing_new_and_is_the_same(name):
    model = zoo.build(name).eval()
    tuned = moved(RECIPE.attach(model), 0.5)
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    span = torch.tensor([[1, 1, 1, 1, 0, 0, 0]]).expand(2, -1)
    whole = logits(model, input_ids=ids, instruction_mask=span)
    calls = []
    tuned.placements[1][1].register_forward_hook(lambda *a: calls.append(1))
    with torch.no_grad():
        first = model(ids[:, :4], use_cache=True)
        later = model(ids[:, 4:], past_key_values=first.past_key_values).logits
    assert len(calls) == 1
    torch.testing.assert_close(later, whole[:, 4:], atol=1e-4, rtol=1e-3)
    assert model.generate(ids[:, :4], max_new_tokens=4, do_sample=False).shape == (2, 8)


def test_counts_are_those_of_the_formula_and_shared_projections_are_saved_once():
    model, d, layers = zoo.build("llama"), 32, 2
    for every, act in ((1, "rational"), (2, "gelu")):
        tuned = InstructionPrompts(3, 4, share_every=every, activation=act).attach(copy.deepcopy(model))
        own = layers * (3 * (4 + d) + (12 if act == "rational" else 0))
        assert tuned.n_trainable == layers // every * 2 * d * 4 + own
        assert sum(v.numel() for v in tuned.state().values()) == tuned.n_trainable + 3 * d  # and the places


def test_the_rational_begins_as_gelu_and_has_no_pole():
    act, x = Rational(), torch.linspace(-3, 3, 301)
    assert float((act(x) - F.gelu(x)).abs().max().detach()) < 0.01
    assert min(_gelu()[1]) >= 0
    double = Rational().double()
    with torch.no_grad():
        for p in double.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).double())
    values = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(double, (values,))
    assert bool(double(torch.linspace(-9, 9, 999, dtype=torch.float64)).isfinite().all())


def test_what_can_not_be_is_refused():
    model = zoo.build("llama")
    with pytest.raises(ValueError, match="activation='silu' is unknown"):
        InstructionPrompts(activation="silu").attach(model)
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        InstructionPrompts(0).attach(model)
    with pytest.raises(ValueError, match="pooling='max' is unknown: use 'attention' or 'mean'"):
        InstructionPrompts(pooling="max").attach(model)


def test_mean_pooling_reads_the_instruction_evenly_and_attention_does_not():
    model = zoo.build("llama").eval()
    for pooling in ("mean", "attention"):
        recipe = InstructionPrompts(3, 4, pooling=pooling)
        testing.check_tuner(lambda r=recipe: r, copy.deepcopy(model), zoo.batch("llama"))
        tuned = moved(recipe.attach(copy.deepcopy(model)))
        assert tuned.n_trainable == 2 * (2 * 32 * 4 + 3 * 32 + 12 + (12 if pooling == "attention" else 0))
        generator = tuned.placements[1][1]
        hidden, mask = torch.randn(2, 5, 32), torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
        with torch.no_grad():
            narrow = hidden @ generator.down.T
            means = torch.stack([narrow[0, :3].mean(0), narrow[1, 1:].mean(0)])
            even = (generator.activation(means) @ generator.up.T)[:, None] + generator.bias
            assert torch.allclose(generator(hidden, mask), even, atol=1e-5) == (pooling == "mean")


def test_activations_learn_above_the_generators_and_are_then_held():
    model, batch = zoo.build("llama"), zoo.batch("llama")
    batch["labels"] = batch["input_ids"]
    tuned = InstructionPrompts(2, 4).attach(model)
    found = activations(tuned)
    assert len(found) == 2
    update = Bilevel(Gradient(lr=1e-2), Gradient(lr=1e-2), held=[batch],
                     above_parameters=[p for act in found for p in act.parameters()])  # fmt: skip
    fit(model, [batch], steps=3, update=update, progress=False)
    assert not torch.equal(found[0].above, Rational().above)
    tuned.detach()
    fresh = InstructionPrompts(2, 4).attach(model)
    for own, learnt in zip(activations(fresh), found, strict=True):
        own.load_state_dict(learnt.state_dict())
        own.requires_grad_(False)
    fit(model, [batch], steps=2, lr=1e-2, progress=False)
    assert all(torch.equal(a.above, b.above) for a, b in zip(activations(fresh), found, strict=True))
    assert activations(InstructionPrompts(2, 4, activation="relu").attach(zoo.build("llama"))) == []
