"""Functions that the engine's tests run as trials."""

import os
import signal
import time
from pathlib import Path


def double(number, log=None):
    """Twice the number; one line in `log` for each time it really ran."""
    if log:
        with open(log, "a") as handle:
            handle.write(f"{number}\n")
    return {"value": 2 * number, "pid": os.getpid()}


def fail(message):
    raise ValueError(message)


def crash(words=""):
    print(words, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def sleep(seconds, log=None):
    if log:
        Path(log).touch()
    time.sleep(seconds)
    return {"slept": seconds}


def threads():
    import torch

    return {"threads": torch.get_num_threads()}


def total(objects):
    return {"total": float(sum(objects["numbers"])), "scale": objects["scaler"](3)}


def hungry(mib):
    block = bytearray(mib << 20)
    return {"mib": len(block) >> 20}


def seeded(seed):
    import torch

    return {"value": torch.rand(1000, generator=torch.Generator().manual_seed(seed)).double().sum().item()}
