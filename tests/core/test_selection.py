"""Selections hold exactly what was asked for, obey set algebra and come back from files bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monochord.core.selection import Selection
from monochord.core.storage import StorageError, save_tensors


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def drawn(seed, fraction=0.4):
    return Selection.random(model(), seed=seed, fraction=fraction)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 80), st.integers(0, 99), st.booleans())
def test_exactly_k_also_among_equal_scores(k, seed, largest):
    g = torch.Generator().manual_seed(seed)
    scores = {
        "a": torch.randint(0, 4, (6, 8), generator=g).float(),
        "b": torch.randint(0, 4, (32,), generator=g).float(),
    }
    chosen = Selection.by_score(scores, k=k, largest=largest)
    assert chosen.count == k
    inside = torch.cat([scores[n][m] for n, m in chosen.items()])
    outside = torch.cat([scores[n][~m] for n, m in chosen.items()])
    if 0 < k < 80:
        assert inside.min() >= outside.max() if largest else inside.max() <= outside.min()
    assert chosen == Selection.by_score(scores, k=k, largest=largest)


def test_scope_of_a_fraction():
    scores = {"low": torch.arange(10.0), "high": torch.arange(10.0) + 100}
    assert Selection.by_score(scores, fraction=0.5).counts() == {"low": 0, "high": 10}
    assert Selection.by_score(scores, fraction=0.5, scope="tensor").counts() == {"low": 5, "high": 5}
    assert Selection.by_score(scores, k=3, scope="tensor").indices("low").tolist() == [7, 8, 9]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 99), st.integers(0, 99))
def test_set_algebra(i, j):
    a, b = drawn(i), drawn(j)
    assert (a | b).complement == a.complement & b.complement
    assert a - b == a & b.complement
    assert a ^ b == (a | b) - (a & b)
    assert (a & a.complement).count == 0
    assert (a | a.complement).fraction == 1
    assert a.count + a.complement.count == sum(p.numel() for p in model().parameters())


def test_selections_over_different_names_combine():
    a = Selection({"x": torch.tensor([True, False])})
    b = Selection({"y": torch.tensor([[True]])})
    assert (a | b).counts() == {"x": 1, "y": 1} and (a & b).counts() == {"x": 0, "y": 0}
    with pytest.raises(ValueError, match=r"x is \(2,\) in one selection and \(3,\)"):
        a | Selection({"x": torch.ones(3)})


def test_by_name_and_by_kind():
    assert Selection.by_kind(model(), nn.Linear).counts() == {
        "0.weight": 35,
        "0.bias": 7,
        "1.weight": 0,
        "1.bias": 0,
        "2.weight": 21,
        "2.bias": 3,
    }
    assert Selection.by_kind(model(), "LayerNorm").count == 14
    assert Selection.by_name(model(), "{0,2}.bias").count == 10
    with pytest.raises(ValueError, match="no module of kind Conv2d; there are LayerNorm, Linear, Sequential"):
        Selection.by_kind(model(), nn.Conv2d)
    with pytest.raises(ValueError, match=r"no parameter matches '9\.bias'"):
        Selection.by_name(model(), "9.bias")


def test_random_control_keeps_the_counts():
    chosen = drawn(0)
    control = chosen.random_like(seed=5)
    assert control.counts() == chosen.counts() and control != chosen and control.seed == 5
    assert control == chosen.random_like(seed=5) != chosen.random_like(seed=6)
    flips = torch.stack([drawn(seed)["0.weight"].double() for seed in range(300)]).mean(0)
    assert (flips - 0.4).abs().max() < 0.12


@pytest.mark.parametrize("fraction", [0.0, 0.003, 0.4, 1.0])
def test_files_round_trip(tmp_path, fraction):
    shapes = {"w": torch.empty(100, 33), "b": torch.empty(3), "none": torch.empty(0, 2)}
    chosen = Selection.random(shapes, seed=3, fraction=fraction)
    chosen.save(tmp_path / "s.safetensors")
    loaded = Selection.load(tmp_path / "s.safetensors")
    assert loaded == chosen and loaded.seed == 3
    assert all(torch.equal(loaded[name], chosen[name]) for name in chosen)
    assert (tmp_path / "s.safetensors").stat().st_size < 1000 + 100 * 33 / 8


def test_bad_input_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match=r"k must be an int in \[0, 2\] for all scores, got 3"):
        Selection.by_score({"a": torch.ones(2)}, k=3)
    with pytest.raises(ValueError, match="one of k and fraction"):
        Selection.by_score({"a": torch.ones(2)})
    with pytest.raises(ValueError, match="scores of a have NaN"):
        Selection.by_score({"a": torch.tensor([float("nan")])}, k=1)
    with pytest.raises(ValueError, match="'global' or 'tensor', got 'layer'"):
        Selection.by_score({"a": torch.ones(2)}, k=1, scope="layer")
    save_tensors(tmp_path / "x.safetensors", {"w": torch.ones(1)})
    with pytest.raises(StorageError, match="is not a selection"):
        Selection.load(tmp_path / "x.safetensors")
