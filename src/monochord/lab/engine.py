"""Run trials: each in its own process with one thread, as many at a time as there are cores.

A trial is a module-level function and its JSON arguments. Its result is stored the moment it ends;
one that raises, crashes or takes too long is stored with the reason and the others go on. Ctrl-C or
a kill leaves a store from which the next run takes up the rest.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

from monochord.lab.records import DONE, FAILED, RUNNING, Record, content_key
from monochord.lab.sending import EngineError, hidden_main, needs_script
from monochord.lab.store import Store

ENGINES = ("local", "inline")
PRELOAD = ("torch", "transformers.modeling_utils")  # loaded once, before trials are forked
_LOG_TAIL = 2000  # characters of a crashed trial's output kept with its error


@dataclass(frozen=True)
class Trial:
    """One call of a module-level function: the same key, the same numbers.

    `target` is `"package.module:function"`; `arguments` are JSON and reach it by name. `objects`
    (models, data, anything JSON can't hold) reach it as `objects=`; they are not part of the key, so
    `arguments` must name them by a fingerprint. `code` is a hash of the sources the result depends on.
    """

    target: str
    arguments: dict[str, Any]
    label: str
    code: str = ""
    objects: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def key(self) -> str:
        return content_key(self.target, self.arguments, self.code)


class Watcher(Protocol):
    """Who is told what runs and what has ended; see `progress.py`."""

    def running(self, labels: Sequence[str]) -> None: ...
    def ended(self, record: Record, resumed: bool) -> None: ...


def run(
    trials: Sequence[Trial],
    store: Store,
    *,
    engine: str = "local",
    workers: int | None = None,
    timeout: float | None = None,
    memory: int | None = None,
    watcher: Watcher | None = None,
    preload: Sequence[str] = PRELOAD,
) -> list[Record]:
    """Run what the store has not finished and return the record of every trial, in the order given.

    `engine` is `"local"` (a process each, `workers` at a time, all cores by default), `"inline"` (in this
    process, one after the other, for debugging and for objects that can't be sent) or Ray, as `cluster.py`
    says. `timeout` is in seconds a trial, `memory` in bytes a trial on top of what its process starts with.
    `preload` names modules that trials find already imported.
    Trials that failed in an earlier run are tried again. Raises `EngineError` for an unknown engine
    or objects that can't be sent to another process.
    """
    if engine not in ENGINES and engine != "ray" and not engine.startswith("ray:"):
        raise EngineError(f"unknown engine {engine!r}: choose {', '.join(ENGINES)}, ray or ray://HOST:PORT")
    watcher = watcher or _Nobody()
    unique = {trial.key: trial for trial in trials}
    for key, trial in unique.items():
        store.add(key, trial.target, trial.arguments, label=trial.label, code=trial.code)
    store.release_dead()
    todo: list[Trial] = []
    for record in _in_order(store, unique):
        if record.state == DONE:
            watcher.ended(record, True)
        else:
            todo.append(unique[record.key])
    if todo and engine == "inline":
        _run_inline(todo, store, watcher)
    elif todo and engine.startswith("ray"):
        from monochord.lab.cluster import run_on_ray

        run_on_ray(engine, todo, store, watcher, workers=workers, timeout=timeout, memory=memory)
    elif todo:
        _Local(store, watcher, workers or cores(), timeout, memory, preload).run(todo)
    records = {record.key: record for record in _in_order(store, unique)}
    return [records[trial.key] for trial in trials]


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _in_order(store: Store, unique: Mapping[str, Trial]) -> list[Record]:
    known = {record.key: record for record in store.trials(unique)}
    return [known[key] for key in unique]


def _run_inline(todo: Sequence[Trial], store: Store, watcher: Watcher) -> None:
    from monochord.lab.worker import call

    for trial in todo:
        if not store.claim(trial.key):
            continue
        watcher.running([trial.label])
        try:
            store.finish(trial.key, call(trial.target, trial.arguments, trial.objects))
        except Exception:
            store.fail(trial.key, traceback.format_exc())
        except BaseException:
            store.release(trial.key)
            raise
        _tell(watcher, store, trial.key)


@dataclass
class _Running:
    trial: Trial
    process: Any  # multiprocessing.Process of the chosen context
    channel: connection.Connection
    log: Path
    deadline: float


class _Local:
    """A pool of one process a trial; at most `workers` at a time."""

    def __init__(
        self,
        store: Store,
        watcher: Watcher,
        workers: int,
        timeout: float | None,
        memory: int | None,
        preload: Sequence[str],
    ) -> None:
        self.store, self.watcher, self.workers, self.timeout, self.memory = store, watcher, workers, timeout, memory
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self.context.set_forkserver_preload(["monochord.lab.worker", *preload])
        self.running: dict[connection.Connection, _Running] = {}
        self.needs_main = False
        self.elsewhere: list[Trial] = []  # claimed by another run that shares the store

    def run(self, todo: Sequence[Trial]) -> None:
        waiting = deque(todo)
        self.needs_main = needs_script([dict(trial.objects) for trial in todo])
        with tempfile.TemporaryDirectory(prefix="monochord-") as folder:
            try:
                while waiting or self.running or self.elsewhere:
                    while waiting and len(self.running) < self.workers:
                        self._start(waiting.popleft(), Path(folder))
                    self._collect()
                    self._revisit(waiting)
            finally:
                for entry in self.running.values():
                    entry.process.kill()
                    entry.process.join()
                    self.store.release(entry.trial.key)

    def _start(self, trial: Trial, folder: Path) -> None:
        from monochord.lab.worker import serve

        if not self.store.claim(trial.key):
            self.elsewhere.append(trial)
            return
        here, there = self.context.Pipe(duplex=False)
        log = folder / f"{trial.key[:16]}.log"
        process = self.context.Process(
            target=serve,
            args=(there, trial.target, trial.arguments, dict(trial.objects), str(log), self.memory),
            daemon=True,
        )
        try:
            with contextlib.nullcontext() if self.needs_main else hidden_main():
                process.start()
        except BaseException:
            self.store.release(trial.key)
            raise
        there.close()
        deadline = time.monotonic() + (self.timeout or float("inf"))
        self.running[here] = _Running(trial, process, here, log, deadline)
        self._show()

    def _collect(self) -> None:
        """Wait a moment and store what has ended."""
        if not self.running:
            time.sleep(0.5)
        for channel in connection.wait(list(self.running), timeout=0.5) if self.running else ():
            self._end(self.running[channel])  # type: ignore[index]
        now = time.monotonic()
        for entry in [entry for entry in self.running.values() if entry.deadline < now]:
            entry.process.kill()
            self._end(entry, f"stopped after {self.timeout:g} s, its time limit")

    def _end(self, entry: _Running, reason: Any = None) -> None:
        key = entry.trial.key
        state, value = "failed", reason
        if reason is None:
            try:
                state, value = entry.channel.recv()
            except EOFError:
                entry.process.join()
                value = f"the process ended early: {_exit_reason(entry.process.exitcode)}"
                if self.needs_main and entry.process.exitcode == 1:
                    value += " (does the script call under `if __name__ == '__main__':`?)"
                value += _tail(entry.log)
        if state == "done":
            self.store.finish(key, value)
        else:
            self.store.fail(key, str(value))
        del self.running[entry.channel]
        entry.channel.close()
        entry.process.join(5)
        entry.process.kill()
        _tell(self.watcher, self.store, key)
        self._show()

    def _revisit(self, waiting: deque[Trial]) -> None:
        """See how the trials of another run are doing; take those it gave up."""
        if not self.elsewhere:
            return
        self.store.release_dead()
        for trial in list(self.elsewhere):
            record = self.store.get(trial.key)
            if record is not None and record.state == RUNNING:
                continue
            self.elsewhere.remove(trial)
            if record is not None and record.state in (DONE, FAILED):
                self.watcher.ended(record, True)
            else:
                waiting.append(trial)

    def _show(self) -> None:
        self.watcher.running([entry.trial.label for entry in self.running.values()])


class _Nobody:
    def running(self, labels: Sequence[str]) -> None: ...
    def ended(self, record: Record, resumed: bool) -> None: ...


def _tell(watcher: Watcher, store: Store, key: str) -> None:
    record = store.get(key)
    if record is not None:
        watcher.ended(record, False)


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    text = "\n".join(line for line in lines if not line.startswith("Extension modules:")).strip()
    return f"\n{text[-_LOG_TAIL:]}" if text else ""
