"""Trials on a Ray cluster: the same functions, each in a process of its own, results into the same store."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from monochord.lab.sending import EngineError
from monochord.lab.store import Store


def run_on_ray(
    engine: str,
    todo: Sequence[Any],
    store: Store,
    watcher: Any,
    *,
    workers: int | None,
    timeout: float | None,
    memory: int | None,
) -> None:
    """Run trials on `"ray"` (a running cluster that `RAY_ADDRESS` names, else this machine), on `"ray:HOST:PORT"` (the
    cluster's own port) or on `"ray://HOST:PORT"` (its client port). `workers` limits how many run at a time.

    Raises `EngineError` when Ray is not installed or the cluster can't be reached.
    """
    ray = _connect(engine)
    remote = ray.remote(num_cpus=1, max_retries=0, max_calls=1)(_work)
    waiting, running = deque(todo), dict[Any, Any]()
    started: dict[Any, float] = {}
    shared = {id(trial.objects): ray.put(dict(trial.objects)) for trial in todo if trial.objects}
    most = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
    try:
        while waiting or running:
            while waiting and len(running) < most:
                trial = waiting.popleft()
                if store.claim(trial.key):
                    objects = shared.get(id(trial.objects), {})
                    reference = remote.options(name=trial.label).remote(
                        trial.target, trial.arguments, objects, timeout, memory
                    )
                    running[reference], started[reference] = trial, time.monotonic()
                elif (record := store.get(trial.key)) is not None:  # another run's
                    watcher.ended(record, True)
            watcher.running([trial.label for trial in running.values()])
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0) if running else ([], [])
            now = time.monotonic()
            deadline = float("inf") if timeout is None else timeout + _GRACE
            late = [r for r in running if r not in ready and now - started[r] > deadline]
            for reference in (*ready, *late):
                trial = running.pop(reference)
                if reference in late:
                    ray.cancel(reference, force=True)
                    store.fail(trial.key, f"stopped after {timeout:g} s, its time limit")
                else:
                    state, value = _answer(ray, reference)
                    store.finish(trial.key, value) if state == "done" else store.fail(trial.key, str(value))
                if (record := store.get(trial.key)) is not None:
                    watcher.ended(record, False)
    finally:
        for reference, trial in running.items():
            ray.cancel(reference, force=True)
            store.release(trial.key)


def _connect(engine: str) -> Any:
    try:
        import ray
    except ImportError:
        raise EngineError("engine 'ray' needs Ray: pip install 'monochord[ray]'") from None
    address = engine if engine.startswith("ray://") else engine.partition(":")[2] or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        return ray
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment = {"env_vars": {**paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}}
    try:
        ray.init(address=address, runtime_env=environment, log_to_driver=False, include_dashboard=False)
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(f"no Ray cluster at {address or 'this machine'}: {said[:160]}") from None
    return ray


_GRACE = 120.0  # seconds for a process to start, and for what can't be interrupted


class _Late(BaseException):
    """Raised inside a trial whose time is over."""


def _work(
    target: str, arguments: Mapping[str, Any], objects: Mapping[str, Any], timeout: float | None, memory: int | None
) -> tuple[str, Any]:
    import signal
    import traceback

    from monochord.lab.worker import call, limit

    def stop(*_: Any) -> None:
        raise _Late

    limit(memory)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, timeout or 0)
    try:
        return "done", call(target, arguments, objects)
    except _Late:
        return "failed", f"stopped after {timeout:g} s, its time limit"
    except BaseException as error:
        return "failed", "".join(traceback.format_exception(error))


def _answer(ray: Any, reference: Any) -> tuple[str, Any]:
    try:
        answer: tuple[str, Any] = ray.get(reference)
        return answer
    except Exception as error:
        return "failed", f"the process ended early: {(str(error).strip().splitlines() or [''])[0]}"
