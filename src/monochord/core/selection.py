"""Which entries of which parameters: chosen exactly, kept as packed bits, combined as sets, saved with their
seed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from monochord.core.pattern import Pattern
from monochord.core.storage import StorageError, base_parameters, load_tensors, save_tensors

Shapes = Mapping[str, "tuple[int, ...]"]


class Selection(Mapping[str, Tensor]):
    """Entries of named tensors: a mapping from each name to its boolean mask.

    Names without a selected entry belong to it too: `complement` and fractions are relative to all of them.
    `seed` is the one it was drawn with, if any.
    """

    def __init__(self, masks: Mapping[str, Tensor], seed: int | None = None) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(mask.shape) for name, mask in masks.items()}
        self._bits = {name: np.packbits(mask.bool().cpu().numpy().reshape(-1)) for name, mask in masks.items()}
        self.seed = seed

    @classmethod
    def by_score(
        cls,
        scores: Mapping[str, Tensor],
        *,
        k: int | None = None,
        fraction: float | None = None,
        scope: str = "global",
        largest: bool = True,
        seed: int | None = None,
    ) -> Selection:
        """Exactly the `k` entries (or `fraction`, rounded) with the largest scores; equal scores go in order.

        `scope="global"` ranks all tensors together, `"tensor"` each on its own (`k` is then per tensor).
        """
        if scope not in ("global", "tensor"):
            raise ValueError(f"scope must be 'global' or 'tensor', got {scope!r}")
        flat = {n: (s if largest else -s).detach().reshape(-1).cpu() for n, s in scores.items()}
        if bad := [name for name, score in flat.items() if torch.isnan(score).any()]:
            raise ValueError(f"the scores of {bad[0]} have NaN")
        if scope == "tensor":
            chosen = {name: _top(score, _count(k, fraction, len(score), name)) for name, score in flat.items()}
        else:
            together = torch.cat(list(flat.values())) if flat else torch.empty(0)
            picked = _top(together, _count(k, fraction, len(together), "all scores"))
            parts = picked.split([len(score) for score in flat.values()])
            chosen = dict(zip(flat, parts, strict=True))
        return cls({name: mask.reshape(scores[name].shape) for name, mask in chosen.items()}, seed)

    @classmethod
    def random(
        cls,
        source: nn.Module | Mapping[str, Any],
        *,
        seed: int,
        k: int | None = None,
        fraction: float | None = None,
        scope: str = "global",
    ) -> Selection:
        """Exactly `k` entries (or `fraction`), uniformly at random, of a model's or a mapping's tensors."""
        generator = Generator().manual_seed(seed)
        scores = {n: torch.rand(s, generator=generator) for n, s in _shapes(source).items()}
        return cls.by_score(scores, k=k, fraction=fraction, scope=scope, seed=seed)

    @classmethod
    def by_name(cls, source: nn.Module | Mapping[str, Any], pattern: str) -> Selection:
        """All entries of the parameters whose native names match the glob `pattern`."""
        matches = Pattern.parse(pattern).matches
        shapes = _shapes(source)
        if not any(map(matches, shapes)):
            raise ValueError(f"no parameter matches {pattern!r}; there is {', '.join(list(shapes)[:3])} ...")
        return cls({n: torch.full(s, matches(n)) for n, s in shapes.items()})

    @classmethod
    def by_kind(cls, model: nn.Module, *kinds: type[nn.Module] | str) -> Selection:
        """All entries of the parameters that modules of these classes (or class names) hold themselves."""
        names = {kind if isinstance(kind, str) else kind.__name__ for kind in kinds}
        owners = {
            f"{path}.{name}".removeprefix(".")
            for path, module in model.named_modules()
            if names & {base.__name__ for base in type(module).__mro__}
            for name, _ in module.named_parameters(recurse=False)
        }
        if not owners:
            known = sorted({type(module).__name__ for module in model.modules()})
            raise ValueError(f"no module of kind {', '.join(sorted(names))}; there are {', '.join(known)}")
        return cls({n: torch.full(s, n in owners) for n, s in _shapes(model).items()})

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        bits = np.unpackbits(self._bits[name], count=math.prod(shape))
        return torch.from_numpy(bits).bool().reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def masks(self) -> dict[str, Tensor]:
        """The boolean masks, by name."""
        return dict(self)

    def indices(self, name: str) -> Tensor:
        """The flat positions selected in one tensor, ascending."""
        return self[name].reshape(-1).nonzero().flatten()

    def counts(self) -> dict[str, int]:
        """How many entries of each tensor are selected."""
        return {name: int(_ONES[bits].sum()) for name, bits in self._bits.items()}

    @property
    def count(self) -> int:
        """How many entries are selected."""
        return sum(self.counts().values())

    @property
    def fraction(self) -> float:
        """The share of all entries that is selected."""
        return self.count / max(sum(map(math.prod, self.shapes.values())), 1)

    @property
    def complement(self) -> Selection:
        """All entries that are not selected."""
        return self._map(lambda name: ~self[name], self.shapes)

    def __or__(self, other: Selection) -> Selection:
        return self._map(lambda name: self._of(name, other) | other._of(name, self), {**self.shapes, **other.shapes})

    def __and__(self, other: Selection) -> Selection:
        return self._map(lambda name: self._of(name, other) & other._of(name, self), {**self.shapes, **other.shapes})

    def __sub__(self, other: Selection) -> Selection:
        return self._map(lambda name: self._of(name, other) & ~other._of(name, self), {**self.shapes, **other.shapes})

    def __xor__(self, other: Selection) -> Selection:
        return self._map(lambda name: self._of(name, other) ^ other._of(name, self), {**self.shapes, **other.shapes})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        same = self.shapes == other.shapes
        return same and all(np.array_equal(bits, other._bits[name]) for name, bits in self._bits.items())

    __hash__ = None  # type: ignore[assignment]

    def random_like(self, seed: int) -> Selection:
        """As many entries of every tensor, uniformly at random: the matched control."""
        generator = Generator().manual_seed(seed)
        masks = {}
        for name, count in self.counts().items():
            scores = torch.rand(math.prod(self.shapes[name]), generator=generator)
            masks[name] = _top(scores, count).reshape(self.shapes[name])
        return Selection(masks, seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: per tensor packed bits or indices, whichever is smaller."""
        tensors = {}
        for name, count in self.counts().items():
            sparse = count * 4 < len(self._bits[name]) and math.prod(self.shapes[name]) < 2**31
            key = f"{name}::{'indices' if sparse else 'bits'}"
            tensors[key] = self.indices(name).int() if sparse else torch.from_numpy(self._bits[name])
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        save_tensors(path, tensors, {"selection": 1, "seed": self.seed, "shapes": shapes})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read what `save` wrote."""
        tensors, metadata = load_tensors(path)
        if metadata.get("selection") != 1:
            raise StorageError(f"{path} is not a selection")
        masks = {}
        for name, shape in metadata["shapes"].items():
            size = math.prod(shape)
            if f"{name}::bits" in tensors:
                flat = torch.from_numpy(np.unpackbits(tensors[f"{name}::bits"].numpy(), count=size)).bool()
            else:
                flat = torch.zeros(size, dtype=torch.bool)
                flat[tensors[f"{name}::indices"].long()] = True
            masks[name] = flat.reshape(shape)
        return cls(masks, metadata["seed"])

    def _of(self, name: str, other: Selection) -> Tensor:
        if name not in self.shapes:
            return torch.zeros(other.shapes[name], dtype=torch.bool)
        if name in other.shapes and other.shapes[name] != self.shapes[name]:
            raise ValueError(f"{name} is {self.shapes[name]} in one selection and {other.shapes[name]} in the other")
        return self[name]

    @staticmethod
    def _map(mask: Callable[[str], Tensor], names: Shapes) -> Selection:
        return Selection({name: mask(name) for name in names})

    def __repr__(self) -> str:
        return f"Selection({self.count} entries, {self.fraction:.2%} of {len(self)} tensors)"


def _top(scores: Tensor, k: int) -> Tensor:
    """A mask of the `k` largest; among equals the first ones."""
    if not 0 < k < len(scores):
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    threshold = torch.kthvalue(scores, len(scores) - k + 1).values
    mask = scores > threshold
    equal = (scores == threshold).nonzero().flatten()
    mask[equal[: k - int(mask.sum())]] = True
    return mask


def _count(k: int | None, fraction: float | None, size: int, name: str) -> int:
    if (k is None) == (fraction is None):
        raise ValueError("pass one of k and fraction")
    if fraction is not None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be in [0, 1], got {fraction}")
        return round(fraction * size)
    if k is None or not 0 <= k <= size:
        raise ValueError(f"k must be an int in [0, {size}] for {name}, got {k}")
    return k


def _shapes(source: nn.Module | Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in base_parameters(source).items()}


_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.int64)
