"""Commands the page starts: one at a time, for so long, their output kept to be shown."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass, field

MOST, SECONDS, LINES = 1, 600, 200


class Busy(RuntimeError):
    """Another job runs."""


@dataclass
class Job:
    """A command, its last lines, and how it ended (None while it runs)."""

    number: int
    arguments: list[str]
    process: subprocess.Popen[str]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))
    code: int | None = None

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Jobs:
    """Starts commands and remembers them."""

    def __init__(self) -> None:
        self._numbers, self._jobs, self._lock = itertools.count(1), dict[int, Job](), threading.Lock()

    def start(self, arguments: list[str]) -> Job:
        """Run `monochord ARGUMENTS` in a process of its own. Raises `Busy` while another job runs."""
        with self._lock:
            running = [job for job in self._jobs.values() if job.code is None]
            if len(running) >= MOST:
                raise Busy(f"`monochord {' '.join(running[0].arguments)}` is still running: wait for it")
            process = subprocess.Popen(
                [sys.executable, "-m", "monochord.cli", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
            )
            job = Job(next(self._numbers), arguments, process)
            self._jobs[job.number] = job
        threading.Thread(target=self._follow, args=(job,), daemon=True).start()
        return job

    def get(self, number: int) -> Job | None:
        return self._jobs.get(number)

    def _follow(self, job: Job) -> None:
        late = threading.Timer(SECONDS, job.process.kill)
        late.start()
        assert job.process.stdout is not None
        for line in job.process.stdout:
            job.lines.append(line.rstrip())
        job.code = job.process.wait()
        late.cancel()
        if job.code < 0:
            job.lines.append(f"stopped after {SECONDS} s, its time limit")
