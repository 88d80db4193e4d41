"""A low-rank change of one layer as PEFT stores it: its two factors under PEFT's names and in its shapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monochord.core.blocks import kind, owned
from monochord.core.changes import LowRank
from monochord.core.layers import layer_of
from monochord.core.sites import Site

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check_layer(model: nn.Module, site: Site, change: LowRank) -> None:
    """Raise `ValueError` unless PEFT has LoRA for this layer that computes the same."""
    module = model.get_submodule(site.module)
    owner = model.get_submodule(site.module.rpartition(".")[0])
    plain = isinstance(module, (nn.Linear, nn.Embedding, *CONVOLUTIONS)) or kind(module) == "Conv1D"
    if not plain or layer_of(module, site.parameter, owner) is None:
        raise unknown(f"a change of {site}", "it has Linear, Embedding, Conv1D and convolutions")
    if isinstance(module, CONVOLUTIONS) and (
        module.groups != 1 or set(module.dilation) != {1} or module.padding_mode != "zeros"
    ):
        raise unknown(f"a change of {site}", "its convolutions are not grouped, dilated or padded otherwise than by 0")
    if hasattr(change, "magnitude") and isinstance(module, nn.Embedding):
        raise unknown(f"a DoRA change of the rows of {site}", "its DoRA scales the columns of an embedding")


def joined(model: nn.Module, changes: list[tuple[Site, LowRank]]) -> tuple[Tensor, Tensor, float]:
    """Changes of slices of one weight as a change of the whole: down (rank, ...), up (outputs, rank) and scale."""
    scale = changes[0][1].scale
    if len(changes) == 1 and changes[0][0].rows is None:
        return changes[0][1].down.detach(), changes[0][1].up.detach(), scale
    weight = owned(model.get_submodule(changes[0][0].module), "weight")
    outputs = weight.shape[1] if changes[0][0].transposed else weight.shape[0]
    ups = []
    for site, change in changes:
        whole = change.up.new_zeros(outputs, change.up.shape[1])
        whole[slice(None) if site.rows is None else list(site.rows)] = change.up.detach() * (change.scale / scale)
        ups.append(whole)
    return torch.cat([change.down.detach() for _, change in changes]), torch.cat(ups, 1), scale


def factors(model: nn.Module, path: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """The two factors under PEFT's names and in its shapes."""
    module = model.get_submodule(path)
    if isinstance(module, nn.Embedding):
        return {"lora_embedding_A": up.t(), "lora_embedding_B": down.t()}
    return {"lora_A.weight": down, "lora_B.weight": up.reshape(*up.shape, *(1,) * (down.dim() - 2))}


def magnitude(model: nn.Module, changes: list[tuple[Site, LowRank]]) -> Tensor | None:
    """DoRA's lengths of all rows of a weight; those outside of the slices that are tuned keep theirs."""
    if not hasattr(changes[0][1], "magnitude"):
        return None
    site = changes[0][0]
    module = model.get_submodule(site.module)
    weight = owned(module, "weight").detach()
    rows = (weight.t() if site.transposed else weight).flatten(1).float()
    found = torch.linalg.vector_norm(rows, dim=1)
    for site, change in changes:
        found[slice(None) if site.rows is None else list(site.rows)] = change.magnitude.detach()  # type: ignore[operator]
    return found.reshape(1, -1, *(1,) * (weight.dim() - 2)) if isinstance(module, CONVOLUTIONS) else found


def unknown(what: str, hint: str) -> ValueError:
    return ValueError(f"PEFT's LoRA folder has no equivalent for {what}: {hint}, or save in our own format")
