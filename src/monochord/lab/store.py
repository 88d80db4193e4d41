"""Where trials are kept: one row a trial, found by the hash of what it computes.

A trial moves from pending to running to done or failed. A result is written the moment its trial
ends and a done trial is never claimed again, so a run that is killed goes on where it was. SQLite by
default (write-ahead log: a kill at any point leaves a readable file), any SQLAlchemy URL for a team.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    DateTime,
    Engine,
    String,
    Text,
    create_engine,
    event,
    inspect,
    make_url,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateIndex, CreateTable

from monochord.lab.migrations import HEAD, upgrade
from monochord.lab.records import DONE, FAILED, PENDING, RUNNING, Record, finite


class StoreError(RuntimeError):
    """The store can't be opened or holds something else."""


class Base(DeclarativeBase):
    """The tables of this file."""


class TrialRow(Base):
    """One trial: what it computes (`target`, `arguments`, `code`), how far it is, what came out."""

    __tablename__ = "trials"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)  # sha256 of target, arguments and code
    target: Mapped[str] = mapped_column(String(200))  # "package.module:function"
    label: Mapped[str] = mapped_column(String(200))  # for people
    arguments: Mapped[dict[str, Any]] = mapped_column(JSON)
    code: Mapped[str] = mapped_column(String(64))  # hash of the sources the result depends on
    state: Mapped[str] = mapped_column(String(8), default=PENDING, index=True)
    owner: Mapped[str | None] = mapped_column(String(200))  # "host:pid:start" of the process that claimed it
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[str | None] = mapped_column(Text)  # traceback of a failed trial
    attempts: Mapped[int] = mapped_column(default=0)
    created: Mapped[datetime] = mapped_column(DateTime)
    finished: Mapped[datetime | None] = mapped_column(DateTime)


class RunRow(Base):
    """One run: its settings and, once it is complete, its summary."""

    __tablename__ = "runs"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(40))  # "compare"
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    summary: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created: Mapped[datetime] = mapped_column(DateTime)
    finished: Mapped[datetime | None] = mapped_column(DateTime)


class Store:
    """Runs and trials behind one SQLAlchemy URL or one SQLite path.

    Several processes may share a store: claiming a trial is one conditional update, so two of them
    never run the same one. Raises `StoreError` when the database can't be opened.
    """

    def __init__(self, where: str | Path) -> None:
        url = str(where)
        if "://" not in url:
            Path(url).parent.mkdir(parents=True, exist_ok=True)
            url = f"sqlite:///{url}"
        self.url = url
        self.owner = owner_name(os.getpid())
        self._engine = _open(url)

    def add(self, key: str, target: str, arguments: Mapping[str, Any], *, label: str, code: str = "") -> None:
        """Know of a trial; one that is already known stays as it is."""
        row = TrialRow(key=key, target=target, label=label, arguments=dict(arguments), code=code, created=_now())
        with contextlib.suppress(IntegrityError), Session(self._engine) as session, session.begin():
            if session.get(TrialRow, key) is None:
                session.add(row)  # another process may add it in between: then theirs stays

    def claim(self, key: str) -> bool:
        """Make a pending or failed trial this process's to run; False when it is done or someone else's."""
        statement = (
            update(TrialRow)
            .where(TrialRow.key == key, or_(TrialRow.state == PENDING, TrialRow.state == FAILED))
            .values(state=RUNNING, owner=self.owner, error=None, attempts=TrialRow.attempts + 1)
        )
        with Session(self._engine) as session, session.begin():
            return bool(session.execute(statement).rowcount)  # type: ignore[attr-defined]

    def finish(self, key: str, result: Mapping[str, Any]) -> None:
        """Store a result; on disk when this returns. Numbers that are not finite become null."""
        self._set(key, state=DONE, result=finite(result), error=None, finished=_now())

    def fail(self, key: str, error: str) -> None:
        """Store the traceback of a trial that ended without a result."""
        self._set(key, state=FAILED, error=error, finished=_now())

    def release(self, key: str) -> None:
        """Give a trial back that was claimed and not finished."""
        with Session(self._engine) as session, session.begin():
            session.execute(
                update(TrialRow).where(TrialRow.key == key, TrialRow.state == RUNNING).values(state=PENDING, owner=None)
            )

    def release_dead(self) -> int:
        """Give back the trials of this machine's processes that are no more; how many there were."""
        with Session(self._engine) as session:
            rows = session.execute(select(TrialRow.key, TrialRow.owner).where(TrialRow.state == RUNNING)).all()
        dead = [key for key, owner in rows if owner and not is_alive(owner)]
        for key in dead:
            self.release(key)
        return len(dead)

    def get(self, key: str) -> Record | None:
        """The trial with this key, or None."""
        with Session(self._engine) as session:
            row = session.get(TrialRow, key)
            return None if row is None else _record(row)

    def trials(self, keys: Iterable[str] | None = None, state: str | None = None) -> list[Record]:
        """Trials in the order they were added; only those of `keys` or in `state` when given."""
        statement = select(TrialRow).order_by(TrialRow.created)
        if state is not None:
            statement = statement.where(TrialRow.state == state)
        wanted = None if keys is None else set(keys)
        with Session(self._engine) as session:
            rows = session.scalars(statement).all()
            return [_record(row) for row in rows if wanted is None or row.key in wanted]

    def save_run(
        self, key: str, kind: str, settings: Mapping[str, Any], summary: Mapping[str, Any] | None = None
    ) -> None:
        """Write a run's settings and, when it is complete, its summary."""
        with Session(self._engine) as session, session.begin():
            row = session.get(RunRow, key)
            if row is None:
                row = RunRow(key=key, kind=kind, settings=dict(settings), created=_now())
                session.add(row)
            if summary is not None:
                row.summary, row.finished = finite(summary), _now()

    def runs(self) -> list[dict[str, Any]]:
        """Every run as a dictionary, oldest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(RunRow).order_by(RunRow.created)).all()
            return [{"key": r.key, "kind": r.kind, "settings": r.settings, "summary": r.summary} for r in rows]

    def close(self) -> None:
        self._engine.dispose()

    def _set(self, key: str, **values: Any) -> None:
        with Session(self._engine) as session, session.begin():
            session.execute(update(TrialRow).where(TrialRow.key == key).values(**values))


def owner_name(pid: int) -> str:
    """`host:pid:start`; the start time tells a process from a later one with the same number."""
    return f"{socket.gethostname()}:{pid}:{_start_time(pid)}"


def is_alive(owner: str) -> bool:
    """Whether the process behind `owner_name` may still run; always True for another machine's."""
    host, pid, start = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return True
    return _start_time(int(pid)) == start


def _start_time(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rsplit(")", 1)[1].split()[19]
    except OSError:
        pass
    if os.path.isdir("/proc/self"):
        return "gone"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except OSError:
        pass
    return "unknown"


def _open(url: str) -> Engine:
    try:
        engine = create_engine(url, connect_args={"timeout": 30} if url.startswith("sqlite") else {})
        if url.startswith("sqlite"):
            event.listen(engine, "connect", _tune_sqlite)
        with engine.begin() as connection:
            _bring_up_to_date(connection)
    except (SQLAlchemyError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise StoreError(f"can't open the store {_without_password(url)}: {reason}") from None
    return engine


def _bring_up_to_date(connection: Connection) -> None:
    """Make the tables of a new store; migrate those of an older one. One process at a time does it."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(6030103)"))  # until the transaction ends
    elif connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    there = set(inspect(connection).get_table_names())
    if not there & set(Base.metadata.tables):
        for table in Base.metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(CreateIndex(index, if_not_exists=True))
        connection.execute(text("CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
        connection.execute(text(_STAMP), {"head": HEAD})
        return
    numbered = "alembic_version" in there
    version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar() if numbered else None
    if version is None or version < HEAD:
        upgrade(connection)
    elif version > HEAD:
        raise StoreError(
            f"the store is of a newer monochord (schema {version}, this one knows {HEAD}): update monochord"
        )


_STAMP = """INSERT INTO alembic_version (version_num)
SELECT :head WHERE NOT EXISTS (SELECT 1 FROM alembic_version)"""


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return url


def _tune_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # a finished trial outlives a power cut too
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


def _record(row: TrialRow) -> Record:
    return Record(row.key, row.label, row.state, row.arguments, row.result, row.error, row.attempts)


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(tzinfo=None)
