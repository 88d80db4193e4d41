"""Trials are kept, claimed once, and survive whatever kills the process that ran them."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from monochord.lab import store as stores
from monochord.lab.records import content_key
from monochord.lab.store import Store, StoreError


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "trials.sqlite")


def add(store, key="k", **arguments):
    store.add(key, "package:function", arguments, label=key)


def test_a_trial_goes_from_pending_to_done(store):
    add(store, seed=1)
    assert store.get("k").state == "pending"
    assert store.claim("k")
    assert store.get("k").state == "running"
    store.finish("k", {"score": 0.5})
    record = store.get("k")
    assert (record.state, record.result, record.arguments, record.attempts) == (
        "done",
        {"score": 0.5},
        {"seed": 1},
        1,
    )


def test_a_done_or_running_trial_cant_be_claimed(store):
    add(store)
    assert store.claim("k")
    assert not store.claim("k")
    store.finish("k", {})
    assert not store.claim("k")
    add(store)  # adding it again changes nothing
    assert store.get("k").state == "done"


def test_a_failed_trial_can_be_tried_again(store):
    add(store)
    store.claim("k")
    store.fail("k", "Traceback: no")
    assert store.get("k").error == "Traceback: no"
    assert store.claim("k")
    assert store.get("k").attempts == 2
    assert store.get("k").error is None


def test_numbers_that_json_lacks_become_null(store):
    add(store)
    store.finish("k", {"loss": math.nan, "norms": [1.0, math.inf], "by": {"block": -math.inf}})
    assert store.get("k").result == {"loss": None, "norms": [1.0, None], "by": {"block": None}}


def test_only_the_dead_lose_their_trials(store, monkeypatch):
    add(store, "mine")
    store.claim("mine")
    add(store, "theirs")
    store.owner = stores.owner_name(os.getpid()).rsplit(":", 1)[0] + ":an-earlier-start"
    store.claim("theirs")
    add(store, "far")
    store.owner = "another-machine:1:1"
    store.claim("far")
    assert store.release_dead() == 1
    assert {record.key: record.state for record in store.trials()} == {
        "mine": "running",
        "theirs": "pending",
        "far": "running",
    }


def claim_all(path, keys, queue):
    store = Store(path)
    for key in keys:
        store.add(key, "package:function", {}, label=key)
        if store.claim(key):
            store.finish(key, {"pid": os.getpid()})
            queue.put(key)


def test_concurrent_processes_share_the_work(tmp_path):
    keys = [f"trial-{i}" for i in range(25)]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    workers = [context.Process(target=claim_all, args=(tmp_path / "s.sqlite", keys, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    claimed = [queue.get() for _ in keys]
    assert sorted(claimed) == sorted(keys)
    assert queue.empty()
    assert {record.state for record in Store(tmp_path / "s.sqlite").trials()} == {"done"}


def test_sigkill_loses_nothing_finished(tmp_path):
    path = tmp_path / "s.sqlite"
    script = textwrap.dedent(f"""
        from monochord.lab.store import Store
        store = Store({str(path)!r})
        for i in range(10_000):
            store.add(str(i), "package:function", {{}}, label=str(i))
            store.claim(str(i))
            store.finish(str(i), {{"i": i}})
            print(i, flush=True)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    seen = [int(process.stdout.readline()) for _ in range(12)]
    process.send_signal(signal.SIGKILL)
    seen += [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    store = Store(path)
    store.release_dead()
    done = store.trials(state="done")
    assert [record.result["i"] for record in done][: len(seen)] == seen
    assert len(done) - len(seen) in (0, 1)  # stored and not yet printed
    assert not store.trials(state="running")


def test_runs_keep_settings_and_summary(store):
    store.save_run("r", "compare", {"model": "tiny"})
    store.save_run("r", "compare", {"model": "tiny"}, {"best": math.nan})
    assert store.runs() == [{"key": "r", "kind": "compare", "settings": {"model": "tiny"}, "summary": {"best": None}}]


def test_a_file_that_is_no_store_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database at all, " * 50)
    with pytest.raises(StoreError, match=r"can't open the store .*notes.txt: file is not a database"):
        Store(path)


def test_keys_follow_content():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 1.5})
    with pytest.raises(ValueError):
        content_key({"a": math.nan})
