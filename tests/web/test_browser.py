"""Every page clicked through in a real Chromium, light and dark, wide and narrow."""

import json
import re
import shutil
import threading
import time

import pytest
from missing import left_out

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    try:
        import uvicorn

        from monochord.web.app import create_app
    except ImportError:
        left_out("the page's libraries are not installed here: `pip install 'monochord[web]'`")
    runs = tmp_path_factory.mktemp("runs")
    (runs / "one").mkdir()
    arms = [
        {"name": name, "score": {"mean": score}, "forgotten": None, "parameters": size, "step_seconds": {"mean": 0.1}}
        for name, score, size in (("lora", 0.8, 900), ("full", 0.9, 10_000))
    ]
    results = {"format": "monochord-compare/1", "title": "tiny", "metric": {"name": "accuracy"}, "arms": arms}
    (runs / "one/results.json").write_text(json.dumps(results))
    server = uvicorn.Server(uvicorn.Config(create_app(runs), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        left_out("Playwright is not installed here: `pip install 'monochord[browser]'`")
    if CHROMIUM is None:
        left_out("no Chromium here: `apt-get install chromium`")
    with sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(params=[(1100, "light"), (380, "dark")], ids=["wide", "narrow"])
def page(request, browser):
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    made = context.new_page()
    errors = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield made
    assert not errors
    assert made.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    context.close()


def test_search_and_read_a_paper(page, address):
    page.goto(address)
    page.get_by_role("searchbox").fill("dendrites")
    page.get_by_text("103 papers").wait_for(state="detached")
    page.get_by_role("link", name="How do neurons operate").click()
    assert page.locator(".claims > li").count() >= 5 and page.locator("figure svg").count() == 1
    page.get_by_text("The experiment's code").click()
    assert "SegmentMemory" in page.locator(".code").inner_text()


def test_sort_a_comparison_by_keyboard(page, address):
    page.goto(f"{address}/comparisons")
    heading = page.get_by_role("columnheader", name="trained")
    heading.focus()
    heading.press("Enter")
    assert page.locator("tbody tr th").all_inner_texts() == ["full", "lora"]
    heading.press("Enter")
    assert page.locator("tbody tr th").all_inner_texts() == ["lora", "full"]


def test_steer_in_the_playground(page, address):
    page.goto(f"{address}/playground")
    page.wait_for_selector("#written section")
    before = page.locator("#written").inner_text()
    page.get_by_label("joy").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('#written').innerText !== before", arg=before)
    page.get_by_text("Switch heads off").click()
    with page.expect_response("**/playground"):
        page.get_by_label("block 1, head 2").check()


def test_run_an_experiment_small(page, address, browser):
    page.goto(f"{address}/papers/sparse-dendrites")
    page.get_by_role("button", name="Run it small").click()
    page.locator("#job p").get_by_text(re.compile("^(done|failed)|still running")).wait_for(timeout=90_000)
    assert "done" in page.locator("#job").inner_text()
