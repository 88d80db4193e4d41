"""A linear classifier on a pretrained encoder, for text or images."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import SequenceClassifierOutput


class Classifier(nn.Module):
    """`head(pool(backbone(inputs)))`: a `backbone` of transformers, then a `Linear` to `n_classes`.

    `pool="mean"` takes the mean over the tokens that the mask keeps; for images the mean of the class token and the
    patches' mean, or over the places of a feature map. `pool="cls"` takes the first token. The head starts small, from
    `seed`. `width` is d_model, where the backbone's configuration does not say it. Trains in transformers' `Trainer`
    too.
    """

    def __init__(
        self,
        backbone: nn.Module,
        n_classes: int,
        pool: Literal["mean", "cls"] = "mean",
        *,
        seed: int = 0,
        width: int | None = None,
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes={n_classes}: a classifier needs at least 2")
        if pool not in ("mean", "cls"):
            raise ValueError(f"pool={pool!r}: use 'mean' or 'cls'")
        self.config = getattr(backbone, "config", None)
        self.backbone = backbone
        self.pool = pool
        width = (
            width
            or getattr(self.config, "hidden_size", None)
            or (getattr(self.config, "hidden_sizes", None) or [0])[-1]
        )
        if not width:
            raise ValueError(f"{type(backbone).__name__} does not say how wide its output is: pass width=")
        like = next(backbone.parameters())
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Linear(width, n_classes)
        nn.init.normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.head.to(like.device, like.dtype)
        self.train(backbone.training)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> SequenceClassifierOutput:
        """`.logits` (batch, n_classes), and `.loss`, mean cross-entropy, if `labels` (batch,) are given."""
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
        }
        features = self.embed(**{name: value for name, value in named.items() if value is not None}, **inputs)
        logits = self.head(features)
        loss = None if labels is None else cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def gradient_checkpointing_enable(self, *arguments: Any, **options: Any) -> None:
        """Recompute the backbone's activations in the backward pass, as `Trainer` asks for by name."""
        self.backbone.gradient_checkpointing_enable(*arguments, **options)  # type: ignore[operator]

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.backbone.gradient_checkpointing_disable()  # type: ignore[operator]

    def embed(self, **inputs: Any) -> Tensor:
        """The pooled features, (batch, d_model)."""
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.head.weight.dtype)
        # of a language model its inside, without the unembedding
        encoder: Any = getattr(self.backbone, "base_model", self.backbone)
        output = encoder(**inputs)
        hidden: Tensor = output if isinstance(output, Tensor) else output.last_hidden_state
        if hidden.ndim == 2:
            return hidden
        if hidden.ndim == 4:
            return hidden.mean((2, 3))
        if self.pool == "cls":
            return hidden[:, 0]
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            hidden = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            return hidden
        if "pixel_values" in inputs:
            return (hidden[:, 0] + hidden[:, 1:].mean(1)) / 2
        return hidden.mean(1)
