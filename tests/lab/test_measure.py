"""What training costs and changes: each figure against one worked out by hand."""

import pytest
import torch
from lab import tiny

from monochord.adapt import FullTuning, LoRA, PromptTokens
from monochord.core.delta import Delta
from monochord.lab.measure import Clock, Peak, activation_likeness, block_names, folder_bytes, weight_changes


def test_peak_memory_sees_what_was_held_and_given_back():
    with Peak() as small:
        pass
    with Peak() as peak:
        held = torch.ones(40_000_000)  # 160 MB
        del held
    assert 150e6 < peak.bytes < 250e6
    assert small.bytes < 50e6
    assert peak.source


def test_the_median_step_leaves_the_first_out():
    clock = Clock()
    clock.seconds = [9.0, 1.0, 3.0, 2.0]
    assert clock.median() == 2.0
    clock.seconds = [9.0]
    assert clock.median() == 9.0
    clock.seconds = []
    assert clock.median() != clock.median()


def test_folder_bytes_are_those_of_its_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"123")
    (tmp_path / "y").write_bytes(b"4567")
    assert folder_bytes(tmp_path) == 7


def test_every_weight_of_a_block_has_its_block():
    model = tiny.model()
    names = block_names(model)
    assert set(names.values()) == {"blocks.0", "blocks.1"}
    assert set(names) == {name for name, _ in model.named_parameters() if name.startswith("encoder.layer.")}


def test_relative_norm_rank_and_overlap_of_a_known_change():
    model = tiny.model()
    blocks = block_names(model)
    name = "encoder.layer.1.attention.self.query.weight"
    weight = model.get_parameter(name).detach()
    left, _, right = torch.linalg.svd(weight)
    whole = sum(model.get_parameter(n).detach().square().sum() for n, b in blocks.items() if b == "blocks.1").sqrt()

    along = 0.5 * torch.outer(left[:, 0], right[3])  # rank one, in the base's first direction
    still, changed = weight_changes(Delta({name: along}), model, blocks)
    assert still["norm"] is still["rank"] is still["overlap"] is None
    assert changed["norm"] == pytest.approx(0.5 / float(whole), rel=1e-5)
    assert changed["rank"] == pytest.approx(1, abs=1e-3)
    assert changed["overlap"] == pytest.approx(1, abs=1e-4)
    assert changed["overlap_chance"] == pytest.approx(1 / 16)

    across = left[:, 8:10] @ right[:2]  # two equal directions, none of them the base's first
    changed = weight_changes(Delta({name: across}), model, blocks)[1]
    assert changed["rank"] == pytest.approx(2, abs=1e-3)
    assert changed["overlap"] == pytest.approx(0, abs=1e-4)


def test_effective_rank_is_the_one_of_the_singular_values():
    model = tiny.model()
    name = "encoder.layer.0.intermediate.dense.weight"
    change = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    changed = weight_changes(Delta({name: change}), model, block_names(model))[0]
    assert changed["rank"] == pytest.approx(Delta({name: change}).effective_rank()[name], rel=1e-5)


@pytest.mark.parametrize("tuner", [LoRA(rank=2), FullTuning(), PromptTokens(length=3)])
@pytest.mark.parametrize("build", [tiny.model, tiny.language_model])
def test_likeness_is_one_until_something_changes(tuner, build):
    model = build()
    batch = tiny.batches(1)[0]
    batch = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].clone()}
    batch["attention_mask"][0, 4:] = 0
    tuned = tuner.attach(model)
    before = activation_likeness(model, tuned.disabled(), batch)
    if not isinstance(tuner, PromptTokens):  # its tokens are there from the start
        assert before == {"blocks.0": pytest.approx(1), "blocks.1": pytest.approx(1)}
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    after = activation_likeness(model, tuned.disabled(), batch)
    assert after["blocks.1"] < 1 - 1e-7
    assert set(after) == {"blocks.0", "blocks.1"}
