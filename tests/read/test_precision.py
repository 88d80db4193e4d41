"""Rounded numbers are those of the real formats, and only products are rounded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention as attention

from monochord.read.precision import coarse, round_mantissa, rounding_drift


@given(st.integers(0, 2**32 - 1))
def test_seven_bits_are_bfloat16_and_ten_are_float16(seed):
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed))
    x = x[x.abs() > 1e-3]
    assert torch.equal(round_mantissa(x, 7), x.to(torch.bfloat16).float())
    assert torch.equal(round_mantissa(x, 10), x.to(torch.float16).float())


@given(st.integers(1, 22), st.integers(0, 1000))
def test_rounding_is_idempotent_and_near(bits, seed):
    x = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 1e3
    y = round_mantissa(x, bits)
    assert torch.equal(round_mantissa(y, bits), y)
    assert ((y - x).abs() <= x.abs() * 2.0 ** -(bits + 1) * (1 + 1e-6)).all()


@given(st.integers(1, 22), st.integers(0, 1000))
def test_single_and_double_precision_are_rounded_alike(bits, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(60, generator=g) * torch.randn(60, generator=g).mul(8).exp()
    ties = torch.tensor([1.0, 3.0, 5.0]) * 2.0 ** -(bits + 1) + 1  # to the even neighbour
    x = torch.cat([x, ties, -ties])
    assert torch.equal(round_mantissa(x, bits).double(), round_mantissa(x.double(), bits))


def test_zero_infinity_and_nothing_to_round():
    x = torch.tensor([0.0, float("inf"), -float("inf"), float("nan")])
    y = round_mantissa(x, 4)
    assert y[0] == 0 and y[1] == x[1] and y[2] == x[2] and y[3].isnan()
    assert round_mantissa(x, 23) is x
    with pytest.raises(ValueError, match="bits=0: use 1 to 23"):
        round_mantissa(x, 0)


def test_products_are_rounded_forwards_and_backwards_and_sums_are_not():
    g = torch.Generator().manual_seed(0)
    layer, x = torch.nn.Linear(16, 8), torch.randn(4, 16, generator=g)
    plain = layer(x)
    with coarse(3):
        out = layer(x)
        assert torch.equal(x + x / 3, x + x / 3) and not torch.equal(x + 0, round_mantissa(x, 3))
    by_hand = torch.nn.functional.linear(*(round_mantissa(t, 3) for t in (x, layer.weight, layer.bias)))
    assert torch.equal(out, round_mantissa(by_hand, 3)) and not torch.equal(out, plain)
    out.sum().backward()
    assert torch.equal(layer.weight.grad, round_mantissa(layer.weight.grad, 3))
    with coarse(23):
        assert torch.equal(layer(x), plain)
    assert torch.equal(layer(x), plain)


@pytest.mark.parametrize("heads", [4, 2])
def test_attention_has_its_weights_rounded_between_its_products(heads):
    g = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 6, 8, generator=g, requires_grad=True)
    key, value = (torch.randn(2, heads, 6, 8, generator=g) for _ in range(2))
    with coarse(3):
        out = attention(query, key, value, is_causal=True, enable_gqa=heads < 4)
    q, k, v = (round_mantissa(t, 3) for t in (query, key, value))
    k, v = (t.repeat_interleave(4 // heads, 1) for t in (k, v))
    scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    by_hand = round_mantissa(round_mantissa(scores.softmax(-1), 3) @ v, 3)
    assert ((out - by_hand).abs() <= by_hand.abs() * 2.0**-3).all()  # a last bit where sums differ in order
    assert (out == by_hand).float().mean() > 0.98
    out.sum().backward()
    assert torch.isfinite(query.grad).all()


def test_products_named_exact_are_left_alone():
    a, b = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)), torch.ones(4, 2)
    with coarse(2, exact=(torch.einsum,)):
        left, product = torch.einsum("ij,jk->ik", a, b), a @ b
    assert torch.allclose(left, a @ b) and not torch.allclose(product, a @ b)


def test_a_rounded_recurrence_drifts_by_its_bits_and_not_from_what_is_stored_exactly():
    state = torch.tensor([[3.0, 1.0], [0.1, 0.3]], dtype=torch.float64)
    assert rounding_drift(lambda x, _: 0.5 * x, state[:1], range(4), 2).abs().max() == 0  # only exponents change
    drift = rounding_drift(lambda x, u: u + 0.9 * x, state, torch.full((30,), 0.1), 5)
    assert drift.shape == (30, 2) and 0 < drift.max() < 0.2
    assert rounding_drift(lambda x, u: u + 0.9 * x, state, torch.full((30,), 0.1), 12).max() < drift.max() / 30
    with pytest.raises(ValueError, match="bits=24"):
        rounding_drift(lambda x, _: x, state, range(2), 24)
