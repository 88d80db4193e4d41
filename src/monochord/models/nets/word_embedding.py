"""A text as the mean of its tokens' vectors."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor, nn


class WordEmbedding(nn.Module):
    """`input_ids` and `attention_mask` (batch, seq) to the mean vector (batch, 256); without a mask all count."""

    def __init__(self, vocabulary: int = 32_000, width: int = 256) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=width, vocab_size=vocabulary)
        self.embedding = nn.Embedding(vocabulary, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **ignored: Tensor) -> Tensor:
        vectors: Tensor = self.embedding(input_ids)
        if attention_mask is None:
            return vectors.mean(dim=1)
        mask = attention_mask.unsqueeze(-1).to(vectors.dtype)
        return (vectors * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
