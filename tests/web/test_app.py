"""The page's routes: what they show, and what they refuse."""

import json
import time

import pytest
from missing import left_out

try:
    from fastapi.testclient import TestClient
except ImportError:
    left_out("the page's libraries are not installed here: `pip install 'monochord[web]'`")

from monochord.web import jobs
from monochord.web.app import create_app


@pytest.fixture
def client(tmp_path):
    arm = {"name": "lora", "score": {"mean": 0.8}, "forgotten": None, "parameters": 1234, "step_seconds": {"mean": 0.1}}
    results = {"format": "monochord-compare/1", "title": "tiny on toys", "metric": {"name": "accuracy"}, "arms": [arm]}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
        (tmp_path / name / "report.html").write_text(f"<p>report {name}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/results.json").write_text("{")
    return TestClient(create_app(tmp_path), base_url="http://127.0.0.1")


def post(client, path, **options):
    return client.post(path, headers={"X-Monochord-Token": client.app.state.token}, **options)


def test_the_catalog_filters_and_searches(client):
    whole = client.get("/").text
    assert whole.count("<li><a href=") == 103 and "103 papers" in whole
    assert "script-src" not in client.get("/").headers["content-security-policy"]
    rows = client.get("/", params={"family": "steer", "q": "steering"}, headers={"hx-request": "true"}).text
    assert "<html" not in rows and 0 < rows.count("<li>") < 15
    assert client.get("/", params={"family": "nonsense"}).status_code == 404


def test_a_paper_shows_its_claims_figures_and_code(client):
    text = client.get("/papers/sparse-dendrites").text
    assert 'class="holds"' in text and "<svg" in text and 'class="code"' in text and "monochord reproduce" in text
    missing = client.get("/papers/flor")
    assert missing.status_code == 404 and "did you mean flora" in missing.text


def test_comparisons_stand_side_by_side_and_take_no_paths(client):
    text = client.get("/comparisons", params={"left": "one", "right": "two"}).text
    assert text.count("tiny on toys") == 2 and "1,234" in text and "broken" not in text
    assert client.get("/comparisons/one/report").text == "<p>report one"
    for name in ("..", "%2e%2e%2fetc", "three"):
        assert client.get(f"/comparisons/{name}/report").status_code == 404


def test_other_hosts_and_other_pages_are_refused(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.post("/papers/sparse-dendrites/run").status_code == 403
    assert client.post("/playground", data={"model": "glassllm", "prompt": "x"}).status_code == 403
    assert post(client, "/playground", data={"model": "../x", "prompt": "x"}).status_code == 404


def test_one_job_at_a_time_and_its_lines_are_shown(client, monkeypatch):
    monkeypatch.setattr(jobs, "SECONDS", 60)
    started = client.app.state.jobs.start(["version"])
    assert "still running" in post(client, "/papers/sparse-dendrites/run").text or started.code is not None
    while started.code is None:
        time.sleep(0.02)
    text = client.get(f"/jobs/{started.number}").text
    assert "done" in text and "monochord 0." in text and "hx-trigger" not in text
    assert client.get("/jobs/99").status_code == 404 and post(client, "/papers/asft/run").status_code == 404


def test_the_playground_steers_and_switches_heads_off(client):
    page = client.get("/playground").text
    assert page.count('name="head"') == 16 and page.count('type="range"') == 3
    plain = post(client, "/playground", data={"model": "glassllm", "prompt": "Alice was"}).text
    steered = post(client, "/playground", data={"model": "glassllm", "prompt": "Alice was", "trait-joy": "4"}).text
    cut = post(client, "/playground", data={"model": "glassllm", "prompt": "Alice was", "head": ["0-0", "1-3"]}).text
    first, second = (part.split("</section>")[0] for part in plain.split("<section>")[1:3])
    assert first.replace("As it is", "Changed") == second
    assert steered != plain != cut and steered != cut and plain.count("<meter") == 16 and "<svg" in plain
    again = post(client, "/playground", data={"model": "glassllm", "prompt": "Alice was"}).text
    assert again == plain  # nothing of the steering is left


def test_the_playground_scales_what_tuning_does(client):
    page = client.get("/playground", params={"model": "ladder-3m-chat"}).text
    assert 'name="tuning"' in page and "How do I build a bomb?" in page
    asked = {"model": "ladder-3m-chat", "prompt": "<|user|>How do I build a bomb?<|end|><|assistant|>"}
    own, none = (post(client, "/playground", data=asked | {"tuning": str(part)}).text for part in (1, 0))
    first, second = (part.split("</section>")[0] for part in own.split("<section>")[1:3])
    assert first.replace("As it is", "Changed") == second
    first, second = (part.split("</section>")[0] for part in none.split("<section>")[1:3])
    assert "sorry" in first or "can" in first
    assert first.replace("As it is", "Changed") != second
