"""Capture equals hooks written by hand; streamed statistics equal those of everything at once."""

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monochord.core.capture import capture
from monochord.core.ports import first_tensor
from monochord.core.reducers import Covariance, Mean, Moments, Reservoir
from monochord.core.sites import SiteError, resolve


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_module_output_equals_a_hook_by_hand(name: str) -> None:
    model, inputs = zoo.build(name), zoo.batch(name)
    sites = [s for s in resolve(model, "**:out") if s.index is None and s.rows is None]
    by_hand: dict[str, torch.Tensor] = {}

    def hook(path: str):
        def keep(module: nn.Module, args, output) -> None:
            try:
                by_hand[path] = first_tensor(output).detach()
            except SiteError:
                by_hand.pop(path, None)

        return keep

    handles = [model.get_submodule(s.module).register_forward_hook(hook(s.module)) for s in sites]
    zoo.run(model, inputs)
    for handle in handles:
        handle.remove()
    reached = [s for s in sites if s.module in by_hand]
    assert len(reached) > 3
    with torch.no_grad(), capture(model, [str(s) for s in reached]) as acts:
        model(**inputs)
    assert all(torch.equal(acts[str(s)], by_hand[s.module]) for s in reached)


def test_inputs_and_gradients() -> None:
    model, inputs = zoo.build("llama"), zoo.batch("llama")
    with capture(model, ["blocks.*:in", "blocks.*:out", "blocks.*:grad"], keep_graph=True) as acts:
        model(**inputs).logits.square().mean().backward()
    assert torch.equal(acts["blocks.1:in"], acts["blocks.0:out"])
    with capture(model, "blocks.0:out", keep_graph=True) as again:
        loss = model(**inputs).logits.square().mean()
    wanted = torch.autograd.grad(loss, again["blocks.0:out"])[0]
    torch.testing.assert_close(acts["blocks.0:grad"], wanted)


def test_what_is_captured_can_be_differentiated_through() -> None:
    model, inputs = zoo.build("bert"), zoo.batch("bert")
    with capture(model, "blocks.0.attn:pattern", keep_graph=True) as acts:
        model(**inputs)
    acts["blocks.0.attn:pattern"].square().sum().backward()
    assert model.encoder.layer[0].attention.self.query.weight.grad is not None


def test_selectors_narrow_what_is_kept() -> None:
    model, inputs = zoo.build("llama"), zoo.batch("llama")
    names = ["blocks.0:out", "blocks.0:out[tokens=-1]", "blocks.0.attn:pattern[heads=2]", "blocks.0:out[tokens=0]"]
    with torch.no_grad(), capture(model, [*names, "blocks.0.attn:pattern"]) as acts:
        model(**inputs)
    assert torch.equal(acts["blocks.0:out[tokens=-1]"], acts["blocks.0:out"][:, -1:])
    assert torch.equal(acts["blocks.0:out[tokens=0]"][1, 0], acts["blocks.0:out"][1, 2])  # after two of padding
    assert torch.equal(acts["blocks.0.attn:pattern[heads=2]"], acts["blocks.0.attn:pattern"][:, 2:3])


def test_unequal_numbers_of_tokens_come_as_rows() -> None:
    model, inputs = zoo.build("llama"), zoo.batch("llama")
    with torch.no_grad(), capture(model, ["blocks.0:out[tokens=0:]", "blocks.0:out"]) as acts:
        model(**inputs)
    assert torch.equal(acts["blocks.0:out[tokens=0:]"], acts["blocks.0:out"][inputs["attention_mask"].bool()])


def test_every_call_of_a_generation_is_kept_on_request() -> None:
    model, inputs = zoo.build("gpt2"), zoo.batch("gpt2")
    with capture(model, "blocks.0:out", every=True) as acts:
        model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert [v.shape[1] for v in acts["blocks.0:out"]] == [8, 1, 1, 1]


def test_nothing_else_is_touched_and_it_can_be_entered_again() -> None:
    model, inputs = zoo.build("vit"), zoo.batch("vit")
    before = zoo.run(model, inputs)
    reading = capture(model, "blocks.*.mlp:neurons")
    for _ in range(2):
        with reading as acts:
            assert torch.equal(zoo.run(model, inputs), before)
        assert acts.stack().shape == (2, 2, 17, 64)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0


def test_errors_say_what_to_do() -> None:
    model = zoo.build("llama")
    with pytest.raises(SiteError, match="is a weight"):
        capture(model, "blocks.0.mlp.up.weight")
    with capture(model, "blocks.0:out") as acts:
        with pytest.raises(SiteError, match="was not reached"):
            acts["blocks.0:out"]
        with pytest.raises(SiteError, match="was not asked for"):
            acts["blocks.1:out"]
        with pytest.raises(SiteError, match="running already"), acts:
            pass
    with pytest.raises(SiteError, match="hides it"), capture(zoo.build("bert"), "blocks.0.attn:pattern") as acts:
        model = acts.model
        model.encoder.layer[0].attention.self.forward = lambda x, **_: (x, None)
        model(**zoo.batch("bert"))


@pytest.mark.parametrize("reducer", [Mean, Moments, Covariance])
def test_streamed_over_a_model_equals_all_tokens_at_once(reducer) -> None:
    model = zoo.build("llama")
    batches = [{k: v + i if k == "input_ids" else v for k, v in zoo.batch("llama").items()} for i in range(3)]
    rows = []
    with torch.no_grad(), capture(model, "blocks.*:out", reduce=reducer()) as stats:
        for inputs in batches:
            model(**inputs)
    for inputs in batches:
        with torch.no_grad(), capture(model, "blocks.1:out") as acts:
            model(**inputs)
        rows.append(acts["blocks.1:out"][inputs["attention_mask"].bool()])  # padding is left out
    everything = torch.cat(rows).double()
    found = stats["blocks.1:out"]
    mean = found if reducer is Mean else found.mean
    torch.testing.assert_close(mean, everything.mean(0))
    if reducer is Moments:
        torch.testing.assert_close(found.std, everything.std(0, correction=0))
        torch.testing.assert_close(found.maximum.double(), everything.amax(0))
        assert found.count == 3 * 14
    if reducer is Covariance:
        torch.testing.assert_close(found.covariance, everything.T.cov())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1), st.integers(0, 99))
def test_batches_do_not_matter(sizes: list[int], seed: int) -> None:
    rows = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    parts = list(rows.split(sizes))
    mean, moments, reservoir = Mean(), Moments(), Reservoir(4, seed)
    for part in parts:
        mean.update(part)
        moments.update(part)
        reservoir.update(part)
    torch.testing.assert_close(mean.result(), rows.mean(0))
    torch.testing.assert_close(moments.result().std, rows.std(0, correction=0))
    whole = Reservoir(4, seed)
    whole.update(rows)
    assert torch.equal(reservoir.result(), whole.result())
    assert len(reservoir.result()) == min(4, len(rows))


def test_a_reservoir_is_a_fair_sample() -> None:
    counts = torch.zeros(20)
    for seed in range(2000):
        reservoir = Reservoir(5, seed)
        for part in torch.arange(20.0)[:, None].split(7):
            reservoir.update(part)
        counts[reservoir.result().flatten().long()] += 1
    assert bool(((counts / 2000 - 0.25).abs() < 0.05).all())
