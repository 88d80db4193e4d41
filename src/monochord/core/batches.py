"""The batches of every step, in an order that depends on the seed alone, from any step on."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Stream:
    """Batches without end from a loader or a sequence of batches; `position` counts those taken.

    A `DataLoader` starts each epoch from the seed and the epoch's number and is skipped through on resume.
    What has `batches[k]` is read at k. With several processes each takes its share.
    """

    def __init__(self, data: Any, seed: int, accelerator: Any, name: str = "data") -> None:
        self.seed, self.accelerator, self.name = seed, accelerator, name
        self.position = 0
        self._share = accelerator.num_processes
        self._indexed = isinstance(data, Sequence) or (hasattr(data, "__getitem__") and hasattr(data, "skip"))
        if isinstance(data, nn.Module) or not (self._indexed or isinstance(data, Iterable)):
            raise ValueError(f"{name} must be batches: a DataLoader or a list of them, got {type(data).__name__}")
        if isinstance(data, Iterator):
            raise ValueError(f"{name} is an iterator, which can't be started again: pass a DataLoader or a list")
        if hasattr(data, "epoch_steps") and hasattr(data, "steps"):
            data = copy.copy(data)
            data.steps = 1 << 62  # it knows the order of any step
            self._length: int | None = data.epoch_steps
        else:
            self._length = len(data) if hasattr(data, "__len__") else None
        if self._length == 0:
            raise ValueError(f"{name} is empty: there is no batch in it")
        if not self._indexed and isinstance(data, torch.utils.data.DataLoader):
            data = accelerator.prepare_data_loader(data)
            self._length = len(data) if self._length is not None else None
            self._share = 1
        self.data = data
        self._epoch: Iterator[Any] | None = None
        self._at = (0, 0)  # epoch, place in it

    @property
    def epoch_length(self) -> int:
        """Batches of this process in an epoch. Raises `ValueError` where that is not known."""
        if self._length is None:
            raise ValueError(f"{self.name} has no length: pass steps instead of epochs")
        return max(1, self._length // self._share)

    def take(self) -> dict[str, Any]:
        """The next batch, on the accelerator's device."""
        from accelerate.utils import send_to_device

        if self._indexed:
            place = self.position * self._share + self.accelerator.process_index
            endless = hasattr(self.data, "epoch_steps")
            batch = self.data[place if endless else place % len(self.data)]
        else:
            batch = self._next()
        self.position += 1
        return send_to_device(as_batch(batch, self.name), self.accelerator.device)

    def skip(self, count: int) -> None:
        """Go on as if `count` batches had been taken."""
        if self._indexed or not count:
            self.position += count
            return
        if self._length is not None:
            self._open(count // self._length, count % self._length)
            self.position += count
        else:
            for _ in range(count):
                self._next()
                self.position += 1

    def _next(self) -> Any:
        for _ in range(2):
            if self._epoch is None:
                self._open(*self._at)
            assert self._epoch is not None
            for batch in self._epoch:
                self._at = self._at[0], self._at[1] + 1
                return batch
            if self._at[1] == 0:
                break
            self._epoch, self._at = None, (self._at[0] + 1, 0)
        raise ValueError(f"{self.name} is empty: there is no batch in it")

    def _open(self, epoch: int, skipped: int) -> None:
        from accelerate import skip_first_batches

        self._at = epoch, skipped
        data = self.data
        seed = self.seed * 1_000_003 + epoch
        if isinstance(data, torch.utils.data.DataLoader):
            for owner in (data, data.sampler, getattr(data.batch_sampler, "sampler", None)):
                if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                    generator.manual_seed(seed)
            if skipped:
                data = skip_first_batches(data, skipped)
                skipped = 0
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        self._epoch = iter(data)
        if not isinstance(data, torch.utils.data.DataLoader):
            for _ in range(skipped):
                next(self._epoch, None)
        else:
            first = next(self._epoch, _END)  # samplers draw their order when the first batch is asked for
            self._epoch = _chain(first, self._epoch)
        torch.set_rng_state(state)


_END = object()


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    if first is not _END:
        yield first
        yield from rest


def as_batch(batch: Any, name: str = "data") -> dict[str, Any]:
    """A batch as a dict: mappings as they are, a pair as an input and its labels."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(item, Tensor) for item in batch):
        return {"input": batch[0], "labels": batch[1]}
    raise ValueError(
        f"a batch of {name} must be a dict of tensors or an (input, labels) pair, got {type(batch).__name__}"
    )
