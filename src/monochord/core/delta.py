"""Weight-space arithmetic: the change from one model to another, as a mapping from parameter names to
entries.

Deltas add, scale, mask and graft in the cheapest form of every entry, apply to models in memory and to
checkpoints on disk, and tell what changed: norms, ranks and overlaps by weight.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from monochord.core.checkpoint import Checkpoint, Stored, rewrite
from monochord.core.entries import Dense, Entry, Sparse, wide
from monochord.core.lowrank import LowRank
from monochord.core.pattern import Pattern
from monochord.core.sources import DeltaError, Weights, check_fit, nearest, targets_of, weights_of
from monochord.core.spectrum import effective_rank, energy_share, space_overlap
from monochord.core.storage import StorageError, fingerprint
from monochord.core.streamed import Between, changed
from monochord.core.sums import Sum, add_entries, load_entries, save_entries

__all__ = ["Between", "Delta", "DeltaError", "Dense", "Entry", "LowRank", "Sparse", "Sum"]

Masks = Mapping[str, Tensor] | Callable[[str, Entry], "Tensor | None"]


class Delta(Mapping[str, Entry]):
    """A change of a model's weights: native parameter names to entries. A name that is missing did not
    change.

    `base` is the fingerprint of the model it was taken from, or a function that finds it out; without one
    the delta applies to any model its names and shapes fit. A sum keeps the bases of both sides.
    """

    def __init__(self, entries: Mapping[str, Entry | Tensor], base: str | Callable[[], str] | None = None) -> None:
        self._entries = {k: Dense(v) if isinstance(v, Tensor) else v for k, v in entries.items()}
        self._bases: tuple[str | Callable[[], str], ...] = () if base is None else (base,)

    @classmethod
    def between(cls, base: Weights, tuned: Weights, *, strict: bool = True) -> Delta:
        """The change from `base` to `tuned`: models, state dicts, or paths of (sharded) safetensors.

        Between two paths nothing is read until it is used. Elsewhere weights that are equal leave no entry.
        With `strict=False` weights that only one side has are left out.
        """
        before, after = weights_of(base), weights_of(tuned)
        check_fit(before, after, "the base", strict=strict)
        check_fit(after, before, "the tuned model", strict=strict)
        entries: dict[str, Entry] = {}
        for name, old in before.items():
            new = after.get(name)
            if new is None or not (old.dtype.is_floating_point and new.dtype.is_floating_point):
                continue
            if isinstance(old, Stored) and isinstance(new, Stored):
                entries[name] = Between.of(old, new)
                continue
            old, new = (value.read() if isinstance(value, Stored) else value.detach() for value in (old, new))
            dtype = wide(torch.promote_types(old.dtype, new.dtype))
            change = new.to(dtype) - old.to(new.device, dtype)
            if torch.count_nonzero(change):
                entries[name] = Dense(change)
        lazy = isinstance(before, Checkpoint)
        return cls(entries, (lambda: fingerprint(before)) if lazy else fingerprint(before))

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise KeyError(f"no change of {name!r}{nearest(name, self._entries)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"Delta({len(self)} weights, {self.nbytes} bytes)"

    __hash__ = None  # type: ignore[assignment]

    @property
    def nbytes(self) -> int:
        """The bytes it takes when saved."""
        return sum(entry.nbytes for entry in self.values())

    @property
    def bases(self) -> frozenset[str]:
        """Fingerprints of the models the delta was taken from: one, none, or one for every base of a
        mixture.
        """
        found = frozenset(base if isinstance(base, str) else base() for base in self._bases)
        self._bases = tuple(found)
        return found

    def __add__(self, other: Delta) -> Delta:
        if not isinstance(other, Delta):
            return NotImplemented
        check_fit(self, {name: entry for name, entry in other.items() if name in self}, "the other delta")
        entries = {n: add_entries(self[n], e) if n in self else e for n, e in other.items()}
        return self._like({**self._entries, **entries}, other)

    def __neg__(self) -> Delta:
        return self * -1.0

    def __sub__(self, other: Delta) -> Delta:
        return self + -other if isinstance(other, Delta) else NotImplemented

    def __mul__(self, factor: float) -> Delta:
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return self._like({name: entry.scaled(float(factor)) for name, entry in self.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Delta:
        return self * (1.0 / divisor)

    def scale_by(self, pattern: str, factor: float) -> Delta:
        """Scale the weights whose native names match the glob `pattern`."""
        chosen = self._matching(pattern)
        return self._like({n: e.scaled(float(factor)) if n in chosen else e for n, e in self.items()})

    def mask(self, masks: Masks) -> Delta:
        """Keep the entries where the masks are set. A weight without a mask (or with None) is left out.

        `masks` maps names to tensors of the weights' shapes, or is called with each name and entry.
        """
        found = {}
        for name, entry in self.items():
            mask = masks(name, entry) if callable(masks) else masks.get(name)
            if mask is None:
                continue
            if tuple(mask.shape) != entry.shape:
                raise DeltaError(f"the mask of {name} is {tuple(mask.shape)}, the weight is {entry.shape}")
            found[name] = entry.masked(mask)
        return self._like(found)

    def graft(self, other: Delta, masks: Mapping[str, Tensor]) -> Delta:
        """This delta with the entries of `other` where the masks are set."""
        rest = {name: ~mask if mask.dtype == torch.bool else 1 - mask for name, mask in masks.items()}
        kept = self._like({name: entry for name, entry in self.items() if name not in masks})
        return kept + self.mask(rest) + other.mask(masks)

    def to_lowrank(self, rank: int | None = None, energy: float | None = None, *, pattern: str | None = None) -> Delta:
        """The best low-rank approximation of every matrix: its error is the norm of the discarded singular
        values.

        Pass `rank`, or `energy`: the share of the squared norm to keep. Vectors stay as
        they are.

        """
        chosen = self._matching(pattern) if pattern else set(self)

        def factored(name: str, entry: Entry) -> Entry:
            if name not in chosen or len(entry.shape) < 2:
                return entry
            return LowRank.of(entry, rank, energy)

        return self._like({name: factored(name, entry) for name, entry in self.items()})

    def random_like(self, seed: int) -> Delta:
        """The matched random control: every entry random, of the same kind, norm and rank."""
        generator = Generator().manual_seed(seed)
        return self._like({name: entry.random_like(generator) for name, entry in self.items()})

    def apply(self, model: nn.Module, scale: float = 1.0, *, strict: bool = True) -> None:
        """Add the change to the model's weights in place.

        `strict` refuses a model whose fingerprint is not the base's: pass False to apply to another base, or
        to one that was changed already.
        """
        if strict:
            self._check_base(fingerprint(model), "the model")
        targets = targets_of(model, self)
        with torch.no_grad():
            for name, entry in self.items():
                entry.add_to(targets[name], scale)

    @contextmanager
    def applied(self, model: nn.Module, scale: float = 1.0, *, strict: bool = True) -> Iterator[None]:
        """Apply for the length of a block; then the weights are restored bit for bit from a copy of those
        touched.
        """
        targets = targets_of(model, self)
        before = {name: target.detach().clone() for name, target in targets.items()}
        try:
            self.apply(model, scale, strict=strict)
            yield
        finally:
            with torch.no_grad():
                for name, target in targets.items():
                    target.copy_(before[name])

    def removed(self, model: nn.Module) -> Any:
        """Take the change out of a model that has it, for the length of a block."""
        return self.applied(model, -1.0, strict=False)

    def apply_to_checkpoint(
        self,
        source: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        scale: float = 1.0,
        max_shard_bytes: int | None = None,
        strict: bool = True,
    ) -> None:
        """Write the checkpoint folder `source` with the change added to the new folder `out`, tensor by
        tensor.

        Shards stay as they are unless `max_shard_bytes` is given. `out` appears when it is whole.

        """
        checkpoint = Checkpoint(source)
        check_fit(checkpoint, self, str(source))
        if strict:
            self._check_base(fingerprint(checkpoint), str(source))
        rewrite(checkpoint, out, lambda t: changed(t, self._entries.get(t.name), scale), max_shard_bytes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: factors, indices and values only, one entry in memory at a time."""
        save_entries(path, self, {"delta": 1, "bases": sorted(self.bases)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Delta:
        """Read what `save` wrote. Raises `StorageError` for any other file."""
        entries, metadata = load_entries(path)
        if metadata.get("delta") != 1:
            raise StorageError(f"{path} is not a delta: take one with Delta.between(base, {str(path)!r})")
        delta = cls(entries)
        delta._bases = tuple(metadata["bases"])
        return delta

    def norms(self) -> dict[str, float]:
        """Frobenius norms."""
        return {name: entry.norm() for name, entry in self.items()}

    def relative_norms(self, base: Weights) -> dict[str, float]:
        """Frobenius norms over those of the base's weights."""
        weights = self._of(base)
        return {name: entry.norm() / (weights[name].norm() or math.nan) for name, entry in self.items()}

    def effective_rank(self, kind: str = "entropy") -> dict[str, float]:
        """How many directions share the change.

        `"entropy"` is the exponential of the entropy of the singular values over their sum (Roy and Vetterli
        2007); `"stable"` is the squared Frobenius norm over the squared largest singular value. A zero
        change has rank 0; stacked experts count as their mean.
        """
        return {name: effective_rank(entry.svd()[1], kind) for name, entry in self.items()}

    def overlap(self, other: Delta, k: int) -> dict[str, float]:
        """For shared weights, the overlap of the top-`k` left singular spaces: 1 the same, k / out at
        random.
        """
        return {name: space_overlap(self[name], other[name], k) for name in self if name in other}

    def energy_in_top_subspace(self, base: Weights, k: int) -> dict[str, float]:
        """The share of the change's squared norm inside the span of the base's top-`k` left singular
        vectors.
        """
        weights = self._of(base)
        return {name: energy_share(entry, weights[name], k) for name, entry in self.items()}

    def _like(self, entries: Mapping[str, Entry], other: Delta | None = None) -> Delta:
        delta = Delta(entries)
        delta._bases = self._bases + (other._bases if other is not None else ())
        return delta

    def _matching(self, pattern: str) -> set[str]:
        matches = Pattern.parse(pattern).matches
        found = {name for name in self if matches(name)}
        if not found:
            raise DeltaError(f"no weight matches {pattern!r}{nearest(pattern, self)}")
        return found

    def _of(self, base: Weights) -> dict[str, Entry]:
        weights = weights_of(base)
        check_fit(weights, self, "the base")
        return {n: Dense(w.read() if isinstance(w, Stored) else w) for n, w in weights.items() if n in self}

    def _check_base(self, found: str, owner: str) -> None:
        if self.bases - {found}:
            base = ", ".join(sorted(base[:12] for base in self.bases))
            known = f"the delta was taken from base {base}, {owner} is {found[:12]}"
            raise DeltaError(f"{known}: pass strict=False to apply it anyway")
