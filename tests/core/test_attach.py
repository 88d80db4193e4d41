"""Attach acts where it says, leaves no trace, stacks, and tells of what it can't do."""

import copy

import pytest
import torch
import zoo
from torch import nn

import monochord as mc
from monochord.core.attach import attach
from monochord.core.modification import Ablate, Add, Apply, Clamp, Modification, Patch, Project, Scale
from monochord.core.sites import SiteError, resolve
from monochord.testing import check_modification

EVERYWHERE = [m for m in zoo.MODELS if m != "unet"]


@pytest.mark.parametrize("name", zoo.MODELS)
def test_no_trace_on_any_model(name: str) -> None:
    model = zoo.build(name)
    site = "skips.0" if name == "unet" else "blocks.*:out"
    for modification in (Scale(1.5), Clamp(-0.1, 0.1), Ablate(), Apply(torch.tanh)):
        check_modification(modification, model, site, zoo.batch(name))


@pytest.mark.parametrize("name", ["llama", "bert", "vit", "t5", "multihead"])
@pytest.mark.parametrize("port", ["in", "heads", "pattern", "scores"])
def test_no_trace_at_any_port_of_attention(name: str, port: str) -> None:
    check_modification(Apply(lambda v: v * 1.1), zoo.build(name), f"blocks.*.attn:{port}", zoo.batch(name))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_hook_written_by_hand_does_the_same(name: str) -> None:
    model, given = zoo.build(name), zoo.batch(name)
    site = resolve(model, "blocks.0:out")[0]
    with attach(model, {str(site): Scale(0.5)}):
        ours = zoo.run(model, given)

    def by_hand(module, args, output):
        return output * 0.5 if isinstance(output, torch.Tensor) else (output[0] * 0.5, *output[1:])

    handle = model.get_submodule(site.module).register_forward_hook(by_hand)
    assert torch.equal(ours, zoo.run(model, given))
    handle.remove()


def test_the_readmes_example_of_steering() -> None:
    model, given = zoo.build("llama"), zoo.batch("llama")
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
    before = zoo.run(model, given)
    with mc.attach(model, {"blocks.1:out": mc.Add(vector, scale=4)}), mc.capture(model, "blocks.1:out") as acts:
        zoo.run(model, given)
    with mc.capture(model, "blocks.1:out") as plain:
        assert torch.equal(zoo.run(model, given), before)
    torch.testing.assert_close(acts["blocks.1:out"], plain["blocks.1:out"] + 4 * vector)


def test_selectors_touch_only_what_they_name() -> None:
    model, given = zoo.build("llama"), zoo.batch("llama")  # the second example is padded on the left by two
    cases = {
        "blocks.0:out[tokens=1]": lambda v: (v[0, 1], v[1, 3]),
        "blocks.0:out[tokens=-1]": lambda v: (v[0, 7], v[1, 7]),
        "blocks.0:out[tokens=0:2][units=3,5]": lambda v: (v[0, :2][:, [3, 5]], v[1, 2:4][:, [3, 5]]),
    }
    with mc.capture(model, "blocks.0:out") as plain:
        zoo.run(model, given)
    for site, picked in cases.items():
        with mc.attach(model, {site: Ablate(7.0)}), mc.capture(model, "blocks.0:out") as acts:
            zoo.run(model, given)
        value = acts["blocks.0:out"]
        assert all(bool((part == 7).all()) for part in picked(value)), site
        changed = int((value != plain["blocks.0:out"]).sum())
        assert changed == sum(part.numel() for part in picked(value)), site


def test_heads_are_ablated_one_by_one() -> None:
    model, given = zoo.build("bert"), zoo.batch("bert")
    with (
        mc.attach(model, {"blocks.0.attn:heads[heads=1,3]": Ablate()}),
        mc.capture(model, "blocks.0.attn.o:in") as acts,
    ):
        zoo.run(model, given)
    heads = acts["blocks.0.attn.o:in"].unflatten(-1, (4, 8))
    assert bool((heads[:, :, [1, 3]] == 0).all()) and bool((heads[:, :, [0, 2]] != 0).any())


def test_roles_and_steps() -> None:
    model, given = zoo.build("gpt2"), zoo.batch("gpt2")
    roles = {"assistant": torch.tensor([[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1, 1]])}
    with (
        mc.attach(model, {"blocks.0:out[role=assistant]": Ablate()}, roles=roles),
        mc.capture(model, "blocks.0") as acts,
    ):
        zoo.run(model, given)
    zero = (acts["blocks.0:out"] == 0).all(-1)
    assert torch.equal(zero, roles["assistant"].bool())
    with pytest.raises(SiteError, match="no mask for role 'user'"), mc.attach(model, {"blocks.0[role=user]": Ablate()}):
        zoo.run(model, given)
    before = zoo.run(model, given)
    with mc.attach(model, {"blocks.0[steps=1:]": Ablate()}):
        assert torch.equal(zoo.run(model, given), before)
        assert not torch.equal(zoo.run(model, given), before)


def test_several_attachments_stack_in_order_and_leave_in_any() -> None:
    model, given = zoo.build("llama"), zoo.batch("llama")
    before, state = zoo.run(model, given), {n: v.clone() for n, v in model.state_dict().items()}
    three = [mc.attach(model, {"blocks.0:out": Add(torch.full((32,), float(i)))}, name=f"a{i}") for i in range(3)]
    with mc.capture(model, "blocks.0:out") as acts:
        zoo.run(model, given)
    three[1].disable()
    with mc.capture(model, "blocks.0:out") as fewer:
        zoo.run(model, given)
    torch.testing.assert_close(acts["blocks.0:out"], fewer["blocks.0:out"] + 1)
    for i in (1, 0, 2):
        three[i].detach()
    assert torch.equal(zoo.run(model, given), before)
    assert list(model.state_dict()) == list(state)
    with pytest.raises(ValueError, match="is taken"), mc.attach(model, {"blocks.0": Ablate()}, name="x"):
        mc.attach(model, {"blocks.0": Ablate()}, name="x")


def test_an_exception_inside_restores_the_model() -> None:
    model, given = zoo.build("bert"), zoo.batch("bert")
    before, hooks = zoo.run(model, given), sum(len(m._forward_hooks) for m in model.modules())

    def fail(value: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    for port in ("out", "pattern"):
        with pytest.raises(ZeroDivisionError), mc.attach(model, {f"blocks.1.attn:{port}": fail}):
            zoo.run(model, given)
        assert torch.equal(zoo.run(model, given), before)
    assert hooks == sum(len(m._forward_hooks) for m in model.modules())


def test_a_site_that_never_runs_is_an_error() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = Half()
    with pytest.raises(SiteError, match="idle:out was never reached"), attach(model, {"{used,idle}": Scale(2.0)}):
        model(torch.ones(1, 4))


def test_the_receipt_tells_what_was_left_out() -> None:
    model = zoo.build("llama")
    with mc.attach(model, {"blocks.0.mlp:out": Scale(1.0, trainable=True)}) as attachment:
        assert attachment.receipt.n_parameters == 1
        assert attachment.receipt.missed == ("blocks.1.mlp",)
        assert "not covered: 1 of the same role, e.g. blocks.1.mlp" in repr(attachment)


def test_strength_can_be_weighed_and_routed_by_example() -> None:
    model, given = zoo.build("llama"), zoo.batch("llama")
    before = zoo.run(model, given)
    with mc.attach(model, {"blocks.*:out": Scale(0.5)}) as attachment:
        full = zoo.run(model, given)
        attachment.weigh(0.0)
        torch.testing.assert_close(zoo.run(model, given), before)
        attachment.weigh(torch.tensor([1.0, 0.0]))
        mixed = zoo.run(model, given)
    torch.testing.assert_close(mixed[0], full[0])
    torch.testing.assert_close(mixed[1], before[1])


def test_patch_takes_a_value_from_another_run_or_another_model() -> None:
    model, given = zoo.build("gpt2"), zoo.batch("gpt2")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.transformer.h[1].parameters():
            p.mul_(1.5)
    with torch.no_grad(), mc.capture(other, "blocks.1:out") as acts:
        wanted = zoo.main(other(**given))
    with mc.attach(model, {"blocks.1:out": Patch(acts["blocks.1:out"])}):
        torch.testing.assert_close(zoo.run(model, given), wanted)
    with mc.attach(model, {"blocks.*:out": Patch(from_model=other)}):
        torch.testing.assert_close(zoo.run(model, given), wanted)
    short = {"blocks.1:out": Patch(torch.zeros(2, 3, 32))}
    with pytest.raises(SiteError, match="run both prompts at the same length"), mc.attach(model, short):
        zoo.run(model, given)


def test_projections_split_a_value() -> None:
    value = torch.randn(5, 8, dtype=torch.float64)
    basis = torch.randn(8, 3, dtype=torch.float64)
    kept, rest = Project(basis, keep=True)(value), Project(basis)(value)
    torch.testing.assert_close(kept + rest, value)
    torch.testing.assert_close(rest @ basis, torch.zeros(5, 3, dtype=torch.float64), atol=1e-10, rtol=0)


def test_gradients_can_be_changed() -> None:
    model, given = zoo.build("bert"), zoo.batch("bert")
    grads = []
    for factor in (1.0, 3.0):
        model.zero_grad()
        with mc.attach(model, {"blocks.0:grad": Scale(factor)}):
            model(**given).last_hidden_state.square().mean().backward()
        grads.append(model.embeddings.word_embeddings.weight.grad.clone())
    torch.testing.assert_close(grads[1], 3 * grads[0])


def test_a_recurrent_state_can_be_steered() -> None:
    model, given = zoo.build("mamba"), zoo.batch("mamba")
    step = {"input_ids": torch.tensor([[3], [4]])}
    with torch.no_grad():
        first = model(**given, use_cache=True).cache_params
        plain = model(**step, cache_params=first, use_cache=True).logits
        with mc.attach(model, {"blocks.*.ssm:state": Ablate()}):
            second = model(**given, use_cache=True).cache_params
        steered = model(**step, cache_params=second, use_cache=True).logits
    assert not torch.allclose(plain, steered)


def test_a_deep_copy_of_an_attached_model_is_attached_itself() -> None:
    model, given = zoo.build("llama"), zoo.batch("llama")
    with mc.attach(model, {"blocks.0:out": Scale(0.5)}):
        twin, expected = copy.deepcopy(model), zoo.run(model, given)
    assert torch.equal(zoo.run(twin, given), expected)
    assert not torch.equal(zoo.run(model, given), expected)


def test_a_modification_has_to_say_what_it_does() -> None:
    with pytest.raises(NotImplementedError, match="has to define forward"):
        Modification()(torch.ones(1))
    with pytest.raises(SiteError, match="changes weights"), attach(zoo.build("bert"), {}) as _:
        from monochord.core.changes import DenseChange

        site = resolve(zoo.build("bert"), "blocks.0:out")[0]
        attach(zoo.build("bert"), [(site, DenseChange((2, 2)))])
