"""A steering direction from examples: the difference of mean activations between two sets of texts.

From "Steering Llama 2 via Contrastive Activation Addition", December 9, 2023, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monochord.core.capture import capture


def contrast(model: nn.Module, toward: Sequence[str], away: Sequence[str], site: str, processor: Any) -> Tensor:
    """The direction (d_model,) at `site` from the mean over `away` to the mean over `toward`, each at its last token.

    `site` is one site of a language model, such as "blocks.12:out". Raises `ValueError` for a set without texts.
    """
    return _mean(model, toward, site, processor) - _mean(model, away, site, processor)


def _mean(model: nn.Module, texts: Sequence[str], site: str, processor: Any) -> Tensor:
    if not texts:
        raise ValueError("a contrast needs at least one text on each side")
    device = next(model.parameters()).device
    rows = []
    with torch.inference_mode(), capture(model, site) as acts:
        if len(acts) != 1:
            raise ValueError(f"{site} names {len(acts)} sites: name one")
        for text in texts:  # one at a time: no padding to mind
            model(**processor(text, return_tensors="pt").to(device))
            rows.append(next(iter(acts.values()))[0, -1].float())
    return torch.stack(rows).mean(0).clone()
