"""The other end of the engine: what a trial's own process does."""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection, parent_process
from typing import Any

Result = dict[str, Any]


def find(target: str) -> Callable[..., Result]:
    """The function that `"package.module:function"` names."""
    module, _, name = target.partition(":")
    function: Callable[..., Result] = getattr(importlib.import_module(module), name)
    return function


def call(target: str, arguments: Mapping[str, Any], objects: Mapping[str, Any]) -> Result:
    """Run a trial here: JSON arguments by name, objects that are not JSON as `objects`."""
    function = find(target)
    return function(**arguments, objects=objects) if objects else function(**arguments)


def serve(
    channel: connection.Connection,
    target: str,
    arguments: Mapping[str, Any],
    objects: Mapping[str, Any],
    log: str,
    memory: int | None = None,
) -> None:
    """Run one trial, in at most `memory` bytes, and send `("done", result)` or `("failed", traceback)` back."""
    _settle(log)
    limit(memory)
    try:
        answer: tuple[str, Any] = ("done", call(target, arguments, objects))
    except BaseException as error:
        answer = ("failed", "".join(traceback.format_exception(error)))
    channel.send(answer)
    channel.close()


def limit(memory: int | None) -> None:
    """One thread, and at most so many bytes of data on top of what the process has."""
    if "torch" in sys.modules:  # loaded before the fork
        sys.modules["torch"].set_num_threads(1)
    if memory is None:
        return
    import resource

    with open("/proc/self/statm") as file:
        held = int(file.read().split()[5]) * resource.getpagesize()  # data and stack
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + memory, hard))


def _settle(log: str) -> None:
    """No Ctrl-C of its own, output into `log`, and never outlive the process that asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    faulthandler.enable(file=2)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))


def _follow(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
