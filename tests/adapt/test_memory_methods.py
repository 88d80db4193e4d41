"""Compressed operators, the meter of what is kept, and the tuners made for few activations."""

from contextlib import nullcontext

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn

from monochord.adapt.bitfit import BitFit
from monochord.adapt.full_tuning import FullTuning
from monochord.adapt.s2a import S2A
from monochord.adapt.side_network import SideBranch, SideNetwork, pooled
from monochord.core.compressed import Code, compressed, pack, unpack
from monochord.core.memory import SavedActivations
from monochord.testing import check_tuner


@pytest.mark.parametrize("name", ["llama", "bert", "vit", "convnext"])
def test_conformance(name):
    model, batch = zoo.build(name), zoo.batch(name)
    check_tuner(lambda: SideNetwork(), model, batch)
    check_tuner(lambda: S2A(), model, batch)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 77), st.integers(0, 99))
def test_packing_goes_there_and_back(bits, count, seed):
    codes = torch.randint(2**bits, (count,), generator=Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, bits, count).long(), codes)
    assert packed.nbytes == (2 * count if bits == 16 else -(-count * bits // 8))


def test_every_byte_is_two_codes():
    codes = torch.arange(256)
    both = torch.stack([codes & 15, codes >> 4], 1)
    assert torch.equal(pack(both, 4).long(), codes)


@pytest.mark.parametrize(
    ("layer", "low", "high"), [(nn.GELU(), -0.13, 1.13), (nn.SiLU(), -0.1, 1.1), (nn.ReLU(), 0, 1)]
)
def test_derivatives_are_off_by_half_a_level_at_most(layer, low, high):
    x = torch.linspace(-6, 6, 1001, requires_grad=True)
    y = layer(x)
    (exact,) = torch.autograd.grad(y.sum(), x)
    with compressed(layer):
        rounded = layer(x)
        assert torch.equal(rounded, y)
        (slope,) = torch.autograd.grad(rounded.sum(), x)
    assert (slope - exact).abs().max() <= (high - low) / 30 + 1e-6
    assert isinstance(layer, nn.ReLU) == torch.equal(slope, exact)
    with compressed(layer, bits=16):
        torch.testing.assert_close(torch.autograd.grad(layer(x).sum(), x)[0], exact, atol=1e-3, rtol=1e-3)


class _RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(width) + 0.5), 1e-6

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.mark.parametrize("layer", [nn.LayerNorm(24), _RMSNorm(24), nn.Softmax(-1)], ids=["layer", "rms", "softmax"])
def test_norms_and_softmax_at_sixteen_bits_have_the_exact_gradients(layer):
    x = torch.randn(3, 5, 24, requires_grad=True)
    goal = torch.randn(3, 5, 24)
    wanted = [x, *layer.parameters()]
    exact = torch.autograd.grad((layer(x) * goal).sum(), wanted)
    before = layer(x)
    errors = []
    for bits in (16, 8, 4, 2):
        with compressed(layer, bits=bits, group=24):
            assert torch.equal(layer(x), before)
            found = torch.autograd.grad((layer(x) * goal).sum(), wanted)
        errors.append(float((found[0] - exact[0]).norm() / exact[0].norm()))
        if bits == 16:
            for a, b in zip(found, exact, strict=True):
                torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-3)
    assert errors == sorted(errors) and errors[2] < 0.2
    assert "forward" not in layer.__dict__


def test_stochastic_rounding_has_the_right_mean():
    torch.manual_seed(0)
    layer, x = nn.GELU(), torch.linspace(-2, 2, 41, requires_grad=True)
    (exact,) = torch.autograd.grad(layer(x).sum(), x)
    with compressed(layer, bits=4, stochastic=True):
        draws = torch.stack([torch.autograd.grad(layer(x).sum(), x)[0] for _ in range(1000)])
    error = draws.std(0) / 1000**0.5
    assert ((draws.mean(0) - exact).abs() <= 4 * error + 1e-6).all()


def test_groups_beat_one_range_for_the_whole_tensor():
    x = torch.randn(64, 128, generator=Generator().manual_seed(0))
    x[3, 5] = 40.0

    def error(group):
        code = Code(4, group)
        return float((code.decode_groups(*code.encode_groups(x), x.shape) - x).square().mean())

    assert error(128) < error(64 * 128) / 3


def test_the_meter_equals_a_count_by_hand():
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    x = torch.randn(7, 10)
    with SavedActivations(model) as saved:
        model(x).sum().backward()
    assert saved.by_module == {"0": 4 * 7 * 10, "1": 4 * 7 * 20}  # the second layer's input is the ReLU's output
    model[0].weight.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    with SavedActivations(model) as saved:
        model(x).sum().backward()
    assert saved.by_module == {"1": 4 * 7 * 20}  # a frozen weight keeps no input
    with compressed(model, bits=1), SavedActivations(model) as saved:
        model(x).sum().backward()
    assert saved.bytes == -(-7 * 20 // 8)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_structure_and_activation_keep_less_each(name):
    model, batch = zoo.build(name).eval(), zoo.batch(name)
    kept = {}
    for label, tuner in (("full", FullTuning()), ("bias", BitFit()), ("s2a", S2A(prompt=2))):
        with tuner.attach(model):
            with SavedActivations(model) as saved:
                model(**batch).last_hidden_state.sum()
            kept[label] = saved.bytes
            with compressed(model), SavedActivations(model) as saved:
                model(**batch).last_hidden_state.sum()
            kept[f"{label} compressed"] = saved.bytes
    assert kept["bias"] < kept["full"] and kept["s2a"] < kept["full"]
    assert all(kept[f"{label} compressed"] < kept[label] for label in ("full", "bias", "s2a"))


@pytest.mark.parametrize("layer", [nn.LeakyReLU(0.2), nn.Hardtanh(), nn.Tanhshrink(), nn.LogSigmoid()], ids=str)
def test_an_activation_of_another_slope_is_left_as_it_is(layer):
    model = nn.Sequential(layer, nn.Hardswish())
    x = torch.linspace(-5, 5, 401, requires_grad=True)
    (exact,) = torch.autograd.grad(model(x).sum(), x)
    with compressed(model, bits=8) as names:
        assert names == ["1"]
        (slope,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(slope, exact, atol=8e-3, rtol=0)  # a level is 2 / 255


class Attention(nn.Module):
    """Fused attention of trained queries, keys and values, fewer heads of keys than of queries."""

    def __init__(self, **options):
        super().__init__()
        self.of = nn.ModuleList([nn.Linear(12, 4 * heads, bias=False) for heads in (4, 2, 2)])
        self.options = options

    def forward(self, x):
        query, key, value = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in self.of)
        return nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True, **self.options)


MASK = torch.ones(5, 5, dtype=torch.bool).tril() | torch.eye(5, dtype=torch.bool)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": MASK}, {"dropout_p": 0.4}], ids=str)
def test_attention_keeps_codes_and_is_run_again(options):
    torch.manual_seed(3)
    model, x = Attention(**options), torch.randn(2, 5, 12)
    found = {}
    for bits in (None, 16, 4):
        torch.manual_seed(4)  # of the dropout
        model.zero_grad()
        with compressed(model, bits, operators=("attention",)) if bits else nullcontext():
            y = model(x)
            torch.rand(7)  # in between
            y.square().sum().backward()
        found[bits] = y.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])
    exact = found[None]
    assert all(torch.equal(found[bits][0], exact[0]) for bits in (16, 4))
    assert (found[16][1] - exact[1]).norm() < 1e-3 * exact[1].norm()
    assert 1e-3 * exact[1].norm() < (found[4][1] - exact[1]).norm() < 0.5 * exact[1].norm()


def test_attention_keeps_four_bits_a_number_and_only_in_the_block():
    model, x = Attention(), torch.randn(8, 32, 12)
    with compressed(model, operators=("attention",)), SavedActivations(model) as saved:
        model(x)
    numbers = 8 * 32 * (16 + 8 + 8)
    assert saved.by_module[""] == numbers // 2 + 4 * numbers // 128
    with SavedActivations(model) as saved:
        model(x)
    assert saved.by_module[""] >= 4 * numbers


def test_what_cannot_be_compressed_says_so():
    with pytest.raises(ValueError, match="has no module that is one of"), compressed(nn.Linear(2, 2)):
        pass
    with pytest.raises(ValueError, match="operators='x' is unknown"), compressed(nn.GELU(), operators=("x",)):
        pass
    with pytest.raises(ValueError, match="bits=3 must be"):
        Code(3)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_pooling_is_that_of_torch(height, width, pool):
    value = torch.arange(2.0 * 3 * height * width).reshape(2, 3, height, width).square()
    wanted = nn.functional.avg_pool2d(value, pool, ceil_mode=True)
    torch.testing.assert_close(pooled(pooled(value, pool, 2), pool, 3), wanted)


def test_a_side_branch_keeps_no_more_than_its_pooled_input_and_what_is_narrow():
    branch, value = SideBranch(64, 4, pool=4, generator=Generator().manual_seed(0)), torch.randn(2, 16, 64)
    source = value.clone().requires_grad_()
    with SavedActivations(branch) as saved:
        branch(value, source)
    assert saved.bytes <= value.nbytes / 4 + 3 * 2 * 4 * 4 * 4  # three narrow values of 4 tokens each
