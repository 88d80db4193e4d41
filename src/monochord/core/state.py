"""Nested states (of optimizers, of training) as tensors and JSON: what a checkpoint holds, without a pickle."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def pack(value: Any, name: str = "state") -> tuple[Any, dict[str, Tensor]]:
    """JSON-able `value` with its tensors taken out, by name. Raises `TypeError` for what neither can hold."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value.detach()
            return {"tensor": path}
        if isinstance(value, dict):
            items = [[key, walk(item, f"{path}.{key}")] for key, item in value.items()]
            if any(not isinstance(key, (str, int)) for key, _ in items):
                raise TypeError(f"{path} has keys that are neither strings nor ints")
            return {"dict": items}
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [walk(item, f"{path}.{i}") for i, item in enumerate(value)]}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"{path} is a {type(value).__name__}, which a checkpoint can't hold")

    return walk(value, name), tensors


def unpack(told: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` was given."""
    if not isinstance(told, dict):
        return told
    ((kind, value),) = told.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in value}
    items = [unpack(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items
