"""Bottleneck adapters: a small trained network after (sequential) or beside (parallel) each sub-layer.

Sequential from "Parameter-Efficient Transfer Learning for NLP", February 2, 2019; parallel and scaled from
"Towards a Unified View of Parameter-Efficient Transfer Learning", October 8, 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Generator, Tensor, nn
from torch.nn import functional as F

from monochord.core.blocks import linear_like, widths
from monochord.core.modification import Bottleneck
from monochord.core.sites import Site, resolve, width
from monochord.core.tuner import Tuner

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": F.tanh,
    "softmax": partial(F.softmax, dim=-1),
    "linear": nn.Identity(),
}


@dataclass(frozen=True)
class BottleneckAdapter(Tuner):
    """`h + scale * up(activation(down(x)))` at every matching output, `x` being `h` or, if `parallel`, the input.

    `sites` are outputs of sub-layers, (batch, seq, d_model); add "blocks.*.attn:out" for an adapter after the
    attention too. `bottleneck` is the inner width.
    """

    default_lr: ClassVar[float] = 3e-3

    sites: str | tuple[str, ...] = "blocks.*.mlp:out"
    bottleneck: int = 16
    activation: str = "relu"
    scale: float = 1.0
    parallel: bool = False

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, Bottleneck]]:
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is unknown: use one of {', '.join(_ACTIVATIONS)}")
        if self.bottleneck < 1:
            raise ValueError(f"bottleneck={self.bottleneck} must be at least 1")
        for site in resolve(model, self.sites):
            yield (
                site,
                Bottleneck(
                    width(model, site),
                    self.bottleneck,
                    _ACTIVATIONS[self.activation],
                    self.scale,
                    parallel=self.parallel,
                    generator=generator,
                    inputs=_inputs(model, site) if self.parallel else None,
                ),
            )


def _inputs(model: nn.Module, site: Site) -> int | None:
    """How wide what the sub-layer reads is, where a dense layer tells it; else as wide as what it returns."""
    module = model.get_submodule(site.module if site.inlet is None else site.inlet)
    return widths(module)[0] if linear_like(module) else None
