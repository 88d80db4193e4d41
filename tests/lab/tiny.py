"""A task small enough for tests: which of two tokens is in the sentence, and a random BERT to learn it."""

import torch
import transformers
from torch import nn


def model(seed=0):
    """Two blocks of width 16; text in, hidden states out."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def language_model(seed=0):
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    ).eval()


def batches(n=12, size=8, labelled=True, seed=0):
    """Batches of 6 tokens; the label says whether token 30 or 31 is among them."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        ids = torch.randint(1, 20, (size, 6), generator=generator)
        labels = torch.arange(size) % 2
        ids[:, 2] = 30 + labels
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        made.append({**batch, "labels": labels if labelled else ids.clone()})
    return made


def classifier():
    """A plain module: numbers in, logits out."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
