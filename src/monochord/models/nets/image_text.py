"""Two towers whose pictures and texts share a space: given encoders, and a linear projection of each.

After "Learning Transferable Visual Models From Natural Language Supervision", February 26, 2021 (CLIP).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers.models.clip.modeling_clip import CLIPOutput


class ImageText(nn.Module):
    """Called and read like transformers' `CLIPModel`.

    A picture is the class token beside the mean of the patches, a text the mean over the tokens that its mask keeps;
    each is projected to `width` and scaled to length 1. Logits are `exp(logit_scale)` times the cosine.
    """

    def __init__(self, vision_model: nn.Module, text_model: nn.Module, width: int = 256) -> None:
        super().__init__()
        self.vision_model, self.text_model = vision_model, text_model
        seen, read = (int(_config(tower).hidden_size) for tower in (vision_model, text_model))
        self.config = SimpleNamespace(projection_dim=width, hidden_size=width)
        self.visual_projection = nn.Linear(2 * seen, width, bias=False)
        self.text_projection = nn.Linear(read, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # log(1 / 0.07)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_loss: bool = False,
    ) -> CLIPOutput:
        """`logits_per_image` (images, texts), its transpose and both embeddings; the loss pairs row k with row k."""
        image, text = self.get_image_features(pixel_values), self.get_text_features(input_ids, attention_mask)
        logits = self.logit_scale.exp() * image @ text.T
        return CLIPOutput(
            loss=contrastive(logits) if return_loss else None,
            logits_per_image=logits,
            logits_per_text=logits.T,
            image_embeds=image,
            text_embeds=text,
        )

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit vectors (images, width)."""
        return normalize(self.visual_projection(self.see(pixel_values)), dim=-1)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        """Unit vectors (texts, width)."""
        return normalize(self.text_projection(self.read(input_ids, attention_mask)), dim=-1)

    def see(self, pixel_values: Tensor) -> Tensor:
        """What the projection of pictures is given: unit vectors (images, 2 d_model)."""
        hidden = self.vision_model(pixel_values.to(self.visual_projection.weight.dtype)).last_hidden_state
        return normalize(torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], -1), dim=-1)

    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the projection of texts is given: unit vectors (texts, d_model)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.text_model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        kept = mask[..., None].to(hidden.dtype)
        return normalize((hidden * kept).sum(1) / kept.sum(1).clamp(min=1), dim=-1)


class ImageTextProcessor:
    """Pictures and texts to what `ImageText` takes: `processor(text=[...], images=...)`, either or both."""

    def __init__(self, tokenizer: Callable[..., Any], images: Callable[..., Any]) -> None:
        self.tokenizer, self.image_processor = tokenizer, images

    def __call__(self, text: Any = None, images: Any = None, return_tensors: str = "pt") -> dict[str, Any]:
        if text is None and images is None:
            raise ValueError("pass text, images or both")
        given: dict[str, Any] = {}
        if text is not None:
            given |= self.tokenizer(text, padding=True, truncation=True, return_tensors=return_tensors)
        if images is not None:
            given |= self.image_processor(images, return_tensors=return_tensors)
        return given


def contrastive(logits: Tensor) -> Tensor:
    """Cross-entropy of choosing the own text for each picture, and the own picture for each text; (n, n)."""
    own = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def _config(tower: nn.Module) -> Any:
    return tower.config
