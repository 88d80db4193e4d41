"""What a forward keeps for its backward pass, in bytes: counted as autograd saves it, module by module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SavedActivations:
    """Counts the tensors that autograd saves within a block, each storage once, parameters and buffers left out.

        with SavedActivations(model) as saved:
            loss = model(**batch).loss
        saved.bytes, saved.by_module["blocks.0.mlp"]

    `by_module` has the bytes by the innermost module that was running, under its native name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.by_module: dict[str, int] = {}
        self._running: list[str] = []
        self._handles: list[Any] = []

    @property
    def bytes(self) -> int:
        return sum(self.by_module.values())

    def __enter__(self) -> SavedActivations:
        own = [*self.model.parameters(), *self.model.buffers()]
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in own}
        self._held: list[Tensor] = []  # a storage that is freed could come back as another under its address
        self.by_module.clear()
        for name, module in self.model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(_Enter(self._running, name)),
                module.register_forward_hook(_Leave(self._running), always_call=True),
            ]
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _same)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._held.clear()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._held.append(tensor)
            name = self._running[-1] if self._running else ""
            self.by_module[name] = self.by_module.get(name, 0) + storage.nbytes()
        return tensor


class _Enter:
    def __init__(self, running: list[str], name: str) -> None:
        self.running, self.name = running, name

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.running.append(self.name)


class _Leave:
    def __init__(self, running: list[str]) -> None:
        self.running = running

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()


def _same(tensor: Tensor) -> Tensor:
    return tensor
