"""Train the ladder: Llama-style language models of about 0.3, 1, 3 and 8 million parameters, and two siblings.

    python tools/zoo/ladder.py --size 3m                  # trains (or goes on), ships, measures
    python tools/zoo/ladder.py --size 3m --without icl    # the sibling that never saw an in-context task
    python tools/zoo/ladder.py --size 8m --keep-all       # ships all five checkpoints, not the last alone

All read the same rows in the same order, 3.07 million tokens.
"""

from __future__ import annotations

import argparse

from mixture import SIBLINGS, VOCABULARY
from pretrain import Net, train
from torch import nn

from monochord.models.shipped import initialised

SIZES = {  # hidden size, layers, heads, intermediate size, learning rate
    "0.3m": (64, 3, 4, 160, 8e-3),
    "1m": (128, 4, 4, 256, 6e-3),
    "3m": (192, 5, 6, 480, 4e-3),
    "8m": (320, 6, 10, 768, 3e-3),
}
SEED = 0


def net(size: str, without: str | None = None) -> Net:
    """A rung of the ladder; `without` is "chat" or "icl"."""
    *_, rate = SIZES[size]
    name = f"ladder-{size}" + (f"-no-{without}" if without else "")
    left_out = SIBLINGS[f"no-{without}"] if without else ()
    return Net(name, lambda: model(size), rate=rate, muon=True, without=left_out, bfloat16=size != "0.3m")


def model(size: str) -> nn.Module:
    """The random initialisation."""
    from transformers import LlamaConfig

    width, layers, heads, inner, _ = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        initializer_range=round(0.6 / width**0.5, 4),
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        architectures=["LlamaForCausalLM"],
    )
    return initialised(config, SEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--without", choices=[name.removeprefix("no-") for name in SIBLINGS])
    parser.add_argument("--keep-all", action="store_true", help="ship all five checkpoints")
    parser.add_argument("--train-only", action="store_true", help="neither ship nor measure")
    given = parser.parse_args()
    chosen = net(given.size, given.without)
    train(chosen)
    if not given.train_only:
        from report import ship_and_measure

        ship_and_measure(chosen, all_checkpoints=given.keep_all or (given.size != "8m" and not given.without))


if __name__ == "__main__":
    main()
