"""Noise that is never stored: the same stream of directions again and again from a seed, in pieces that fit
the cache.

Gaussian noise on the CPU is drawn from the 65,536 equiprobable quantiles of the normal distribution, scaled
to unit variance (largest 4.3): one table look-up per number, three times as fast as an exact draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Generator, Tensor

PIECE = 1 << 15  # numbers drawn at once: noise, its table and the weights stay in a core's cache
LANES = 8  # independent streams, so that the numbers don't depend on how many threads draw them

Visit = Callable[[list[Tensor], list[Tensor], int], None]


class Noise:
    """Directions z for groups of tensors: `kind` is "gaussian" or "sign"."""

    def __init__(self, *groups: Sequence[Tensor], kind: str = "gaussian") -> None:
        if kind not in ("gaussian", "sign"):
            raise ValueError(f"noise must be 'gaussian' or 'sign', got {kind!r}")
        self.kind = kind
        devices = {tensor.device for group in groups for tensor in group}
        if len(devices) > 1:
            raise ValueError(f"all parameters must be on one device, got {', '.join(map(str, devices))}")
        self.device = devices.pop() if devices else torch.device("cpu")
        size = PIECE if self.device.type == "cpu" else 1 << 26
        pieces = [(piece, i) for i, group in enumerate(groups) for piece in _pieces(group, size)]
        self._lanes = [lane for lane in (pieces[i::LANES] for i in range(LANES)) if lane]
        self._needs = [sum(-(-sum(map(len, piece)) // 4) for piece, _ in lane) for lane in self._lanes]

    @torch.no_grad()
    def visit(self, seed: int, visit: Visit) -> None:
        """Call `visit(pieces of tensors, pieces of z, group)` until all are seen; z depends on the seed
        alone.

        On the CPU calls come from several threads.
        """
        if self.device.type != "cpu":
            generator = Generator(self.device).manual_seed(seed)
            for lane in self._lanes:
                for pieces, group in lane:
                    size = sum(map(len, pieces))
                    drawn = torch.empty(size, device=self.device)
                    if self.kind == "gaussian":
                        drawn.normal_(generator=generator)
                    else:
                        drawn.random_(2, generator=generator).mul_(2).sub_(1)
                    visit(pieces, list(drawn.split([len(piece) for piece in pieces])), group)
            return
        threads = min(torch.get_num_threads(), len(self._lanes))
        if threads <= 1:
            for i in range(len(self._lanes)):
                self._run(i, seed, visit)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda lane: self._run(lane, seed, visit), range(len(self._lanes))))

    @torch.no_grad()
    def _run(self, lane: int, seed: int, visit: Visit) -> None:
        gaussian = self.kind == "gaussian"
        drawn = torch.empty(PIECE)
        rows = drawn.numpy().reshape(-1, 8)
        words = _words(seed, lane, self._needs[lane])
        for pieces, group in self._lanes[lane]:
            size = sum(map(len, pieces))
            if gaussian:
                draws = torch.from_numpy(words(-(-size // 4)).view(np.uint16)[:size]).to(torch.int32)
                torch.index_select(_quantiles(), 0, draws, out=drawn[:size])
            else:
                count = -(-size // 8)
                _signs().take(words(-(-count // 8)).view(np.uint8)[:count], axis=0, out=rows[:count], mode="wrap")
            lengths = [len(piece) for piece in pieces]
            visit(pieces, list(drawn[:size].split(lengths)) if len(pieces) > 1 else [drawn[:size]], group)


def _words(seed: int, lane: int, most: int) -> Callable[[int], np.ndarray]:
    """A function that draws the next 64-bit random words; they are made many at once, but no more than `most`."""
    random = np.random.Generator(np.random.SFC64([seed, lane]))
    block, used = np.empty(0, dtype=np.uint64), 0

    def draw(count: int) -> np.ndarray:
        nonlocal block, used
        if used + count > len(block):
            block, used = random.integers(0, 1 << 64, size=min(PIECE, most), dtype=np.uint64), 0
        used += count
        return block[used - count : used]

    return draw


def _pieces(tensors: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    """Flat views that cover the tensors in order: large ones in pieces of `size`, small ones together."""
    found: list[list[Tensor]] = [[]]
    room = size
    for tensor in tensors:
        flat = _flat(tensor)
        start = 0
        while start < len(flat):
            if not room or (found[-1] and len(flat) - start > room and len(flat) >= size):
                found.append([])
                room = size
            take = min(len(flat) - start, room)
            found[-1].append(flat[start : start + take])
            start += take
            room -= take
    return [pieces for pieces in found if pieces]


def _flat(tensor: Tensor) -> Tensor:
    """All entries of a tensor in the order of memory, as a view."""
    span = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() and span != tensor.numel():
        raise ValueError(f"a parameter of shape {tuple(tensor.shape)} has gaps in memory: make it contiguous")
    return torch.as_strided(tensor.detach(), (tensor.numel(),), (1,))


@cache
def _quantiles() -> Tensor:
    """The mean of the normal distribution within each of 65,536 equiprobable bins, scaled to variance 1."""
    edges = torch.special.ndtri(torch.arange(1, 1 << 16, dtype=torch.float64) / (1 << 16))
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    zero = torch.zeros(1, dtype=torch.float64)
    means = (torch.cat((zero, density)) - torch.cat((density, zero))) * (1 << 16)
    return (means / means.square().mean().sqrt()).float()


@cache
def _signs() -> np.ndarray:
    """(256, 8): the signs that each byte stands for."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return bits.astype(np.float32) * 2 - 1
