"""How much fine-tuning contributed to one answer, and running a model with more or less of it.

From "TuCo: Measuring the Contribution of Fine-Tuning to Individual Responses of LLMs", June 29, 2025. Every block of
the tuned model is run twice on the same state: what the base's block adds there is the pre-training's part, the rest
is the tuning's. Sums over blocks at the last token, compared by their L1 norms, give a number between 0 and 1; scaling
the tuning's part at every block steers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core.ports import first_tensor, replace_first
from monochord.core.sites import resolve
from monochord.core.tuner import Tuned


@dataclass(frozen=True)
class TucoResult:
    """`tuco` (batch,), and `by_block` (blocks, batch): the same ratio of the sums up to each block.

    `pretraining` and `tuning` (batch, d_model) are the summed parts at the last token, in float32.
    """

    tuco: Tensor
    by_block: Tensor
    pretraining: Tensor
    tuning: Tensor

    @property
    def preco(self) -> Tensor:
        """The pre-training's share, `1 - tuco`."""
        return 1 - self.tuco


def tuco(tuned: nn.Module | Tuned, base: nn.Module | None, batch: Mapping[str, Any]) -> TucoResult:
    """Run `batch` through the tuned model and compare what base and tuning put into its last tokens.

    `base` is a model of the same architecture, or None where `tuned` is an attached tuner: then the base is the model
    with the tuner switched off, without a second copy. Padding is minded by the batch's `attention_mask`.
    """
    model = _model(tuned)
    with torch.inference_mode(), _paired(tuned, base, 1.0) as parts:
        model(**{**batch, "use_cache": False})
    last = _last(batch)
    rows = torch.arange(len(last), device=last.device)
    before, after = ([part[rows, last].float() for part in kept] for kept in (parts.pretraining, parts.tuning))
    first, second = torch.stack(before).cumsum(0), torch.stack(after).cumsum(0)  # (blocks, batch, d_model)
    own, whole = second.abs().sum(-1), first.abs().sum(-1) + second.abs().sum(-1)
    ratio = own / whole.clamp(min=torch.finfo(torch.float32).tiny)
    return TucoResult(ratio[-1], ratio, first[-1], second[-1])


@contextmanager
def scaled_tuning(tuned: nn.Module | Tuned, base: nn.Module | None, alpha: float) -> Iterator[None]:
    """The model with `alpha` times the tuning's part at every block and token.

    At 1 it is the tuned model, at 0 it has the base's blocks; embedding and head stay those of the tuned model. Works
    under `generate` with a cache.
    """
    with _paired(tuned, base, alpha, keep=False):
        yield


@dataclass
class _Parts:
    """What each block added, in order, as (batch, seq, d_model)."""

    pretraining: list[Tensor] = field(default_factory=list)
    tuning: list[Tensor] = field(default_factory=list)


@contextmanager
def _paired(tuned: nn.Module | Tuned, base: nn.Module | None, alpha: float, keep: bool = True) -> Iterator[_Parts]:
    """Inside, every block of the model also runs as the base's, on the same input."""
    model, parts = _model(tuned), _Parts()
    own = [site.module for site in resolve(model, "blocks.*:out")]
    if base is None:
        if not isinstance(tuned, Tuned):
            raise ValueError("without a base the tuned model must be an attached tuner, such as LoRA().attach(model)")
        shadows = [model.get_submodule(name) for name in own]
    else:
        others = [site.module for site in resolve(base, "blocks.*:out")]
        if len(others) != len(own):
            raise ValueError(f"the base has {len(others)} blocks, the tuned model {len(own)}: they must be of one kind")
        shadows = [base.get_submodule(name) for name in others]
    off = tuned.disabled if base is None and isinstance(tuned, Tuned) else nullcontext
    caches = _Caches()
    hooks = [_Block(shadow, off, caches, parts if keep else None, alpha) for shadow in shadows]
    handles = [
        model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
        for name, hook in zip(own, hooks, strict=True)
    ]
    try:
        yield parts
    finally:
        for handle in handles:
            handle.remove()


class _Caches:
    """The base blocks' own keys and values along the tuned model's states."""

    def __init__(self) -> None:
        self._cache: Any = None
        self._of: Any = None

    def beside(self, theirs: Any) -> Any:
        from transformers import DynamicCache

        if theirs is not self._of:
            self._cache, self._of = DynamicCache(), theirs
        return self._cache


class _Block:
    """Splits a block's output and puts it together again with `alpha` times the tuning's part."""

    def __init__(self, shadow: nn.Module, off: Any, caches: _Caches, parts: _Parts | None, alpha: float) -> None:
        self.shadow, self.off, self.caches, self.parts, self.alpha = shadow, off, caches, parts, alpha
        self.inside = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self.inside:  # the base's run of a model that is its own base
            return None
        own = dict(kwargs)
        for name in ("past_key_values", "past_key_value", "layer_past"):
            if own.get(name) is not None:
                own[name] = self.caches.beside(own[name])
        self.inside = True
        try:
            context: AbstractContextManager[Any] = self.off()
            with context:
                base = first_tensor(self.shadow(*args, **own))
        finally:
            self.inside = False
        before = args[0] if args else kwargs["hidden_states"]
        after = first_tensor(output)
        if self.parts is not None:
            self.parts.pretraining.append((base - before).detach())
            self.parts.tuning.append((after - base).detach())
        return None if self.alpha == 1.0 else replace_first(output, base + self.alpha * (after - base))


def _model(tuned: nn.Module | Tuned) -> nn.Module:
    return tuned.model if isinstance(tuned, Tuned) else tuned


def _last(batch: Mapping[str, Any]) -> Tensor:
    """The place of each row's last real token."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    if mask is None:
        return torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
    places = torch.arange(mask.shape[1], device=mask.device)
    last: Tensor = (mask * places).argmax(1)
    return last
