"""Papers as experiments: declared, run, decided, written, read back."""

import gc
import json
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from monochord.core.catalog import CatalogError
from monochord.lab import repertoire
from monochord.lab import reproduce as reproducing
from monochord.lab.evidence import Evidence
from monochord.lab.paper import Paper, PaperError, Trial, plain
from monochord.lab.statistics import paired_effect, permutation_p

EXPERIMENT = '''
"""What it shows."""
from monochord.lab.paper import Paper

paper = Paper("flora", "in one line", uses=["monochord.adapt.lora"], chance={"accuracy": 0.5}, seeds=(0, 1, 2))

@paper.arm("ours")
def ours(trial):
    if trial.seed == 13:
        raise RuntimeError("unlucky")
    return {"accuracy": 0.9 + 0.01 * trial.seed, "curve": [1, 2, trial.pick(smoke=3, full=4)]}

@paper.arm("shuffled", role="control")
def shuffled(trial):
    return {"accuracy": 0.5}

@paper.arm("identity", seeded=False)
def identity(trial):
    return {"error": 0.0}

@paper.claim("ours beats the control")
def _(e):
    return e.wins("ours", "shuffled", "accuracy", by=0.1) == len(e["ours"].accuracy)

@paper.claim("ours is perfect")
def _(e):
    return e["ours"].accuracy.mean > 0.99

@paper.claim("zero is zero", exact=True)
def _(e):
    return e["identity"].error.max == 0

@paper.figure("a curve")
def _(e, axes):
    axes.plot(e["ours"].curve.mean)
'''


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    (tmp_path / "made_up_experiment.py").write_text(textwrap.dedent(EXPERIMENT))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reproducing, "module_of", lambda slug: "made_up_experiment")
    monkeypatch.setattr(reproducing, "source_hash", lambda module, uses: "abc")
    monkeypatch.setattr(reproducing, "file_hashes", lambda module, uses: {"x": "1"})
    yield tmp_path
    sys.modules.pop("made_up_experiment", None)


def run(folder, **options):
    options = {"engine": "inline", "progress": False, "store": folder / "s.sqlite", "out": folder / "out"} | options
    return reproducing.reproduce("flora", **options)


def test_claims_are_decided_with_the_figures_they_looked_at(experiment):
    result = run(experiment)
    assert [claim["holds"] for claim in result["claims"]] == [True, False, True] and result["verdict"] == "partly"
    ours, control = result["claims"][0]["measured"]
    assert (ours["arm"], ours["metric"], ours["n"]) == ("ours", "accuracy", 3) and ours["mean"] == pytest.approx(0.91)
    assert control["mean"] == 0.5 and ours["low"] < 0.91 < ours["high"]
    assert len(result["arms"]["identity"]["trials"]) == 1  # an invariant is measured once
    written = json.loads((experiment / "out/flora.json").read_text())
    assert written == result and written["source"] == "abc" and written["versions"]["torch"]
    assert (experiment / "out/figures/flora-1.svg").read_text().startswith("<svg")


def test_finished_trials_are_not_run_again_and_failed_ones_are_told(experiment, capsys):
    run(experiment, seeds=(0, 1))
    result = run(experiment, seeds=(0, 1, 13), progress=True)
    assert result["failures"] == [{"arm": "ours", "seed": 13, "reason": "RuntimeError: unlucky"}]
    ran = capsys.readouterr().err
    assert "seed 13" in ran and "seed 0" not in ran
    assert result["claims"][0]["holds"]  # of the seeds there are


def test_a_smoke_run_takes_one_seed_and_the_small_choice(experiment):
    result = run(experiment, scale="smoke")
    assert result["seeds"] == [0] and result["arms"]["ours"]["trials"][0]["metrics"]["curve"] == [1, 2, 3]
    with pytest.raises(PaperError, match="unknown scale 'huge': use smoke or full"):
        run(experiment, scale="huge")


def test_figures_are_drawn_again_without_measuring(experiment, monkeypatch):
    with pytest.raises(PaperError, match=r"flora has no result in .* to draw: `monochord reproduce flora` makes one"):
        reproducing.redraw("flora", out=experiment / "out")
    result = run(experiment)
    drawn = experiment / "out/figures/flora-1.svg"
    before = drawn.read_text()
    drawn.unlink()
    monkeypatch.setattr(reproducing, "run", None)
    assert reproducing.redraw("flora", out=experiment / "out") == result
    assert drawn.read_text() == before
    monkeypatch.setattr(reproducing, "source_hash", lambda module, uses: "changed")
    with pytest.raises(PaperError, match="flora was measured with other code"):
        reproducing.redraw("flora", out=experiment / "out")


def test_evidence_pairs_by_seed():
    def trials(seeds, values):
        return [{"seed": s, "metrics": {"m": v}} for s, v in zip(seeds, values, strict=True)]

    evidence = Evidence({"a": trials([0, 1, 2], [3, 4, 5]), "b": trials([2, 1], [1, 2])}, {})
    assert evidence.difference("a", "b", "m").mean == 3 and evidence.wins("a", "b", "m", by=2) == 1
    assert evidence["a"].m.mean == 4 and (evidence["a"].m.min, evidence["a"].m.max) == (3, 5)
    with pytest.raises(PaperError, match="a has no metric 'x': it has m"):
        _ = evidence["a"].x
    with pytest.raises(PaperError, match="no arm 'c': there are a, b"):
        _ = evidence["c"]


def test_a_paper_without_control_or_claim_is_refused():
    paper = Paper("x")
    with pytest.raises(PaperError, match="no arm has the role of the method"):
        paper.check()
    paper.arm("a")(lambda trial: {})
    with pytest.raises(PaperError, match="no claim"):
        paper.check()
    paper.claim("c")(lambda e: True)
    with pytest.raises(PaperError, match="declare a control arm, or chance="):
        paper.check()
    paper.arm("b", role="control")(lambda trial: {})
    paper.check()
    with pytest.raises(PaperError, match="the arm 'a' is there twice"):
        paper.arm("a")
    with pytest.raises(PaperError, match="unknown role 'boss'"):
        paper.arm("z", role="boss")


def test_numbers_of_libraries_become_plain():
    import torch

    assert plain(torch.tensor(2)) == 2.0 and plain([np.float32(1), torch.ones(2)]) == [1.0, [1.0, 1.0]]
    assert Trial(0, "smoke").pick(smoke=1, full=2) == 1


def test_effect_and_permutation():
    first, second = [2.0, 3.0, 5.0], [1.0, 2.5, 3.0]
    assert paired_effect(first, second) == pytest.approx(np.mean([1, 0.5, 2]) / np.std([1, 0.5, 2], ddof=1))
    assert permutation_p([1, 2, 3], [11, 12, 13]) == pytest.approx(0.1)  # 2 of 20 relabellings
    assert permutation_p(first, second, paired=True) == pytest.approx(0.25)  # 2 of 8 signs


# The repertoire


def test_there_are_103_papers_and_none_without_a_claim():
    entries = repertoire.repertoire()
    assert len({entry.slug for entry in entries}) == 103 and all(len(entry.claim) > 15 for entry in entries)
    assert {entry.verdict for entry in entries} <= set(repertoire.VERDICTS)
    assert {e.family for e in repertoire.repertoire(family="adapt")} == {"adapt"}
    with pytest.raises(CatalogError, match="unknown paper 'flor': did you mean flora"):
        repertoire.entry("flor")
    with pytest.raises(CatalogError, match="unknown family 'adapter': did you mean adapt"):
        repertoire.repertoire(family="adapter")


def slugs(query):
    return [entry.slug for entry in repertoire.search(query, repertoire.repertoire())]


def test_search_finds_by_words(monkeypatch):
    monkeypatch.setattr(repertoire, "_closeness", lambda query, entries: {})
    assert slugs("zeroth-order fine-tuning forward passes")[0] == "mezo"
    assert slugs("zzzz") == []


def test_search_finds_by_meaning(monkeypatch):
    from monochord import models

    models.fetch("wordllama", progress=False)
    monkeypatch.setattr(repertoire, "_shared_words", lambda query, entries: {})
    assert "mindeye" in slugs("turning brain scans into pictures")[:3]
    assert "power-law-rehearsal" in slugs("remember old tasks while learning new ones")[:3]
    assert slugs("neurons in the retina adapt to contrast")[0] == "gain-control"


def test_the_source_hash_minds_code_and_not_comments(tmp_path, monkeypatch):
    (tmp_path / "adapt").mkdir()
    (tmp_path / "adapt/a.py").write_text('"""A."""\nfrom monochord.adapt.b import f\nx = 1\n')
    (tmp_path / "adapt/b.py").write_text("def f():\n    return 1\n")
    monkeypatch.setattr(
        repertoire,
        "_path",
        lambda m: p if (p := tmp_path / (m.replace("monochord.", "", 1).replace(".", "/") + ".py")).exists() else None,
    )
    first = repertoire.source_hash("monochord.adapt.a")
    (tmp_path / "adapt/a.py").write_text('"""Another."""\n\nfrom monochord.adapt.b import f  # why\nx = 1\n')
    assert repertoire.source_hash("monochord.adapt.a") == first
    (tmp_path / "adapt/b.py").write_text("def f():\n    return 2\n")
    assert repertoire.source_hash("monochord.adapt.a") != first


def test_the_source_hash_minds_where_a_name_comes_from_and_not_what_else_a_package_passes_on(tmp_path, monkeypatch):
    package, other = tmp_path / "adapt/__init__.py", tmp_path / "adapt/other.py"
    package.parent.mkdir()
    package.write_text("from monochord.adapt.b import f as g\n")
    (tmp_path / "adapt/b.py").write_text("def f():\n    return 1\n")
    other.write_text("x = 1\n")
    (tmp_path / "paper.py").write_text("from monochord.adapt import g\n")
    there = {"monochord.paper": tmp_path / "paper.py", "monochord.adapt": package, "monochord.adapt.other": other}
    there["monochord.adapt.b"] = tmp_path / "adapt/b.py"
    monkeypatch.setattr(repertoire, "_path", there.get)
    first = repertoire.source_hash("monochord.paper")
    assert set(repertoire.file_hashes("monochord.paper")) == {"monochord.paper", "monochord.adapt.b"}
    package.write_text("from monochord.adapt.b import f as g\nfrom monochord.adapt.other import x\n")
    other.write_text("x = 2\n")
    assert repertoire.source_hash("monochord.paper") == first
    there["monochord.adapt.b"].write_text("def f():\n    return 2\n")
    assert repertoire.source_hash("monochord.paper") != first


def test_the_source_hash_minds_the_shipped_nets_that_are_named(tmp_path, monkeypatch):
    (tmp_path / "nets/ladder").mkdir(parents=True)
    (tmp_path / "nets/ladder/step-1.safetensors").write_bytes(b"one")
    (tmp_path / "paper.py").write_text("model = load('ladder')\n")
    monkeypatch.setattr(repertoire, "SHIPPED", tmp_path / "nets")
    monkeypatch.setattr(repertoire, "_path", lambda m: tmp_path / "paper.py" if m == "monochord.papers.a" else None)
    first, files = repertoire.source_hash("monochord.papers.a"), repertoire.file_hashes("monochord.papers.a")
    (tmp_path / "nets/other").mkdir()
    assert repertoire.source_hash("monochord.papers.a") == first and set(files) == {"monochord.papers.a", "ladder"}
    (tmp_path / "nets/ladder/step-1.safetensors").write_bytes(b"two")
    assert repertoire.source_hash("monochord.papers.a") != first
    assert repertoire.file_hashes("monochord.papers.a")["ladder"] != files["ladder"]


def test_several_threads_read_sources_at_once():
    """Python 3.11 fails when a thread makes a syntax tree while collecting garbage let another one begin."""
    gc.callbacks.append(lambda phase, info: sum(range(50)))
    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(100)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            hashes = list(pool.map(repertoire.source_hash, ["monochord.lab.figures"] * 8))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*before)
        gc.callbacks.pop()
    assert len(set(hashes)) == 1


def test_a_result_is_stale_when_code_changed_and_not_when_words_did(tmp_path, monkeypatch):
    (tmp_path / "papers").mkdir()
    file = tmp_path / "papers/flora.py"
    file.write_text("paper = Paper('flora')\n")
    monkeypatch.setattr(repertoire, "_path", lambda m: file if m == "monochord.papers.flora" else None)
    monkeypatch.setattr(repertoire, "results_folder", lambda: tmp_path)
    module = "monochord.papers.flora"
    made = {"source": repertoire.source_hash(module), "files": repertoire.file_hashes(module), "verdict": "works"}
    (tmp_path / "flora.json").write_text(json.dumps({**made, "summary": ""}))
    assert repertoire.entry("flora").verdict == "works"
    drawn = "\n@paper.figure('bars')\ndef _(e, axes):\n    axes.bar()\n"
    for text in ("paper = Paper('flora')  # as before\n", "paper = Paper('flora')\n" + drawn):
        file.write_text(text)
        assert repertoire.entry("flora").verdict == "works"
    file.write_text("paper = Paper('flora', timeout=3)\n")
    assert repertoire.entry("flora").verdict == "stale"
