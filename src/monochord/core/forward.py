"""Run any model on a batch: what it takes of it, where its logits are, and the model inside its wrappers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Batch = Mapping[str, Any]


def run(model: nn.Module, batch: Batch) -> Any:
    """The model's forward on the tensors of a batch that it takes, without its labels.

    A batch without names for them (one tensor beside the labels) is passed by position. Encoder-decoders get
    their decoder's inputs from the labels.
    """
    inner = unwrap(model)
    inputs = {k: v for k, v in batch.items() if isinstance(v, Tensor) and k not in ("labels", "label")}
    if _is_seq2seq(inner) and "labels" in batch and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = inner.prepare_decoder_input_ids_from_labels(labels=batch["labels"])  # type: ignore[operator]
    parameters = inspect.signature(inner.forward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = {name: value for name, value in inputs.items() if name in parameters}
        if not known and len(inputs) == 1:
            return model(*inputs.values())
        inputs = known
    return model(**inputs)


def shifts(model: nn.Module) -> bool:
    """Whether position t predicts token t + 1: not in encoder-decoders, whose inputs are shifted already."""
    return not _is_seq2seq(unwrap(model))


def logits_of(outputs: Any) -> Tensor:
    """The logits of a model's output, whatever its form."""
    logits = getattr(outputs, "logits", None)
    if logits is None:
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
    return logits


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a compiled or data-parallel wrapper."""
    while isinstance(inner := getattr(model, "_orig_mod", getattr(model, "module", None)), nn.Module) and (
        hasattr(model, "_orig_mod") or "Parallel" in type(model).__name__
    ):
        model = inner
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode for a block; then every module's own mode is back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def _is_seq2seq(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
