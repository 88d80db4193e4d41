"""Learn from responses alone: labels of everything else are masked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from monochord.core.objective import IGNORED, Batch, BatchTransform, token_labels


@dataclass(frozen=True)
class ResponseOnly(BatchTransform):
    """Masks the labels outside the responses: `ResponseOnly()(NextToken())`.

    Responses are where the batch's `response_mask` (or `completion_mask`, `assistant_masks`) is set, or
    follow every occurrence of the token ids `opens`, up to the next occurrence of `closes` (the end, if not
    given).
    """

    opens: tuple[int, ...] = ()
    closes: tuple[int, ...] = ()

    def transform(self, batch: Batch, generator: Generator) -> Batch:
        labels = token_labels(batch)
        if self.opens:
            mask = _between(batch["input_ids"], self.opens, self.closes)
        else:
            names = [n for n in ("response_mask", "completion_mask", "assistant_masks") if n in batch]
            if not names:
                raise ValueError("ResponseOnly needs 'response_mask' in the batch, or the ids that open a response")
            mask = batch[names[0]].bool()
        return {**batch, "labels": labels.masked_fill(~mask, IGNORED)}


def _between(ids: Tensor, opens: tuple[int, ...], closes: tuple[int, ...]) -> Tensor:
    """(batch, seq): after an occurrence of `opens`, up to the next of `closes`, which is part of it."""
    starts, ends = _ends(ids, opens), _ends(ids, closes)
    place = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
    # the last marker before each position: a response goes on until the end of the closing one
    opened = torch.where(starts, place, -1).cummax(-1).values
    closed = torch.where(ends, place, -1).cummax(-1).values
    before = torch.nn.functional.pad
    opened, closed = (before(last[..., :-1], (1, 0), value=-1) for last in (opened, closed))
    return opened > closed


def _ends(ids: Tensor, marker: tuple[int, ...]) -> Tensor:
    """Where an occurrence of `marker` ends."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    n = len(marker)
    if n and ids.shape[-1] >= n:
        windows = ids.unfold(-1, n, 1)
        found[..., n - 1 :] = (windows == torch.tensor(marker, device=ids.device)).all(-1)
    return found
