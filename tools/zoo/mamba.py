"""Train a Mamba-2 language model of the size of the ladder's 1M model, on the same rows in the same order.

    python tools/zoo/mamba.py

Mamba-2, since transformers computes it in chunks; the first Mamba's scan runs token by token there, and its
backward pass is thirty times slower on a CPU.
"""

from __future__ import annotations

import argparse

from mixture import VOCABULARY
from pretrain import Net, train
from torch import nn

from monochord.models.shipped import initialised

SEED = 0


def net() -> Net:
    """As long as the ladder: 3.07 million tokens."""
    return Net("mamba-1m", model, rate=3e-3, checkpoints=1)


def model() -> nn.Module:
    """The random initialisation."""
    from transformers import Mamba2Config

    config = Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=6,
        state_size=32,
        expand=2,
        head_dim=32,
        num_heads=8,
        n_groups=1,
        chunk_size=32,
        initializer_range=0.053,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        architectures=["Mamba2ForCausalLM"],
    )
    return initialised(config, SEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--train-only", action="store_true", help="neither ship nor measure")
    train(net())
    if not parser.parse_args().train_only:
        from report import ship_and_measure

        ship_and_measure(net())


if __name__ == "__main__":
    main()
