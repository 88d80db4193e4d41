"""A trial as everything but the database sees it, and how contents become keys and JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PENDING, RUNNING, DONE, FAILED = "pending", "running", "done", "failed"


@dataclass(frozen=True)
class Record:
    """What the store knows of a trial, detached from the database."""

    key: str
    label: str
    state: str
    arguments: dict[str, Any]
    result: dict[str, Any] | None = None
    error: str | None = None
    attempts: int = 0


def content_key(*parts: Any) -> str:
    """Sha256 of JSON-able parts, the same for equal contents whatever the order of dictionary keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def finite(value: Any) -> Any:
    """`value` with every infinite or NaN number in it as None: JSON knows neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
