"""The report of a made-up comparison: everything is in it, it fits, and it stands alone."""

import copy
import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from monochord.lab.columns import count, number, size
from monochord.lab.figures import overview
from monochord.lab.page import headline, page
from monochord.lab.report import table, write_html, write_json
from monochord.lab.results import add_differences, mean_blocks
from monochord.lab.sample import sample


@pytest.fixture(scope="module")
def html():
    return page(sample())


def text_of(results, width=100):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(table(results))
    return console.file.getvalue()


def test_the_table_fits_100_columns_and_breaks_no_row():
    text = text_of(sample())
    assert max(len(line) for line in text.splitlines()) <= 100
    for arm in sample()["arms"]:
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [arm["name"]]]
        assert f"{100 * arm['score']['mean']:.1f} ±" in line
        assert re.search(r"[01]\.\d{3} *$", line)
    assert "chance: 50.0 % accuracy" in text
    assert "untouched base: 81.0 %" in text


def test_long_names_stay_whole_and_spare_columns_go():
    long = copy.deepcopy(sample())
    long["arms"][0]["name"] = "a-method-of-a-long-name"
    lines = text_of(long).splitlines()
    assert max(map(len, lines)) <= 100 and any(line.startswith("a-method-of-a-long-name ") for line in lines)
    assert "train s" in text_of(sample()) and "train s" not in text_of(long)


class Balance(HTMLParser):
    """Collects tags, ids and addresses, and sees that what opens is closed."""

    void = ("meta", "path", "use", "br", "line", "rect", "image", "!doctype")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        if attrs.get("id"):
            self.ids.append(attrs["id"])
        self.links += [attrs[a] for a in ("href", "src", "xlink:href") if attrs.get(a)]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in self.void:
            return
        if tag in ("th", "td", "tr", "dt", "dd", "li", "p"):
            while self.open[-1] != tag:
                self.open.pop()
        assert self.open.pop() == tag


def test_the_page_stands_alone(html):
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert "script" not in parser.tags
    assert all(link.startswith("#") for link in parser.links)
    ids = set(parser.ids)
    used = {link[1:] for link in parser.links} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= ids
    assert parser.tags.count("svg") == 7


def test_the_page_follows_light_and_dark(html):
    assert "prefers-color-scheme: dark" in html
    assert "var(--ink)" in html and "#010203" not in html and "#040506" not in html
    assert not re.search(r'<svg[^>]* width="', html)  # or it would not shrink


def test_the_page_tells_everything(html):
    made = sample()
    for arm in made["arms"]:
        assert html.count(arm["name"]) >= 4
    for words in (
        "against full",
        "What failed",
        "rank=9999 does not fit",
        "Settings",
        "torch",
        "0.001",
        "chance",
    ):
        assert words in html


def test_the_same_results_give_the_same_page(html):
    assert page(sample()) == html


def test_the_headline_names_the_best_and_the_cheap():
    made = sample()
    assert "<b>hft</b>" in headline(made) and "forgot most" in headline(made)
    made["arms"] = []
    assert headline(made) == "No method finished."
    assert "No method finished" in page(made)


def test_lower_is_better_for_losses():
    made = sample()
    made["metric"] = {"name": "loss", "higher_is_better": False, "percent": False}
    assert "<b>last-layer</b>" in headline(made).split(",")[0]


def test_one_seed_and_no_retention(html):
    made = copy.deepcopy(sample())
    for arm in made["arms"]:
        arm["score"].update(low=None, high=None, n=1)
        arm["forgotten"] = arm["difference"] = None
    made["retention_metric"] = made["retention_base"] = made["retention_task"] = None
    assert "±" not in text_of(made) and "forgotten" not in text_of(made)
    assert page(made).count("<svg") == 6


def test_markup_in_names_is_text():
    made = sample()
    made["title"] = "<script>alert(1)</script>"
    made["arms"][0]["name"] = "a&b<c>[red]$x$"
    assert "<script" not in page(made)
    assert "a&amp;b&lt;c&gt;" in page(made)
    assert "a&b<c>[red]$x$" in text_of(made)


def test_files_are_whole_or_not_there(tmp_path):
    made = sample()
    assert json.loads(write_json(made, tmp_path / "new" / "results.json").read_text()) == made
    write_html(made, tmp_path / "report.html")
    made["chance"] = float("nan")
    before = (tmp_path / "new" / "results.json").read_bytes()
    with pytest.raises(ValueError):
        write_json(made, tmp_path / "new" / "results.json")
    assert (tmp_path / "new" / "results.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "report.html", "results.json"]


def test_differences_are_paired_by_seed():
    arms = sample()["arms"]
    arms[0]["trials"] = [{"seed": 1, "score": 0.5}, {"seed": 9, "score": 0.0}]
    arms[1]["trials"] = [{"seed": s, "score": 0.4 + s / 10} for s in range(3)]
    add_differences(arms[:2], arms[1]["name"])
    assert arms[0]["difference"]["mean"] == pytest.approx(0.0)
    assert arms[0]["difference"]["n"] == 1
    assert arms[1]["difference"] is None


def test_block_means_leave_out_what_is_missing():
    one = {
        "block": "blocks.0",
        "norm": 1.0,
        "rank": None,
        "overlap": None,
        "overlap_chance": None,
        "cka": 0.5,
    }
    two = {**one, "norm": 3.0, "rank": 4.0}
    assert mean_blocks([[one], [two]]) == [{**one, "norm": 2.0, "rank": 4.0}]


@pytest.mark.parametrize(
    ("value", "words"), [(770, "770"), (74_500, "74.5 k"), (10_600_000, "10.6 M"), (2.5e9, "2.5 G"), (0, "0")]
)
def test_counts_read_well(value, words):
    assert count(value) == words
    assert size(value) == words + ("B" if " " in words else " B")


def test_numbers_read_well():
    accuracy = {"name": "accuracy", "higher_is_better": True, "percent": True}
    loss = {"name": "loss", "higher_is_better": False, "percent": False}
    summary = {"mean": 0.7421, "low": 0.7311, "high": 0.7531, "n": 3}
    assert number(summary, accuracy) == "74.2 ± 1.1 %"
    assert number({**summary, "mean": -0.0002}, accuracy, signed=True) == "+0.0 ± 1.1 points"
    assert number({**summary, "low": None}, loss) == "0.742"
    assert number(None, loss) == ""


def test_at_a_glance_the_best_comes_first():
    results = sample()
    figure = overview(results)
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names == [arm["name"] for arm in sorted(results["arms"], key=lambda arm: arm["score"]["mean"])]
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "accuracy, %",
        "trained parameters",
        "memory of training, MB",
        "forgotten, points",
    ]
    for arm in results["arms"]:
        arm["forgotten"] = None
    assert len(overview(results).axes) == 3
    results["metric"]["higher_is_better"] = False
    assert [tick.get_text() for tick in overview(results).axes[0].get_yticklabels()] == names[::-1]
    results["arms"] = []
    assert overview(results) is None
