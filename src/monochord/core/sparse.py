"""Sparse tuning: which weights a pattern names, each once, and the trained entries of a choice among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Generator, Tensor, nn

from monochord.core.blocks import owned
from monochord.core.changes import SparseChange
from monochord.core.sites import Site, resolve


def weights_at(model: nn.Module, sites: str | tuple[str, ...], *, slices: bool = False) -> dict[str, Site]:
    """The parameters that `sites` names, by canonical name, no number in two of them.

    Of a fused weight (queries, keys and values in one) the whole is taken where the pattern names it, with `slices`
    its parts. Buffers are left out. Raises `SiteError` when nothing matches.
    """
    of_parameter: dict[int, tuple[list[Site], list[Site]]] = {}
    for site in resolve(model, sites, kind="weight"):
        parameter = owned(model.get_submodule(site.module), site.parameter)
        if isinstance(parameter, nn.Parameter):
            wholes, parts = of_parameter.setdefault(id(parameter), ([], []))
            (wholes if site.rows is None else parts).append(site)
    found: dict[str, Site] = {}
    for wholes, parts in of_parameter.values():
        kept = parts if parts and (slices or not wholes) else wholes[:1]
        found.update({site.name: site for site in kept})
    return found


def sparse_changes(
    sites: Mapping[str, Site], chosen: Mapping[str, Tensor], *, freezable: bool = False
) -> Iterator[tuple[Site, SparseChange]]:
    """A trained change of the `chosen` entries, by name flat positions (n,) of what `as_applied` shows; n may be 0."""
    for name, positions in chosen.items():
        if len(positions):
            yield sites[name], SparseChange(sites[name].shape or (), positions, freezable)


def draw_positions(sizes: Mapping[str, int], n: int, generator: Generator) -> dict[str, Tensor]:
    """Exactly `n` positions over all tensors, uniformly without replacement, ascending; memory O(n)."""
    total = sum(sizes.values())
    if not 0 <= n <= total:
        raise ValueError(f"n={n} must be in [0, {total}]")
    ends = torch.tensor(list(sizes.values())).cumsum(0)
    positions = _distinct(total, n, generator)
    counts = torch.bincount(torch.searchsorted(ends, positions, right=True), minlength=len(sizes)).tolist()
    starts = [0, *ends[:-1].tolist()]
    return {name: part - start for name, part, start in zip(sizes, positions.split(counts), starts, strict=True)}


def _distinct(total: int, n: int, generator: Generator) -> Tensor:
    """`n` distinct integers below `total`, ascending."""
    if 2 * n > total:  # those left out are the fewer
        kept = torch.ones(total, dtype=torch.bool)
        kept[_distinct(total, total - n, generator)] = False
        return kept.nonzero().flatten()
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < n:
        found = torch.cat([found, torch.randint(total, (n - len(found) + 16,), generator=generator)]).unique()
    kept = torch.randperm(len(found), generator=generator)[:n].sort().values
    return found[kept]
