"""What a selector leaves of a tensor: which heads, units, tokens of each example, calls and steps.

Tokens are counted over real tokens, so padding on either side and a key-value cache change nothing: token 3
is the fourth real token of an example wherever it stands, and -1 its newest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from monochord.core.pattern import Index, Selector, SiteError, contains, select
from monochord.core.ports import Call
from monochord.core.sites import Site


def needs_call(selector: Selector) -> bool:
    """Whether the selector depends on the running forward, so that a `Call` has to follow it."""
    return any(x is not None for x in (selector.tokens, selector.steps, selector.call, selector.role))


def active(site: Site, call: Call | None) -> bool:
    """Whether the site is meant in this step and call."""
    selector = site.selector
    if call is None or not needs_call(selector):
        return True
    if selector.call is not None and not contains(selector.call, call.number(site)):
        return False
    return selector.steps is None or contains(selector.steps, call.step)


def take(value: Tensor, site: Site, call: Call | None) -> Tensor:
    """The selected part of `value`.

    Heads and units narrow their axis. With as many tokens in every example the result is (batch, tokens, ...),
    otherwise the selected tokens of all examples one after the other, (tokens, ...).
    """
    value = _narrow(value, site)
    mask = _tokens(value, site, call)
    if mask is None:
        return value
    axis = _axis(site, "tokens", value)
    rows = value.movedim(axis, 1)
    counts = mask.sum(1)
    picked = rows[mask]
    if bool((counts == counts[0]).all()):
        return picked.unflatten(0, (mask.shape[0], int(counts[0]))).movedim(1, axis)
    return picked


def put(value: Tensor, site: Site, call: Call | None, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`value` with `change` applied to the selected part, as a new tensor."""
    return _put(value, site, call, change, [w for w in ("heads", "units") if getattr(site.selector, w) is not None])


def _put(value: Tensor, site: Site, call: Call | None, change: Callable[[Tensor], Tensor], axes: list[str]) -> Tensor:
    if axes:
        axis, positions = _positions(value, site, axes[0])
        part = value.index_select(axis, positions)
        return value.index_copy(axis, positions, _put(part, site, call, change, axes[1:]))
    mask = _tokens(value, site, call)
    if mask is None:
        return change(value).to(value.dtype)
    part = take(value, replace(site, selector=replace(site.selector, heads=None, units=None)), call)
    if part.numel() == 0:
        return value
    axis = _axis(site, "tokens", value)
    new = change(part).to(value.dtype)
    rows = value.movedim(axis, 1).clone()
    rows[mask] = new.movedim(axis, 1).flatten(0, 1) if new.dim() == value.dim() else new
    return rows.movedim(1, axis)


def _narrow(value: Tensor, site: Site) -> Tensor:
    for what in ("heads", "units"):
        if getattr(site.selector, what) is not None:
            value = value.index_select(*_positions(value, site, what))
    return value


def _positions(value: Tensor, site: Site, what: str) -> tuple[int, Tensor]:
    """The axis of heads or units and the selected positions on it."""
    axis, index = _axis(site, what, value), getattr(site.selector, what)
    try:
        return axis, torch.tensor(select(index, value.shape[axis]), dtype=torch.long, device=value.device)
    except SiteError as error:
        raise SiteError(f"{site}: {error}") from None


def _axis(site: Site, what: str, value: Tensor) -> int:
    """The axis of heads, units or tokens: maps (batch, channels, ...) have units second and no tokens."""
    attention = site.port in ("pattern", "scores")
    if what == "heads":
        if not attention and site.port != "heads":
            raise SiteError(f"{site}: only :heads, :pattern and :scores have heads to select")
        return 1 if attention else 2
    if what == "units":
        if attention:
            raise SiteError(f"{site}: attention {site.port} have no units to select")
        return 1 if value.dim() == 4 and site.port != "heads" else value.dim() - 1
    if value.dim() < 3 or (value.dim() == 4 and site.port not in ("heads", "pattern", "scores")):
        raise SiteError(f"{site}: a tensor of shape {tuple(value.shape)} has no token axis to select from")
    return 2 if attention else 1


def _tokens(value: Tensor, site: Site, call: Call | None) -> Tensor | None:
    """Which tokens are meant, (batch, seq) of bool; None for all of them."""
    selector = site.selector
    if selector.tokens is None and selector.role is None:
        return None
    assert call is not None
    batch, seq = value.shape[0], value.shape[_axis(site, "tokens", value)]
    past, mask = call.past(site), call.mask(site)
    if mask is None or mask.shape[1] != past + seq:
        mask = torch.ones(batch, past + seq, dtype=torch.bool, device=value.device)
    real = mask.to(value.device).bool()
    if real.shape[0] != batch:
        real = real.expand(batch, -1)
    chosen = real[:, past:].clone()
    if selector.tokens is not None:
        position = real.long().cumsum(1) - 1
        total = real.sum(1, keepdim=True)
        chosen &= _member(selector.tokens, position, total)[:, past:]
    if selector.role is not None:
        missing = [r for r in selector.role if r not in call.roles]
        if missing:
            known = ", ".join(call.roles) or "none were given"
            raise SiteError(
                f"{site}: no mask for role {missing[0]!r} ({known}): pass roles={{name: (batch, seq) mask}}"
            )
        spoken = torch.stack([call.roles[r].to(value.device).bool() for r in selector.role]).any(0)
        chosen &= _columns(spoken, past, seq)
    return chosen


def _columns(mask: Tensor, past: int, seq: int) -> Tensor:
    """The columns of this forward; tokens that came after the masks were made belong to no role."""
    padded = torch.nn.functional.pad(mask, (0, max(past + seq - mask.shape[1], 0)))
    return padded[:, past : past + seq]


def _member(index: Index, position: Tensor, total: Tensor) -> Tensor:
    """Whether each position is named by `index`, negative numbers counted from each example's own end."""
    chosen = torch.zeros_like(position, dtype=torch.bool)
    for item in index:
        if not isinstance(item, tuple):
            chosen |= position == (item if item >= 0 else total + item)
            continue
        start, stop, step = item[0] or 0, item[1], item[2] or 1
        first = total + start if start < 0 else torch.full_like(total, start)
        last = total if stop is None else (total + stop if stop < 0 else torch.full_like(total, stop))
        chosen |= (position >= first) & (position < last) & ((position - first) % step == 0)
    return chosen
