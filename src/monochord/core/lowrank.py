"""A change of low rank, kept as its two factors: the dense matrix is built only when asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from monochord.core.entries import Entry, wide


class LowRank(Entry, kind="lowrank"):
    """`scale * up @ down`: up is (out, rank), down is (rank, in, ...).

    A stack of expert weights (experts, out, in) has up (experts, out, rank) and down (experts, rank, in).
    """

    def __init__(self, up: Tensor, down: Tensor, scale: float = 1.0) -> None:
        fits = up.ndim in (2, 3) and down.ndim >= up.ndim - 1 and up.shape[-1] == down.shape[up.ndim - 2]
        if not fits or (up.ndim == 3 and (down.ndim != 3 or up.shape[0] != down.shape[0])):
            raise ValueError(f"up {tuple(up.shape)} and down {tuple(down.shape)} have no common rank")
        self.up, self.down, self.scale = up.detach(), down.detach(), float(scale)

    @classmethod
    def of(cls, entry: Entry, rank: int | None = None, energy: float | None = None) -> LowRank:
        """The best approximation of `rank`, or of the least rank with this share of the squared norm."""
        left, values, right = entry.svd()
        if (rank is None) == (energy is None):
            raise ValueError("pass one of rank and energy")
        if energy is not None:
            if not 0 < energy <= 1:
                raise ValueError(f"energy must be in (0, 1], got {energy}")
            kept = values.double().square().cumsum(-1)
            short = kept < energy * (1 - 1e-12) * kept[..., -1:]
            rank = int(short.sum(-1).max()) + 1 if values.numel() else 0
        elif rank is not None and rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        rank = min(rank or 0, values.shape[-1])
        up, down = (left * values.unsqueeze(-2))[..., :rank], right[..., :rank, :]
        rest = entry.shape[1:] if not entry.batched else entry.shape[2:]
        shape = (*down.shape[:-1], *rest) if rest or entry.batched else down.shape[:1]
        return cls(up.to(entry.dtype).contiguous(), down.reshape(shape).to(entry.dtype).contiguous())

    @property
    def rank(self) -> int:
        return self.up.shape[-1]

    @property
    def batched(self) -> bool:
        return self.up.ndim == 3

    @property
    def shape(self) -> tuple[int, ...]:
        if self.batched:
            return (*self.up.shape[:2], self.down.shape[2])
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.up.dtype, self.down.dtype)

    def dense(self) -> Tensor:
        up, down = self._factors()
        return (self.scale * up @ down).reshape(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        return {"up": self.up, "down": self.down}

    def settings(self) -> dict[str, Any]:
        return {"scale": self.scale}

    @classmethod
    def build(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> LowRank:
        return cls(tensors["up"], tensors["down"], settings["scale"])

    def scaled(self, factor: float) -> LowRank:
        return LowRank(self.up, self.down, self.scale * factor)

    def plus(self, other: Entry) -> Entry | None:
        if not isinstance(other, LowRank) or other.batched != self.batched:
            return None
        left, right, scale = self.up, other.up, self.scale
        if self.scale != other.scale:
            left, right, scale = left * self.scale, right * other.scale, 1.0
        return LowRank(torch.cat((left, right), -1), torch.cat((self.down, other.down), self.up.ndim - 2), scale)

    def add_to(self, weight: Tensor, scale: float = 1.0) -> None:
        up, down = (factor.to(weight.device) for factor in self._factors())
        if up.dtype != weight.dtype or not weight.is_contiguous():
            return super().add_to(weight, scale)
        flat = weight.view(*up.shape[:-1], down.shape[-1])
        (flat.baddbmm_ if self.batched else flat.addmm_)(up, down, alpha=self.scale * scale)

    def norm(self) -> float:
        return torch.linalg.vector_norm(self._core()[1].flatten()).item()

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        left, core, right = self._core()
        inner_left, values, inner_right = torch.linalg.svd(core, full_matrices=False)
        return left @ inner_left, values, inner_right @ right.mT

    def random_like(self, generator: Generator) -> LowRank:
        up = torch.randn(self.up.shape, generator=generator, dtype=wide(self.dtype))
        down = torch.randn(self.down.shape, generator=generator, dtype=wide(self.dtype))
        size = LowRank(up, down).norm()
        up = up * (self.norm() / size if size else 0.0)
        return LowRank(up.to(self.up.dtype), down.to(self.down.dtype))

    def _factors(self) -> tuple[Tensor, Tensor]:
        down = self.down.reshape(self.rank, -1) if not self.batched else self.down
        return self.up.to(self.dtype), down.to(self.dtype)

    def _core(self) -> tuple[Tensor, Tensor, Tensor]:
        """Orthonormal `left` and `right` and a small `core` with `left @ core @ right.mT` the change."""
        up, down = (factor.to(wide(self.dtype)) for factor in self._factors())
        left, inner_left = torch.linalg.qr(up)
        right, inner_right = torch.linalg.qr(down.mT)
        return left, self.scale * inner_left @ inner_right.mT, right
