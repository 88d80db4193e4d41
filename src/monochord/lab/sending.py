"""Objects on their way to a trial's process: whether they can go, and whether the user's script must come along."""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any


class EngineError(RuntimeError):
    """Trials can't be run the way they were asked for."""


@contextlib.contextmanager
def hidden_main() -> Iterator[None]:
    """Start processes without running the user's script again in each of them."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _Probe(pickle.Pickler):
    """Notes whether objects refer to the user's script; skips the numbers in tensors."""

    found = False

    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(obj, torch.Tensor):
            return (int, ())
        if "__main__" in (getattr(obj, "__module__", None), type(obj).__module__):
            self.found = True
        return NotImplemented


def needs_script(objects: Sequence[Any]) -> bool:
    """Whether another process needs the user's script to read `objects`."""
    probe = _Probe(io.BytesIO())
    try:
        probe.dump(objects)
    except Exception as error:
        raise EngineError(f"can't send an object to another process ({error}): use engine='inline'") from None
    return probe.found
