"""The verbs as commands: tune, diff, merge, steer, capture."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from monochord.cli import main
from monochord.lab.diff import diff, page

SMALL = ["glassllm", "--data", "alpaca", "--steps", "2", "--batch-size", "2", "--max-length", "48", "-q"]
CONFIG = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
num_processes: 2
num_machines: 1
machine_rank: 0
main_process_port: 0
use_cpu: true
mixed_precision: 'no'
"""


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    return json.loads(printed.out) if "--json" in arguments else printed.out


def test_tune_then_diff(tmp_path, capsys):
    found = run(capsys, "tune", *SMALL, "--method", "lora(rank=2)", "--out", tmp_path / "mine", "--json")
    assert found["steps"] == 2 and found["after"] != found["before"] and found["saved"].endswith("tuner")
    again = run(capsys, "tune", *SMALL, "--method", "lora(rank=2)", "--out", tmp_path / "mine", "--json")
    assert again["after"] == found["after"]  # from its checkpoint, nothing left to do
    shown = run(capsys, "diff", "glassllm", tmp_path / "mine", "--html", tmp_path / "d.html", "--json")
    assert [block["block"] for block in shown["blocks"]] == [f"blocks.{i}" for i in range(4)]
    assert shown["changed"] == 8 and all(
        0 < b["norm"] < 1 and b["rank"] <= 2 and b["cka"] <= 1 for b in shown["blocks"]
    )
    assert all(1 < b["dimension"] != b["base_dimension"] > 1 for b in shown["blocks"])
    text = (tmp_path / "d.html").read_text()
    assert text.count("<svg") == 4 and "http" not in text.replace("http://www.w3.org", "")
    assert "8 of" in page(shown, "x")


def test_diff_of_two_folders_tells_what_changed(tmp_path):
    import monochord as mc

    model = mc.load("glassllm")
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(0.01)
    model.save_pretrained(tmp_path / "tuned")
    found = diff(tmp_path / "base", tmp_path / "tuned")
    assert found["changed"] == 1 and found["most"] == ["model.layers.1.mlp.up_proj.weight"]
    assert [block["norm"] is None for block in found["blocks"]] == [True, False, True, True]


def test_tune_on_two_processes(tmp_path):
    (tmp_path / "two.yaml").write_text(CONFIG)
    options = ["--out", tmp_path / "mine", "--accelerate-config", tmp_path / "two.yaml", "--json"]
    command = [sys.executable, "-m", "monochord.cli", "tune", *SMALL, "--method", "lora(rank=2)", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert found["steps"] == 2 and (tmp_path / "mine/tuner").is_dir()


def test_tune_without_its_configuration_says_how_to_write_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["tune", *SMALL, "--out", str(tmp_path / "x"), "--accelerate-config", str(tmp_path / "no.yaml")])
    assert end.value.code == 2 and "accelerate config --config_file" in capsys.readouterr().err


def folder(path, **tensors):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return path


def test_merge_adds_coefficients_times_changes(tmp_path, capsys):
    w = {"a.weight": torch.ones(2, 3), "b.weight": torch.zeros(4)}
    base = folder(tmp_path / "base", **w)
    one = folder(tmp_path / "one", **{n: t + 1 for n, t in w.items()})
    two = folder(tmp_path / "two", **{n: t + 10 for n, t in w.items()})
    run(capsys, "merge", base, f"0.5*{one}", f"2*{two}", "--out", tmp_path / "m", "--only", "a.*")
    merged = load_file(tmp_path / "m/model.safetensors")
    assert merged["a.weight"].eq(1 + 0.5 + 20).all() and merged["b.weight"].eq(0).all()
    with pytest.raises(SystemExit) as end:
        main(["merge", str(base), f"half*{one}", "--out", str(tmp_path / "n")])
    assert end.value.code == 2 and "0.5*./tuned" in capsys.readouterr().err and not (tmp_path / "n").exists()
    with pytest.raises(SystemExit):
        main(["merge", str(base), str(one), "--only", "z.*", "--out", str(tmp_path / "n")])
    assert "matches no tensor of the change" in capsys.readouterr().err


def test_steer_moves_what_is_written(capsys):
    arguments = ("Alice was", "--toward", "the queen", "--away", "the rabbit", "--at", "blocks.2:out", "--tokens", 5)
    found = run(capsys, "steer", "glassllm", *arguments, "--scale", 20, "--json")
    assert found["site"] == "blocks.2:out" and found["plain"] != found["steered"] and found["length"] > 0


def test_capture_goes_on_where_it_was(tmp_path, capsys):
    options = ("blocks.{0,1}:out", "--rows", 5, "--batch-size", 2, "--json")
    found = run(capsys, "capture", "glassllm", "movie-text", *options, "--out", tmp_path / "acts")
    assert found["shapes"]["blocks.0:out"][2] == 128 and len(list((tmp_path / "acts").iterdir())) == 3
    middle = tmp_path / "acts/00001.safetensors"
    before = load_file(middle)
    middle.unlink()
    run(capsys, "capture", "glassllm", "movie-text", *options, "--out", tmp_path / "acts")
    assert all(torch.equal(load_file(middle)[name], value) for name, value in before.items())
    zarr = pytest.importorskip("zarr", reason="zarr needs Python 3.11")
    for rows in (4, 5):  # goes on after four
        more = ("blocks.{0,1}:out", "--rows", rows, "--batch-size", 2, "--json")
        run(capsys, "capture", "glassllm", "movie-text", *more, "--out", tmp_path / "acts.zarr")
    group = zarr.open_group(tmp_path / "acts.zarr", mode="r")
    kept = load_file(middle)
    longest = kept["blocks.1:out"].shape[1]
    assert group["blocks.1:out"].shape[0] == 5 and group["attention_mask"].shape[0] == 5
    assert (group["blocks.1:out"][2:4, :longest] == kept["blocks.1:out"].numpy()).all()
    assert not group["blocks.1:out"][2:4, longest:].any()
    other = ("blocks.{0,1}:out", "--rows", 8, "--batch-size", 4)
    for out in ("acts", "acts.zarr"):  # five rows are no whole number of fours
        with pytest.raises(SystemExit):
            main(["capture", "glassllm", "movie-text", *map(str, other), "--out", str(tmp_path / out)])
        assert "ends within a batch" in capsys.readouterr().err
    found = run(
        capsys, "capture", "glassllm", "movie-text", *options, "--statistics", "--out", tmp_path / "s.safetensors"
    )
    assert found["shapes"]["blocks.1:out/covariance"] == [128, 128]
