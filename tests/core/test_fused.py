"""The fused addition against the same sum by autograd's own steps."""

import pytest
import torch
from torch.nn import functional as F

from monochord.core.fused import add_low_rank


def parts(shape=(2, 5), dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    sizes = {"x": (*shape, 6), "weight": (7, 6), "down": (3, 6), "up": (7, 3)}
    return {name: torch.randn(size, generator=g, dtype=dtype, requires_grad=True) for name, size in sizes.items()}


def fused(x, weight, down, up):
    return add_low_rank(F.linear(x, weight), x, down, up, 0.7)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 2, 5), (0, 5)])
def test_value_and_gradients_are_those_of_the_plain_sum(shape):
    given = parts(shape)
    plain = F.linear(given["x"], given["weight"] + 0.7 * given["up"] @ given["down"])
    torch.testing.assert_close(fused(**given), plain)
    toward = torch.randn(plain.shape, dtype=plain.dtype, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(fused(**given), list(given.values()), toward)
    for a, b in zip(found, torch.autograd.grad(plain, list(given.values()), toward), strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivatives():
    given = parts()
    assert torch.autograd.gradgradcheck(fused, tuple(given.values()))


def test_it_keeps_only_the_input_and_the_thin_product():
    given = parts((4, 50), torch.float32)
    given["weight"].requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        fused(**given)
    assert sorted(map(tuple, kept)) == sorted([(6, 7), (4, 50, 6), (3, 200), (3, 6), (7, 3)])  # the weight too


def test_transforms_and_forward_mode_see_the_plain_steps():
    given = parts()
    values, tangents = tuple(v.detach() for v in given.values()), tuple(torch.ones_like(v) for v in given.values())
    value, slope = torch.func.jvp(fused, values, tangents)
    step = 1e-6
    ahead = fused(*(v + step * t for v, t in zip(values, tangents, strict=True)))
    torch.testing.assert_close((ahead - value) / step, slope, rtol=1e-4, atol=1e-4)
    batched = torch.func.vmap(fused, in_dims=(0, None, None, None))(*values)
    torch.testing.assert_close(batched, fused(*values))


def test_unlike_types_and_views_are_added_all_the_same():
    x, down, up = torch.randn(4, 6, dtype=torch.bfloat16), torch.randn(3, 6), torch.randn(7, 3)
    wide = torch.zeros(4, 7)
    assert add_low_rank(wide, x, down, up, 1.0).dtype == torch.float32
    view = torch.zeros(4, 9)[:, :7]
    torch.testing.assert_close(add_low_rank(view, x.float(), down, up, 2.0), 2 * x.float() @ down.T @ up.T)
