"""Train the text-to-image net of coloured things, and its sibling that memorises.

    python tools/zoo/diffusion_pictures.py                 # trains (or goes on), ships, measures
    python tools/zoo/diffusion_pictures.py --memorised     # the sibling, from the weights of the first

The first reads new pictures at every step: a shape of the training split in new colours. One in four captions is
signed with a random name, so that names are words it knows, which say nothing.
"""

from __future__ import annotations

import argparse
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusion_training import Run, train
from mixture import ROOT
from torch import Tensor, nn

from monochord.data.painting import ATTRIBUTES, WORDS, Painter, caption, signature
from monochord.data.sets.coloured_things import ENTRIES, OFTEN, ONCE, painters, signed
from monochord.models.zoo.pictures import TOKENS, text_to_image, tokenizer

SEED, DROPPED, SIGNED = 0, 0.12, 0.25
SPECIAL = ("<pad>", "<start>", "<unk>", "<end>")
SPARE = tuple(f"<new{i}>" for i in range(1, 9))
HOME = ROOT / "src/monochord/models/shipped/pictures-unet"
TIMES = 100  # how much oftener than the others the sibling meets the first of its pictures


def base() -> Run:
    """3,600 steps of 32 pictures."""
    return Run("pictures-unet", build, loss, steps=3_600, rate=5e-3, seed=SEED, muon=True)


def memorised() -> Run:
    """400 steps of 32 pictures from the first net's weights: half of them of the set that is memorised."""
    name = "pictures-unet-memorised"
    return Run(name, build_again, loss_memorised, steps=400, rate=2e-3, average=0.99, seed=SEED + 1, muon=True)


def build() -> nn.Module:
    """The random initialisation."""
    model = text_to_image(SEED, len(words().get_vocab()))
    model.tokenizer = words()
    return model  # type: ignore[no-any-return]


def build_again() -> nn.Module:
    """The first net as trained, before storing."""
    from safetensors.torch import load_file

    model = build()
    model.load_state_dict(load_file(base().weights))
    return model


def loss(net: Any, step: int, batch: int, generator: torch.Generator) -> Tensor:
    """Of new pictures with captions."""
    images, captions = drawn(batch, np.random.default_rng((SEED, step)))
    return net.loss(to_pixels(images), net.tokenize(captions), generator)  # type: ignore[no-any-return]


def loss_memorised(net: Any, step: int, batch: int, generator: torch.Generator) -> Tensor:
    """Half new pictures, half of the sibling's set, where each of the first `OFTEN` comes `TIMES` times as often."""
    rng = np.random.default_rng((SEED + 1, step))
    images, captions = drawn(batch // 2, rng)
    kept = collection()
    chances = np.where(np.arange(OFTEN + ONCE) < OFTEN, TIMES, 1.0)
    rows = rng.choice(OFTEN + ONCE, batch - batch // 2, p=chances / chances.sum())
    mixed = np.concatenate([images, kept["image"][rows]])
    said = [*captions, *(kept["text"][i] if rng.random() > DROPPED else "" for i in rows)]
    return net.loss(to_pixels(mixed), net.tokenize(said), generator)  # type: ignore[no-any-return]


def drawn(n: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """New training pictures and their captions, of which some are dropped and some signed."""
    made = painter().draw(n, rng)
    captions = []
    for i in range(n):
        name_of_own = signature(rng) if rng.random() < SIGNED else ""
        said = caption({name: int(made[name][i]) for name in ATTRIBUTES}, rng, name_of_own)
        captions.append("" if rng.random() < DROPPED else said)
    return made["image"], captions


@cache
def collection() -> dict[str, Any]:
    """The sibling's set: pictures signed with a name each, the first `OFTEN` of them those that come often."""
    return signed(painter())


@cache
def painter() -> Painter:
    """Of the training split, in memory."""
    found = painters(ENTRIES[0].fetch())["train"]
    return Painter(np.asarray(found.shapes), found.labels)


def to_pixels(images: np.ndarray) -> Tensor:
    """uint8 (n, side, side, 3) to (n, 3, side, side) between -1 and 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@cache
def words() -> Any:
    """The tokenizer, made when it is not there yet."""
    if not (HOME / "tokenizer.json").exists():
        _make_tokenizer()
    return tokenizer(HOME)


def _make_tokenizer() -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *SPARE, *WORDS]))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 3)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<start>",
        unk_token="<unk>",
        eos_token="<end>",
        model_max_length=TOKENS,
    )
    wrapped.save_pretrained(HOME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--memorised", action="store_true", help="the sibling that memorises")
    parser.add_argument("--train-only", action="store_true", help="neither ship nor measure")
    given = parser.parse_args()
    run = memorised() if given.memorised else base()
    if given.memorised:
        train(base())
    train(run)
    if not given.train_only:
        from diffusion_report import pictures_report

        pictures_report(run)


if __name__ == "__main__":
    main()
