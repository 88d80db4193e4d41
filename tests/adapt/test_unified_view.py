"""Prefixes, parallel adapters and their mixture: identities of the paper, masks, caches, counts."""

import copy
import math

import pytest
import torch
import zoo
from torch.nn import functional as F
from zoo import logits, moved

import monochord as mc
from monochord import testing
from monochord.adapt import BottleneckAdapter, LoRA, MixAndMatch, ParallelAdapter, PrefixTuning
from monochord.adapt.prefix_tuning import Prefix
from monochord.core.sites import SiteError, resolve

MODELS = ("llama", "bert", "gpt2", "gpt-neox", "vit")
RECIPES = (
    PrefixTuning(3),
    PrefixTuning(3, hidden=7),
    PrefixTuning(3, compose="add", function="relu", scale=2.0),
    ParallelAdapter(bottleneck=3),
    ParallelAdapter(bottleneck=3, activation="softmax", learned=True),
    MixAndMatch(length=2, bottleneck=3),
)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_conformance(name, recipe):
    testing.check_tuner(lambda: recipe, zoo.build(name).eval(), zoo.batch(name))


@pytest.mark.parametrize("shape", [(2, 4, 4, 5), (2, 4, 2, 5)])
@pytest.mark.parametrize("masked", ["none", "causal", "boolean", "additive"])
def test_a_prefix_is_a_gated_addition_to_each_head(shape, masked):
    """softmax over [prefix, tokens] equals (1 - lam) attention + lam softmax(q keys') values."""
    batch, heads, kv, n = shape
    g = torch.Generator().manual_seed(0)
    q = torch.randn(batch, heads, n, 8, generator=g)
    k, v = (torch.randn(batch, kv, n, 8, generator=g) for _ in range(2))
    prefix = Prefix((kv, 3, 8), generator=g)
    allowed = torch.ones(n, n, dtype=torch.bool).tril() if masked == "causal" else torch.ones(n, n, dtype=torch.bool)
    if masked in ("boolean", "additive"):
        allowed = (torch.rand(batch, 1, n, n, generator=g) > 0.4) | torch.eye(n, dtype=torch.bool)
    options = {"enable_gqa": heads != kv}
    options |= {"none": {}, "causal": {"is_causal": True}, "boolean": {"attn_mask": allowed}}.get(masked, {})
    if masked == "additive":
        options["attn_mask"] = torch.zeros(batch, 1, n, n).masked_fill(~allowed, -math.inf)
    got = prefix.attend(q, k, v, options)
    k, v = (t.repeat_interleave(heads // kv, 1) for t in (k, v))
    pk, pv = (t.repeat_interleave(heads // kv, 0)[None] for t in prefix.table())
    own = (q @ pk.mT / math.sqrt(8)).exp()
    rest = (q @ k.mT / math.sqrt(8)).exp() * allowed
    lam = own.sum(-1, keepdim=True) / (own.sum(-1, keepdim=True) + rest.sum(-1, keepdim=True))
    wanted = (1 - lam) * (rest / rest.sum(-1, keepdim=True)) @ v + lam * (own / own.sum(-1, keepdim=True)) @ pv
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_padding_changes_nothing_with_a_prefix(name):
    model = zoo.build(name).eval()
    moved(PrefixTuning(4).attach(model))
    ids = torch.arange(5, 11)[None]
    padded = torch.cat([torch.full((1, 2), 9), ids] if name == "llama" else [ids, torch.full((1, 2), 9)], 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]] if name == "llama" else [[1, 1, 1, 1, 1, 1, 0, 0]])
    options = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if name == "llama" else {}
    alone = logits(model, input_ids=ids)
    together = logits(model, input_ids=padded, attention_mask=mask, **options)
    torch.testing.assert_close(together[mask.bool()], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox"])
def test_generation_with_a_cache_equals_generation_without(name):
    model = zoo.build(name).eval()
    moved(MixAndMatch(length=3, bottleneck=4).attach(model), 0.6)
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(0))
    found = [model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*found)


def test_linear_prefix_added_to_a_head_is_a_linear_parallel_adapter_of_that_head():
    """Identity instead of softmax: head + x Wq keys' values / sqrt(d), with Wq keys' as its down projection."""
    model = zoo.build("bert").eval()
    batch = zoo.batch("bert")
    site = resolve(model, "blocks.0.attn")[0]
    names = ("blocks.0.attn:in", "blocks.0.attn:heads")
    with torch.no_grad(), mc.capture(model, names) as before:
        model(**batch)
    x, plain = (before[name].clone() for name in names)
    tuned = moved(PrefixTuning(3, sites="blocks.0.attn", compose="add", function="linear", scale=0.7).attach(model))
    with torch.no_grad(), mc.capture(model, names[1]) as after:
        model(**batch)
    query = model.get_submodule(resolve(model, "blocks.0.attn.q")[0].module)
    keys, values = tuned.placements[0][1].table()
    heads, d = site.heads.n_heads, site.heads.d_head
    down = torch.einsum("hdm,hld->hlm", query.weight.view(heads, d, -1), keys)  # (heads, length, d_model)
    bias = torch.einsum("hd,hld->hl", query.bias.view(heads, d), keys)
    hidden = torch.einsum("bsm,hlm->bshl", x, down) + bias
    change = 0.7 / math.sqrt(d) * torch.einsum("bshl,hld->bshd", hidden, values)
    torch.testing.assert_close(after[names[1]] - plain, change, atol=1e-5, rtol=1e-4)


def test_the_network_behind_a_prefix_can_be_left_out():
    model = zoo.build("llama").eval()
    batch = zoo.batch("llama")
    tuned = moved(PrefixTuning(4, hidden=9).attach(model))
    with_network = logits(model, **batch)
    settled = [(site, change.settled()) for site, change in tuned.placements]
    tuned.detach()
    with mc.attach(model, settled):
        torch.testing.assert_close(logits(model, **batch), with_network, atol=1e-6, rtol=1e-5)


def test_counts_are_those_of_the_formulas():
    model = zoo.build("bert")
    layers, d = 2, 32
    assert PrefixTuning(5).attach(copy.deepcopy(model)).n_trainable == 2 * layers * 5 * d
    assert ParallelAdapter(bottleneck=6).attach(copy.deepcopy(model)).n_trainable == layers * (2 * 6 * d + 6 + d)
    both = MixAndMatch(length=5, bottleneck=6).attach(copy.deepcopy(model)).n_trainable
    assert both == 2 * layers * 5 * d + layers * (2 * 6 * d + 6 + d)


def test_a_linear_parallel_adapter_is_low_rank_tuning_of_the_layer():
    model = zoo.build("bert").eval()
    batch = zoo.batch("bert")
    sites = "blocks.*.attn.o"
    adapter = moved(ParallelAdapter(f"{sites}:out", bottleneck=2, activation="linear", scale=3.0).attach(model))
    wanted = logits(model, **batch)
    changes = [change for _, change in adapter.placements]
    adapter.detach()
    lora = LoRA(f"{sites}.weight", rank=2, alpha=6.0).attach(model)
    with torch.no_grad():
        for (site, low), change in zip(lora.placements, changes, strict=True):
            low.up.copy_(change.up)
            low.down.copy_(change.down)
            bias = model.get_submodule(site.module).bias
            bias.add_(3.0 * (change.up @ change.down_bias + change.up_bias))
    torch.testing.assert_close(logits(model, **batch), wanted, atol=1e-5, rtol=1e-4)
    lora.merge()
    torch.testing.assert_close(logits(model, **batch), wanted, atol=1e-5, rtol=1e-4)


def test_a_parallel_adapter_reads_the_input_and_a_sequential_one_the_output():
    model = zoo.build("llama").eval()
    batch = zoo.batch("llama")
    names = ("blocks.1.mlp:in", "blocks.1.mlp:out")
    with torch.no_grad(), mc.capture(model, names) as before:
        model(**batch)
    x, h = (before[name].clone() for name in names)
    for recipe, source in (
        (ParallelAdapter("blocks.1.mlp:out", bottleneck=4, scale=2.0, learned=True), x),
        (BottleneckAdapter("blocks.1.mlp:out", bottleneck=4, activation="softmax", scale=2.0), h),
    ):
        with moved(recipe.attach(model)) as tuned, torch.no_grad(), mc.capture(model, names[1]) as after:
            model(**batch)
            (_, change), *_ = tuned.placements
            inner, scale = getattr(change, "inner", change), float(getattr(change, "gain", 2.0))
            act = F.relu if source is x else lambda t: t.softmax(-1)
            wanted = F.linear(act(F.linear(source, inner.down, inner.down_bias)), inner.up, inner.up_bias)
            torch.testing.assert_close(after[names[1]], h + scale * wanted, atol=1e-5, rtol=1e-4)


def test_half_strength_is_half_way():
    model = zoo.build("llama").eval()
    name, batch = "blocks.0.attn:heads", zoo.batch("llama")
    with torch.no_grad(), mc.capture(model, name) as acts:
        model(**batch)
        plain = acts[name].clone()
        tuned = moved(PrefixTuning(3, sites="blocks.0.attn").attach(model))
        model(**batch)
        whole = acts[name].clone()
        tuned.weigh(0.5)
        model(**batch)
    torch.testing.assert_close(acts[name], (plain + whole) / 2, atol=1e-5, rtol=1e-4)


def test_what_can_not_be_is_refused_with_the_way_out():
    model = zoo.build("llama")
    for recipe, message in (
        (PrefixTuning(0), "length=0 must be at least 1"),
        (PrefixTuning(function="gelu", compose="add"), "function='gelu' is unknown"),
        (PrefixTuning(compose="multiply"), "use 'gate' or 'add'"),
        (PrefixTuning(scale=2.0), "compose='add'"),
        (PrefixTuning(sites="blocks.*.mlp"), "has no heads"),
    ):
        with pytest.raises((ValueError, SiteError), match=message):
            recipe.attach(model)
    model.config._attn_implementation = "eager"
    with PrefixTuning(2).attach(model), pytest.raises(SiteError, match="no prefix can join"):
        model(**zoo.batch("llama"))


def test_a_parallel_adapter_reads_as_wide_as_its_layer_does():
    model, batch = zoo.build("llama"), zoo.batch("llama")
    recipe = BottleneckAdapter(sites="blocks.*.mlp.up:out", bottleneck=3, parallel=True)
    with recipe.attach(model) as tuned:
        assert tuned.n_trainable == 2 * (3 * 32 + 3 + 64 * 3 + 64)
    testing.check_tuner(lambda: recipe, model, batch)
