"""Rounded numbers are those of the real formats, and only products are rounded."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monochord.read.precision import coarse, round_mantissa


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
