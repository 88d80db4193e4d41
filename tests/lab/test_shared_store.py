"""One store for several processes, on SQLite and on a real PostgreSQL: nothing is lost, nothing runs twice."""

import multiprocessing
import os
import random
import signal
import time

import pytest
from sqlalchemy import create_engine, inspect, text

from monochord.lab.migrations import HEAD
from monochord.lab.store import Base, Store, StoreError

FORK = multiprocessing.get_context("fork")


def work(url, keys, log):
    """Claim and finish what can be claimed; a line in `log` for each trial that is finished."""
    store = Store(url)
    for key in keys or [record.key for record in store.trials(state="pending")]:
        if store.claim(key):
            time.sleep(0.002)
            store.finish(key, {"key": key})
            with open(log, "a") as file:
                file.write(key + "\n")


def test_four_writers_lose_nothing(url, tmp_path):
    keys = [f"trial-{i}" for i in range(80)]
    store = Store(url)
    for key in keys:
        store.add(key, "package:function", {}, label=key)
    store.close()
    workers = [FORK.Process(target=work, args=(url, keys, tmp_path / "log")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted((tmp_path / "log").read_text().split()) == sorted(keys)
    assert {record.result["key"] for record in Store(url).trials(state="done")} == set(keys)


def test_fifty_kills_lose_nothing_finished_and_repeat_nothing(url, tmp_path):
    keys = [f"trial-{i}" for i in range(600)]
    store, rng = Store(url), random.Random(0)
    for key in keys:
        store.add(key, "package:function", {}, label=key)
    log = tmp_path / "log"
    log.touch()
    store.close()  # a forked process must not share the connection
    for _ in range(50):
        worker = FORK.Process(target=work, args=(url, (), log))
        before = log.stat().st_size
        worker.start()
        while log.stat().st_size == before and worker.is_alive():
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        again = Store(url)
        again.release_dead()
        assert not again.trials(state="running")
        again.close()
    finished = log.read_text().split()
    assert len(finished) >= 50 and len(set(finished)) == len(finished)
    done = {record.key for record in Store(url).trials(state="done")}
    assert set(finished) <= done and len(done) - len(finished) <= 50  # stored and not yet told, at most one a kill


def test_an_older_store_is_brought_up_to_date_and_keeps_its_rows(url):
    store = Store(url)
    store.add("k", "package:function", {"x": 1}, label="k")
    store.close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    assert Store(url).get("k").arguments == {"x": 1}
    with engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="of a newer monochord"):
        Store(url)


def test_migrations_make_what_the_tables_say(url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from monochord.lab.migrations import upgrade

    engine = create_engine(url)
    with engine.begin() as connection:
        upgrade(connection)
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
        assert not [change for change in found if change[0] != "remove_table"]
        assert set(inspect(connection).get_table_names()) >= set(Base.metadata.tables)


def test_a_server_that_is_not_there_is_told_without_its_password():
    with pytest.raises(StoreError, match=r"can't open the store postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/x"):
        Store("postgresql+psycopg://me:secret@127.0.0.1:1/x")
