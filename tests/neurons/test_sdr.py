"""The theory of sparse recognition against exact integers, known values and simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monochord.neurons import sdr
from monochord.neurons.segments import ActiveDendrites, KWinners, SegmentMemory


def exact(n, a, s, theta):
    return Fraction(
        sum(math.comb(s, b) * math.comb(n - s, a - b) for b in range(theta, min(s, a) + 1)), math.comb(n, a)
    )


@given(st.integers(10, 10_000), st.data())
def test_false_positives_equal_integer_arithmetic(n, draw):
    a, s = draw.draw(st.integers(1, n // 2)), draw.draw(st.integers(1, min(40, n)))
    theta = draw.draw(st.integers(0, min(s, a)))
    assert sdr.false_positive(n, a, s, theta) == pytest.approx(float(exact(n, a, s, theta)), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ((200_000, 2000, 10, 10), 9.78e-21),
        ((200_000, 2000, 20, 10), 1.65e-15),
        ((10_000, 200, 24, 12), 6.45e-15),
        ((2048, 40, 20, 10), 3.91e-13),
        ((500, 250, 24, 12), 0.58),
    ],
)
def test_known_false_positives(setting, value):
    assert sdr.false_positive(*setting) == pytest.approx(value, rel=5e-3)
    assert math.exp(sdr.false_positive(*setting, log=True)) == pytest.approx(sdr.false_positive(*setting))


def test_known_false_negatives_and_unions():
    found = sdr.false_negative(200, 24, 12, [0.2, 0.3, 0.4, 0.5])
    np.testing.assert_allclose(found, [6.7e-5, 7.4e-3, 0.10, 0.41], rtol=0.03)
    found = sdr.union_false_positive(10_000, 200, 24, 12, [5, 10, 20])
    np.testing.assert_allclose(found, [4.3e-6, 2.9e-3, 0.23], rtol=0.05)


def test_the_exact_union_is_the_formula_for_one_pattern_and_enumeration_for_two():
    assert sdr.exact_union_false_positive(500, 40, 12, 4, 1) == pytest.approx(sdr.false_positive(500, 40, 12, 4))
    cells, active, synapses, threshold = 6, 3, 2, 2
    sets = [set(c) for c in itertools.combinations(range(cells), synapses)]
    hits = [len((one | other) & set(range(active))) >= threshold for one in sets for other in sets]
    assert sdr.exact_union_false_positive(cells, active, synapses, threshold, 2) == pytest.approx(np.mean(hits))


def test_identities():
    assert sdr.false_positive(300, 20, 12, 0) == pytest.approx(1)
    total = sum(math.exp(sdr.log_overlap_set(60, 9, 7, b)) for b in range(8))
    assert total == pytest.approx(math.comb(60, 9))
    rising = sdr.false_positive(1000, 40, 20, np.arange(21))
    assert np.all(np.diff(rising) <= 0)
    assert np.all(np.diff(sdr.false_positive(1000, 40, np.arange(12, 40), 8)) > 0)
    assert np.all(np.diff(sdr.union_false_positive(1000, 40, 12, 8, np.arange(1, 20))) > 0)
    assert sdr.union_size(1000, 24, 1) == pytest.approx(24)
    assert sdr.any_segment(0.01, 3) == pytest.approx(1 - 0.99**3) and sdr.any_segment(1e-18, 5) == pytest.approx(5e-18)


def test_best_thresholds_are_those_of_the_sheet():
    for noise, wanted in ((0.2, [7, 8, 10, 14]), (0.3, [6, 7, 8, 11])):
        assert [sdr.optimal_threshold(10_000, 200, s, noise) for s in (20, 25, 30, 40)] == wanted
    assert [sdr.smallest_threshold(10_000, 200, s, 1e-9) for s in (20, 25, 30, 40)] == [9, 9, 10, 11]
    with pytest.raises(ValueError, match="no threshold up to 4"):
        sdr.smallest_threshold(50, 25, 4, 1e-9)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="more active cells or synapses than cells"):
        sdr.false_positive(10, 20, 3, 1)
    with pytest.raises(ValueError, match="0 to 1"):
        sdr.false_negative(20, 5, 3, 1.5)


def patterns(count, n, active, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.zeros(count, n, dtype=torch.bool).scatter(
        1, torch.rand(count, n, generator=g).topk(active).indices, True
    )


def test_a_memory_recognises_what_it_stored_and_little_else():
    memory = SegmentMemory(400, synapses=12, threshold=6)
    stored, others = patterns(50, 400, 40), patterns(400, 400, 40, seed=1)
    memory.store(stored, torch.Generator().manual_seed(2))
    assert bool(memory.recognise(stored).diagonal().all())
    found = memory.recognise(others).float().mean().item()
    wanted = sdr.false_positive(400, 40, 12, 6)
    assert abs(found - wanted) < 4 * math.sqrt(wanted / memory.recognise(others).numel())
    memory.load_state_dict(memory.state_dict())
    with pytest.raises(ValueError, match="fewer than 12 active cells"):
        memory.store(patterns(1, 400, 5))


def test_a_segment_may_hold_several_patterns():
    memory = SegmentMemory(1000, synapses=10, threshold=8)
    stored = patterns(20, 1000, 40)
    memory.store(stored, torch.Generator().manual_seed(0), together=4)
    assert memory.cells.shape == (5, 40)
    assert all(bool(memory.recognise(stored)[i, i // 4]) for i in range(20))
    distinct = [len(set(row.tolist())) for row in memory.cells]
    assert memory.overlaps(torch.ones(1, 1000)).tolist() == [distinct]


def test_winners_and_dendrites():
    x = torch.tensor([[1.0, -3.0, 2.0, 0.5]])
    assert KWinners(2)(x).tolist() == [[1.0, 0.0, 2.0, 0.0]]
    layer = ActiveDendrites(4, 3, segments=5, context=2)
    context = torch.tensor([[0.3, -1.0]])
    match = torch.einsum("bc,osc->bos", context, layer.dendrites)
    strongest = torch.stack([row[row.abs().argmax()] for row in match[0]])
    torch.testing.assert_close(layer(x, context), layer.linear(x) * torch.sigmoid(strongest))
    layer(x, context).sum().backward()
    assert layer.dendrites.grad is not None
