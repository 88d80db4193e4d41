"""Trials run in processes of their own, once, and whatever happens to one the others go on."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from monochord.lab import engine as engines
from monochord.lab.engine import EngineError, Trial
from monochord.lab.store import Store

HERE = "engine_trials"
FOLDER = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def find_trials(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


def run(trials, store, **options):
    return engines.run(trials, store, preload=(), **options)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "trials.sqlite")


class Notes:
    """A watcher that remembers."""

    def __init__(self):
        self.together, self.ends = [], []

    def running(self, labels):
        self.together.append(tuple(labels))

    def ended(self, record, resumed):
        self.ends.append((record.label, record.state, resumed))


def trial(name, label=None, objects=None, **arguments):
    return Trial(f"{HERE}:{name}", arguments, label or f"{name} {arguments}", objects=objects or {})


@pytest.mark.parametrize("engine", ["local", "inline"])
def test_results_come_back_in_order(store, engine):
    records = run([trial("double", number=n) for n in (3, 1, 2)], store, engine=engine, workers=2)
    assert [record.result["value"] for record in records] == [6, 2, 4]
    own = {record.result["pid"] for record in records}
    assert own == {os.getpid()} if engine == "inline" else os.getpid() not in own and len(own) == 3


def test_nothing_runs_twice(store, tmp_path):
    log = str(tmp_path / "log")
    trials = [trial("double", number=n, log=log) for n in (1, 2, 1)]
    run(trials[:1], store, workers=1)
    notes = Notes()
    run(trials, store, workers=2, watcher=notes)
    run(trials, store, workers=2)
    assert sorted((tmp_path / "log").read_text().split()) == ["1", "2"]
    assert sorted(resumed for *_, resumed in notes.ends) == [False, True]


def test_a_failing_and_a_crashing_trial_are_recorded(store):
    trials = [
        trial("crash", words="last words"),
        trial("fail", message="no such thing"),
        trial("double", number=5),
    ]
    crashed, failed, fine = run(trials, store, workers=2)
    assert crashed.state == failed.state == "failed"
    assert "killed by SIGSEGV" in crashed.error and "last words" in crashed.error
    assert "ValueError: no such thing" in failed.error and "Traceback" in failed.error
    assert fine.result["value"] == 10


def test_a_trial_that_takes_too_long_is_stopped(store):
    slow, quick = run([trial("sleep", seconds=60), trial("double", number=1)], store, workers=2, timeout=0.5)
    assert slow.state == "failed" and slow.error == "stopped after 0.5 s, its time limit"
    assert quick.result["value"] == 2


def test_a_failed_trial_is_tried_again_by_the_next_run(store, tmp_path):
    bad = trial("fail", message="x")
    run([bad], store, engine="inline")
    (again,) = run([bad], store, engine="inline")
    assert again.attempts == 2


def test_every_trial_has_one_thread(store):
    (record,) = run([trial("threads")], store, workers=1)
    assert record.result == {"threads": 1}


def test_two_run_together_and_no_more(store):
    notes = Notes()
    run([trial("double", label=str(n), number=n) for n in range(4)], store, workers=2, watcher=notes)
    assert max(len(labels) for labels in notes.together) == 2


def test_objects_reach_the_trial(store):
    objects = {"numbers": [1, 2, 3], "scaler": abs}
    (record,) = run([trial("total", objects=objects)], store, workers=1)
    assert record.result == {"total": 6.0, "scale": 3}


def test_objects_that_cant_be_sent_are_refused_at_once(store):
    bad = trial("total", objects={"numbers": [1], "scaler": lambda x: x})
    with pytest.raises(EngineError, match="use engine='inline'"):
        run([bad], store)
    (record,) = run([bad], store, engine="inline")
    assert record.result["scale"] == 3


def test_unknown_engine_is_named(store):
    with pytest.raises(EngineError, match="unknown engine 'cloud': choose local, inline, ray or ray://HOST:PORT"):
        run([], store, engine="cloud")


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(tmp_path, how):
    log, mark, path = str(tmp_path / "log"), tmp_path / "mark", tmp_path / "s.sqlite"
    script = textwrap.dedent(f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        sys.path.insert(0, {FOLDER!r})
        from monochord.lab.engine import Trial, run
        from monochord.lab.store import Store
        quick = Trial("{HERE}:double", {{"number": 1, "log": {log!r}}}, "quick")
        slow = Trial("{HERE}:sleep", {{"seconds": 300, "log": {str(mark)!r}}}, "slow")
        run([quick, slow], Store({str(path)!r}), workers=1, preload=())
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    wait_for(mark.exists)
    process.send_signal(how)
    process.wait()
    store = Store(path)
    store.release_dead()
    assert {record.label: record.state for record in store.trials()} == {"quick": "done", "slow": "pending"}
    quick = trial("double", label="quick", number=1, log=log)
    (record,) = run([quick], store, workers=1)
    assert record.result["value"] == 2
    assert (tmp_path / "log").read_text() == "1\n"


def test_a_trial_may_have_so_much_memory(tmp_path):
    small, large = run(
        [trial("hungry", mib=10), trial("hungry", mib=900)], Store(tmp_path / "s.sqlite"), memory=400 << 20
    )
    assert small.result == {"mib": 10} and "MemoryError" in large.error
