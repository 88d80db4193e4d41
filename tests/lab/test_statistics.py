"""Intervals against scipy's own, and the corners: one value, no value, no spread."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monochord.lab.statistics import bootstrap_interval, mean_interval, paired_difference, paired_p

numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


@given(numbers, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_mean_interval_is_scipys(values, confidence):
    ours = mean_interval(values, confidence)
    theirs = stats.t.interval(
        confidence, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values) or math.nan
    )
    if math.isnan(theirs[0]):
        assert ours.half_width == pytest.approx(0, abs=1e-9)
    else:
        assert (ours.low, ours.high) == pytest.approx(theirs, rel=1e-6, abs=1e-6)


def test_pairs_remove_what_the_seeds_share():
    first, second = [0.70, 0.80, 0.90], [0.69, 0.785, 0.89]
    difference = paired_difference(first, second)
    assert difference.low > 0
    assert difference.half_width < 0.1 * mean_interval(first).half_width
    assert paired_p(first, second) == pytest.approx(stats.ttest_rel(first, second).pvalue)


def test_equal_differences_have_no_spread():
    assert paired_p([1, 2, 3], [1, 2, 3]) == 1.0
    assert paired_p([2, 3, 4], [1, 2, 3]) == 0.0


def test_bootstrap_repeats_and_holds_the_mean():
    values = [0.0] * 30 + [1.0] * 70
    first, second = bootstrap_interval(values, seed=3), bootstrap_interval(values, seed=3)
    assert first == second
    assert 0.58 < first.low < 0.7 < first.high < 0.82
    assert bootstrap_interval([2.0, 2.0]).half_width == 0


def test_one_value_has_no_interval():
    assert math.isnan(mean_interval([0.5]).half_width)
    assert str(mean_interval([0.5])) == "0.5"
    assert str(mean_interval([0.5, 0.7])) == "0.6 ± 1.3"


@pytest.mark.parametrize(("values", "reason"), [([], "no values"), ([1.0, math.nan], "1 of 2 values are not finite")])
def test_bad_values_are_named(values, reason):
    with pytest.raises(ValueError, match=reason):
        mean_interval(values)


def test_pairs_must_match():
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_difference([1, 2], [1])
