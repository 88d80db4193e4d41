"""Batches of tensors from a split: an order that depends on the seed alone, any step at once, no step twice.

batches = Batches(dataset["train"], processor, batch_size=16, seed=0, steps=200)
for batch in batches.skip(120): ...     # resumes where step 120 would have been
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from monochord.data.dataset import DataError, Dataset, Split
from monochord.data.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, "Tensor"]
AHEAD = 32  # batches tokenised at once
PROCESSED = ("pixel_values", "input_values", "input_features")


class Batches:
    """Tensor batches, ready for a model, of a split of texts, images, chats, or of ready batches.

    - text and label: `input_ids`, `attention_mask` (batch, seq), `labels` (batch,)
    - text: `input_ids`, `attention_mask`, `labels` (batch, seq), which are -100 on padding
    - prompt and response: the same, `labels` -100 on the prompt too unless `responses_only=False`;
      `response_mask=True` adds a bool `response_mask` (batch, seq)
    - image and label: `pixel_values` (batch, channels, height, width), `labels` (batch,), or with the column `labels`
      float `labels` (batch, labels)
    - audio and label: what the feature extractor makes, or `input_values` and `attention_mask` (batch, samples);
      `labels` (batch,)
    - `pixel_values`, `input_values` or `input_features`, and label: as they are, with `labels` (batch,)

    `processor` is a tokenizer, an image processor called with `images=`, or a feature extractor of sound; images
    without one are scaled to 1, sounds to -1 and 1. `max_length` counts tokens. Shuffled epochs each have their own
    order and drop an incomplete last batch; `shuffle=False` keeps the order and every row. `steps` is how many batches
    there are in all, over as many epochs as it takes; one epoch by default. `batches[k]` is step k, always the same.
    """

    def __init__(
        self,
        split: Split | Any,
        processor: Any = None,
        batch_size: int = 16,
        *,
        max_length: int = 128,
        seed: int = 0,
        shuffle: bool = True,
        steps: int | None = None,
        responses_only: bool = True,
        response_mask: bool = False,
    ) -> None:
        if not isinstance(split, Split):
            split = _as_split(split)
        if batch_size < 1 or max_length < 2 or (steps is not None and steps < 1):
            raise DataError(f"batch_size={batch_size}, max_length={max_length}, steps={steps}: all must be positive")
        self.split = split
        self.ready = split.columns == ("batch",)
        self.batch_size = 1 if self.ready else min(batch_size, len(split))
        self.seed, self.shuffle = seed, shuffle and not self.ready
        whole, rest = divmod(len(split), self.batch_size)
        self.epoch_steps = whole if self.shuffle or not rest else whole + 1
        self.steps = self.epoch_steps if steps is None else steps
        self.start = 0
        self._order: tuple[int, np.ndarray] = (-1, np.arange(0))
        self._collate: Callable[[np.ndarray, np.ndarray], Batch]
        if self.ready:
            self._collate = lambda rows, ahead: dict(split["batch"][rows[0]])
        elif "image" in split:
            self._collate = lambda rows, ahead: _images(split, rows, processor)
        elif processed := [name for name in PROCESSED if name in split]:
            self._collate = lambda rows, ahead: _processed(split, rows, processed)
        elif "audio" in split:
            self._collate = lambda rows, ahead: _sounds(split, rows, processor)
        else:
            tokens = Tokens(split, processor, max_length)
            self._collate = lambda rows, ahead: tokens.batch(rows, ahead, responses_only, response_mask)

    def __len__(self) -> int:
        return max(0, self.steps - self.start)

    def __iter__(self) -> Iterator[Batch]:
        return (self[step] for step in range(self.start, self.steps))

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from the beginning of training."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        order, begin = self._place(step)
        ahead = order[begin : begin + AHEAD * self.batch_size]
        return self._collate(order[begin : begin + self.batch_size], ahead)

    def rows(self, step: int) -> np.ndarray:
        """Which rows of the split are in the batch of a step."""
        order, begin = self._place(step)
        return order[begin : begin + self.batch_size]

    def skip(self, steps: int) -> Batches:
        """The same batches without the first `steps`."""
        later = copy.copy(self)
        later.start = self.start + steps
        return later

    def _place(self, step: int) -> tuple[np.ndarray, int]:
        """The order of the step's epoch, and where in it the step begins."""
        epoch, place = divmod(step, self.epoch_steps)
        if self._order[0] != epoch:
            n = len(self.split)
            order = np.random.default_rng((self.seed, epoch)).permutation(n) if self.shuffle else np.arange(n)
            self._order = epoch, order
        return self._order[1], place * self.batch_size


def _as_split(given: Any) -> Split:
    if isinstance(given, Dataset):
        raise DataError(f"pass one split of {given.name}: dataset['train']")
    from monochord.data.adopt import adopt

    splits = adopt(given).splits
    if len(splits) > 1:
        raise DataError("pass data(...)['train']: rows given as they are would be cut into splits")
    return splits["train"]


def _images(split: Split, rows: np.ndarray, processor: Any) -> Batch:
    import torch

    images = np.asarray(split["image"][rows])
    if processor is None:
        pixels = torch.from_numpy(images).float() / 255
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    else:
        if images.ndim == 3:
            images = np.repeat(images[..., None], 3, axis=3)
        pixels = processor(images=list(images), return_tensors="pt", input_data_format="channels_last")
        pixels = pixels["pixel_values"]
    return {"pixel_values": pixels.contiguous()} | _labels(split, rows)


def _processed(split: Split, rows: np.ndarray, names: list[str]) -> Batch:
    import torch

    return {name: torch.from_numpy(np.asarray(split[name])[rows]) for name in names} | _labels(split, rows)


def _sounds(split: Split, rows: np.ndarray, processor: Any) -> Batch:
    import torch

    clips = split["audio"]
    if processor is None:
        lengths = torch.as_tensor((clips.stops - clips.starts)[rows])
        waves = torch.from_numpy(clips.waves(rows))
        mask = torch.arange(waves.shape[1]) < lengths[:, None]
        return {"input_values": waves, "attention_mask": mask.long()} | _labels(split, rows)
    process = getattr(processor, "feature_extractor", processor)
    sounds = [clips.waves([row])[0] for row in rows]
    return dict(process(sounds, sampling_rate=clips.rate, return_tensors="pt")) | _labels(split, rows)


def _labels(split: Split, rows: np.ndarray) -> Batch:
    import torch

    if "labels" in split:
        return {"labels": torch.from_numpy(np.asarray(split["labels"])[rows]).float()}
    return {"labels": torch.as_tensor(np.asarray(split["label"])[rows])} if "label" in split else {}
