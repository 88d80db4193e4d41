"""Every experiment runs from end to end at its smallest scale, and what is exact holds there."""

import pytest

from monochord.lab import repertoire
from monochord.lab.reproduce import load, reproduce

WRITTEN = [e.slug for e in repertoire.repertoire() if repertoire.has_experiment(e.slug)]


@pytest.mark.parametrize("slug", WRITTEN)
def test_runs_small(slug, tmp_path):
    result = reproduce(
        slug, scale="smoke", engine="inline", store=tmp_path / "s.sqlite", out=tmp_path / "out", progress=False
    )
    assert not result["failures"]
    for claim in result["claims"]:
        assert "error" not in claim, claim
        assert claim["holds"] or not claim["exact"], claim
    assert all("file" in figure for figure in result["figures"])


@pytest.mark.parametrize("slug", WRITTEN)
def test_has_a_claim_in_one_line_and_three_seeds(slug):
    paper = load(slug)
    assert 20 < len(paper.summary) < 200 and len(paper.seeds) >= 3


def test_results_were_made_by_the_code_that_is_there():
    stale = [e.slug for e in repertoire.repertoire() if e.verdict == "stale"]
    assert not stale, f"run again: monochord reproduce {' '.join(stale)}"
    assert {e.slug for e in repertoire.repertoire() if e.result} <= set(WRITTEN)
    for e in repertoire.repertoire():
        assert e.result is None or (e.result["scale"] == "full" and len(e.result["seeds"]) >= 3)
