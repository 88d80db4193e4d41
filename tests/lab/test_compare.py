"""The main job on a tiny model: it learns, measures, repeats to the digit, resumes, and refuses what it can't do."""

import json
from dataclasses import dataclass

import pytest
import torch
from lab import tiny

from monochord.adapt import DoRA, FullTuning, LoRA
from monochord.core.registry import MethodError
from monochord.data import DataError
from monochord.lab import trial
from monochord.lab.compare import compare
from monochord.lab.store import Store

QUICK = {"seeds": 2, "steps": 12, "learning_rates": [0.02], "engine": "inline", "progress": False, "n_test": 16}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Drawing takes most of the time here and has tests of its own."""
    monkeypatch.setattr("monochord.lab.figures.figures", lambda results: {})


def run(out, methods=("last-layer", "full"), **options):
    return compare(
        options.pop("model", tiny.model()),
        options.pop("data", tiny.batches()),
        list(methods) if isinstance(methods, tuple) else methods,
        out=out,
        **{**QUICK, **options},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return out, run(out, ["last-layer", "lora(rank=2)", DoRA(rank=2), "prompt", "full"])


def arms(comparison):
    return {arm["name"]: arm for arm in comparison.results["arms"]}


def test_every_method_has_a_row_with_everything(finished):
    _, comparison = finished
    found = arms(comparison)
    assert list(found) == ["last-layer", "lora(rank=2)", "dora(rank=2)", "prompt", "full"]
    for arm in found.values():
        assert arm["score"]["n"] == 2 and len(arm["trials"]) == 2
        assert arm["bytes"] > 4 * arm["parameters"] and arm["head_parameters"] == 34
        assert arm["step_seconds"] > 0 and len(arm["trials"][0]["losses"]) == 12
        assert [block["block"] for block in arm["blocks"]] == ["blocks.0", "blocks.1"]
    assert not comparison.failures and not comparison.missing


def test_parameters_are_counted_head_included(finished):
    found = {name: arm["parameters"] for name, arm in arms(finished[1]).items()}
    assert found["last-layer"] == 34
    assert found["lora(rank=2)"] == 34 + 2 * 2 * 2 * (16 + 16)  # q and v of two blocks
    assert found["dora(rank=2)"] == found["lora(rank=2)"] + 2 * 2 * 16
    assert found["prompt"] == 34 + 10 * 16
    assert found["full"] == 34 + sum(p.numel() for p in tiny.model().parameters())


def test_what_changed_is_what_was_trained(finished):
    found = arms(finished[1])
    still = found["last-layer"]["blocks"][0]
    assert still["norm"] is None and still["cka"] == pytest.approx(1)
    assert found["prompt"]["blocks"][0]["norm"] is None and found["prompt"]["blocks"][1]["cka"] < 1 - 1e-7
    assert all(0 < block["rank"] <= 2.001 for block in found["lora(rank=2)"]["blocks"])
    assert found["full"]["blocks"][0]["rank"] > 2
    assert 0 < found["full"]["blocks"][0]["cka"] < 0.9999


def test_it_learns(finished):
    assert finished[1].results["chance"] == 0.5
    assert arms(finished[1])["full"]["score"]["mean"] >= 0.9


def test_files_are_written_and_settings_kept(finished):
    out, comparison = finished
    assert json.loads((out / "results.json").read_text()) == comparison.to_json()
    page = (out / "report.html").read_text()
    assert "own data" in page and "dora(rank=2)" in page
    assert not (out / "states").exists()
    assert comparison.results["settings"]["seeds"] == [0, 1]


def test_a_second_run_runs_nothing(finished, monkeypatch):
    out, comparison = finished
    monkeypatch.setattr(trial, "train", None)
    monkeypatch.setattr(trial, "search", None)
    monkeypatch.setattr(trial, "base", None)
    again = run(out, ["last-layer", "lora(rank=2)", DoRA(rank=2), "prompt", "full"])
    assert again.results["arms"] == comparison.results["arms"]
    assert {record.attempts for record in Store(out / "trials.sqlite").trials()} == {1}


def test_same_seed_same_numbers(finished, tmp_path):
    again = arms(run(tmp_path, ["lora(rank=2)"], seeds=[1]))["lora(rank=2)"]["trials"][0]
    first = arms(finished[1])["lora(rank=2)"]["trials"][1]
    for name in ("score", "losses", "blocks", "parameters", "bytes"):
        assert again[name] == first[name]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    real, calls = trial.train, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(trial, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    before = {record.label for record in Store(tmp_path / "trials.sqlite").trials(state="done")}
    assert len(before) == 1 + 2 + 2  # base, a search a method, two seeds
    comparison = run(tmp_path)
    assert len(calls) == 3 + 2  # the interrupted one and the one after it
    assert set(arms(comparison)) == {"last-layer", "full"}


def test_a_failing_method_does_not_stop_the_others(tmp_path):
    comparison = run(tmp_path, ("lora(rank=999)", "last-layer"), seeds=1)
    assert list(arms(comparison)) == ["last-layer"]
    assert comparison.missing == ["lora(rank=999)"]
    (failure,) = comparison.failures
    assert "rank=999 does not fit" in failure["reason"]
    assert "rank=999 does not fit" in (tmp_path / "report.html").read_text()


def test_the_validation_score_chooses_the_rate(tmp_path):
    arm = arms(run(tmp_path, ("full",), learning_rates=[1e-6, 0.02], seeds=1))["full"]
    assert arm["learning_rate"] == 0.02 and arm["edge"]
    assert arm["search"]["0.02"] > arm["search"]["1e-06"]


def test_processes_give_the_numbers_of_inline(finished, tmp_path):
    local = run(tmp_path, ["lora(rank=2)"], engine="local", workers=2)
    for one, other in zip(
        arms(local)["lora(rank=2)"]["trials"], arms(finished[1])["lora(rank=2)"]["trials"], strict=True
    ):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)
        assert one["score"] == other["score"] and one["bytes"] == other["bytes"]


def test_parameters_can_be_matched(tmp_path):
    comparison = run(
        tmp_path,
        ("lora(rank=4)", "dora", "adapter", "last-layer"),
        match="parameters",
        reference="lora(rank=4)",
        seeds=1,
        steps=1,
    )
    counts = {name: arm["parameters"] - 34 for name, arm in arms(comparison).items()}
    assert counts["lora(rank=4)"] == 512
    sized = {name: count for name, count in counts.items() if name not in ("last-layer", "lora(rank=4)")}
    assert len(sized) == 2 and all(abs(count - 512) <= 64 for count in sized.values()), counts


def test_time_can_be_matched(tmp_path, monkeypatch):
    times = {"last-layer": 0.1, "full": 0.3}
    monkeypatch.setattr(trial, "step_time", lambda task, method, objects: {"step_seconds": times[method]})
    steps = {name: arm["steps"] for name, arm in arms(run(tmp_path, match="time", seeds=1, steps=4)).items()}
    assert steps == {"last-layer": 12, "full": 4}
    steps = {n: a["steps"] for n, a in arms(run(tmp_path, budget=1.0, steps=None, seeds=1)).items()}
    assert steps == {"last-layer": 3, "full": 3}


def test_language_models_are_compared_by_loss(tmp_path):
    comparison = run(
        tmp_path,
        ("lora(rank=2)", "full"),
        model=tiny.language_model(),
        data=tiny.batches(labelled=False),
        retention=False,
        seeds=1,
    )
    results = comparison.results
    assert results["metric"]["name"] == "response loss"
    assert results["base_score"] == pytest.approx(3.47, abs=0.2)  # ln 32, before any training
    assert arms(comparison)["full"]["score"]["mean"] < results["base_score"] - 0.2


def test_a_plain_module_is_compared_with_its_own_head(tmp_path):
    torch.manual_seed(1)
    inputs = [torch.randn(12, 4) for _ in range(10)]
    data = [{"inputs": x, "labels": x[:, :3].argmax(1)} for x in inputs]
    comparison = run(tmp_path, {"all": FullTuning()}, model=tiny.classifier(), data=data, seeds=1, steps=40)
    arm = arms(comparison)["all"]
    assert arm["score"]["mean"] > comparison.results["chance"] + 0.2
    assert arm["head_parameters"] == 0 and arm["parameters"] == 67


@dataclass(frozen=True)
class MyTuner(LoRA):
    """A user's own, known by no registry."""


def test_a_users_own_tuner_is_compared(tmp_path):
    comparison = run(tmp_path, {"mine": MyTuner(rank=2), "lora": "lora(rank=2)"}, seeds=1)
    mine, theirs = arms(comparison)["mine"], arms(comparison)["lora"]
    assert mine["method"] == "my-tuner(rank=2)"
    assert mine["trials"][0]["losses"] == theirs["trials"][0]["losses"]


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"methods": []}, ValueError, "no methods to compare"),
        ({"methods": ["loar"]}, MethodError, "did you mean lora"),
        ({"methods": ["lora", "lora"]}, ValueError, "lora is there twice"),
        ({"seeds": 0}, ValueError, "seeds must be"),
        ({"seeds": [1, 1]}, ValueError, "seeds must be"),
        ({"match": "size"}, ValueError, "unknown match 'size': choose steps"),
        ({"budget": 3.0}, ValueError, "in place of steps"),
        ({"learning_rates": [-1]}, ValueError, "must be positive"),
        ({"reference": "dora"}, ValueError, "'dora' is none of the methods"),
        ({"task": "music"}, ValueError, "unknown task 'music'"),
        ({"model": "minlm"}, ValueError, "did you mean minilm"),
        ({"data": [{"text": "a"}] * 30, "task": "text-classification"}, DataError, "has no labels"),
        ({"model": 7}, ValueError, "must be a name, a folder or a torch module, got int"),
        ({"data": tiny.batches(2)}, DataError, "2 batches are too few"),
        ({"data": [{"text": "a", "label": 1}] * 30}, DataError, "at least 2 classes"),
        ({"data": []}, DataError, "no rows"),
        ({"data": [{"text": "a", "label": i % 2} for i in range(5)]}, DataError, "has no validation split"),
    ],
)
def test_what_cant_be_compared_is_refused_before_any_trial(tmp_path, options, error, reason):
    with pytest.raises(error, match=reason):
        run(tmp_path, **options)
    assert not list(tmp_path.glob("*.html"))
