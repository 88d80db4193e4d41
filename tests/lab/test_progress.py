"""Lines of progress in a log file, and what is told of a failed trial."""

import pytest

from monochord.lab.progress import Progress, last_line
from monochord.lab.records import Record


def test_a_log_file_gets_one_line_a_trial(capsys):
    with Progress(3, "comparing", lambda record: f"score {record.result['score']}") as progress:
        progress.ended(Record("a", "first", "done", {}, {"score": 1}), resumed=True)
        progress.running(["second"])
        progress.ended(Record("b", "second", "done", {}, {"score": 2}), resumed=False)
        progress.ended(Record("c", "third", "failed", {}, error="Traceback\nvalue.Error: bad"), resumed=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["[2/3] second: score 2", "[3/3] third: failed: Error: bad"]
    assert (progress.ran, progress.resumed, progress.failed) == (2, 1, 1)


def test_nothing_is_shown_when_asked(capsys):
    with Progress(1, "comparing", shown=False) as progress:
        progress.ended(Record("a", "first", "done", {}, {}), resumed=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("Traceback ...\n  File x\nmonochord.core.pattern.SiteError: 'a.b: c' is bad", "SiteError: 'a.b: c' is bad"),
        ("ValueError: no", "ValueError: no"),
        ("KeyError", "KeyError"),
        ("the process ended early: killed by SIGKILL\nsome log", "the process ended early: killed by SIGKILL"),
        ("stopped after 3 s, its time limit", "stopped after 3 s, its time limit"),
        (None, "no reason given"),
    ],
)
def test_the_reason_of_a_failure(error, line):
    assert last_line(error) == line
