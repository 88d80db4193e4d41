"""Tuners of equal size."""

import pytest
import zoo

from monochord.core.budget import count, match_budget


def test_tuners_come_as_near_as_their_sizes_allow():
    model = zoo.build("bert")
    specs = {
        "lora": "lora(sites='blocks.**.weight')",
        "adapter": "bottleneck-adapter",
        "prompt": "prompt",
        "random": "random-parameters",
        "subspace": "intrinsic-dimension",
        "side": "side-network(groups=1)",
    }
    matched = match_budget(specs, model, 1000, tolerance=0.35)
    counts = {name: count(tuner, model) for name, tuner in matched.items()}
    assert counts["random"] == counts["subspace"] == 1000
    assert abs(counts["prompt"] - 1000) <= 16  # half a vector of 32
    for name, tuner in matched.items():
        assert abs(counts[name] - 1000) <= 350, (name, tuner)


def test_what_has_no_size_or_none_that_fits_says_so():
    model = zoo.build("bert")
    with pytest.raises(ValueError, match="bias has no size to set"):
        match_budget({"bias": "bitfit"}, model, 100)
    with pytest.raises(ValueError, match=r"lora trains \d+ numbers at rank=1, no size is nearer to 3"):
        match_budget({"lora": "lora"}, model, 3)
