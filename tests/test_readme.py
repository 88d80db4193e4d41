"""The README's Python runs as written."""

import re
from pathlib import Path

import torch
import zoo

import monochord as mc
from monochord.testing import check_tuner

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_first_example(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = mc.processor("smollm2")
    texts = ["The capital of France is Paris.", "The capital of Japan is Tokyo."]
    batches = [{**tokenizer([t], return_tensors="pt")} for t in texts]
    batches = [{**b, "labels": b["input_ids"]} for b in batches]
    short = BLOCKS[0].replace("steps=100", "steps=2")
    assert short != BLOCKS[0]
    names: dict = {"batches": batches}
    exec(short, names)
    assert names["acts"]["blocks.3.mlp:out"].shape == (1, 5, 576)
    assert (tmp_path / "my-lora" / "tensors.safetensors").exists()
    assert names["tuned"].n_trainable == 30 * 4 * (576 + 576 + 576 + 192)


def test_the_example_of_a_method() -> None:
    lines = BLOCKS[1]
    names: dict = {"mc": mc, "__name__": "example"}
    exec("from dataclasses import dataclass\n" + lines, names)
    check_tuner(names["OutputScale"], zoo.build("llama"), zoo.batch("llama"))
    with names["OutputScale"]().attach(zoo.build("llama")) as tuned:
        assert tuned.n_trainable == 2 and torch.equal(tuned.trained[0], torch.ones(()))


def test_every_command_of_the_readme_exists() -> None:
    from typer.testing import CliRunner

    from monochord.cli import app

    commands = re.findall(r"^monochord (\w+) ", README, re.M)
    assert {"compare", "methods", "sites", "fetch"} <= set(commands)
    for command in set(commands):
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
