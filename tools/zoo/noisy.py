"""Train one small ResNet five times, on labels of which 0, 5, 10, 20 and 30 % are wrong.

    python tools/zoo/noisy.py --percent 10     # trains (or goes on), ships, measures; without --percent all five

As in "Understanding and Mitigating the Label Noise in Pre-training on Downstream Tasks", September 29, 2023: a wrong
label is any other class, equally likely. Everything else is the same for all five: pictures, their order, random
start, steps. A label that is wrong at 5 % is wrong, and the same, at all higher levels.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch
from classify import Net, Part, train
from pictures import part, pictures
from safetensors.torch import load_file
from torch import Tensor, nn

from monochord.models.shipped import initialised

SEED = 0
PERCENTS = (0, 5, 10, 20, 30)
TAKEN = {"fashion-mnist": (5000, 1), "mnist": (5000, 1), "emoji": (1529, 2)}  # pictures, times in an epoch


def net(percent: int) -> Net:
    """A ResNet of six basic blocks, 32 to 112 channels, 800 steps of 128 pictures."""
    return Net(f"noisy-cnn-{percent}", resnet, partial(parts, percent), steps=800, rate=2e-3, bfloat16=True)


def parts(percent: int) -> dict[str, Part]:
    """Clothes, digits and emoji as one set of thirty classes."""
    return {"pictures": merged(percent)[0]}


def names() -> tuple[str, ...]:
    """The thirty classes."""
    digit = {"mnist": "digit "}
    return tuple(digit.get(name, "") + label for name in TAKEN for label in pictures(name).label_names)


def merged(percent: int, split: str = "train") -> tuple[Part, np.ndarray]:
    """The set with wrong labels, and the right labels; of a test split the first 1,000 of each source, once."""
    sources = {name: part(name, 1, split) for name in TAKEN}
    labels, places, first = [], [], 0
    for number, (name, (most, times)) in enumerate(TAKEN.items()):
        source = sources[name]
        count = most if split == "train" else min(1000, len(source.labels))
        for _ in range(times if split == "train" else 1):
            labels.append(source.labels[:count] + first)
            places.append(np.stack([np.full(count, number), np.arange(count)], 1))
        first += len(source.names)
    right, where = np.concatenate(labels), np.concatenate(places)
    inputs = partial(_inputs, list(sources.values()), where)
    return Part(names(), with_noise(right, where, percent, first), inputs, 128), right


def with_noise(labels: np.ndarray, where: np.ndarray, percent: int, n_classes: int) -> np.ndarray:
    """`percent` of the pictures get another class, drawn evenly from all others; a repeated picture gets the same."""
    generator = np.random.default_rng(SEED)
    _, first, same = np.unique(where, axis=0, return_index=True, return_inverse=True)
    chance, other = generator.random(len(first)), generator.integers(1, n_classes, len(first))
    noisy = np.where(chance < percent / 100, (labels[first] + other) % n_classes, labels[first])
    return np.asarray(noisy[same.ravel()], np.int64)


def _inputs(sources: list[Part], where: np.ndarray, items: np.ndarray, generator: np.random.Generator | None) -> Tensor:
    out: Tensor | None = None
    for number, source in enumerate(sources):
        own = np.flatnonzero(where[items, 0] == number)
        if len(own):
            pixels = source.inputs(where[items[own], 1], generator)
            out = pixels.new_empty((len(items), *pixels.shape[1:])) if out is None else out
            out[torch.from_numpy(own)] = pixels
    assert out is not None
    return out


def resnet() -> nn.Module:
    """The random initialisation."""
    from transformers import ResNetConfig

    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 112],
        depths=[2, 2, 2],
        layer_type="basic",
        num_labels=len(names()),
        architectures=["ResNetForImageClassification"],
    )
    return initialised(config, SEED).to(memory_format=torch.channels_last)


def measure(percent: int) -> None:
    """Ship and measure: test pictures of each source, and what became of right and wrong labels in training."""
    from classified import outputs, ship_and_measure

    test, _ = merged(0, "test")
    model = net(percent).build()
    model.load_state_dict(load_file(net(percent).weights))
    part, right = merged(percent)
    said = outputs(model.eval(), part, "pixel_values").argmax(1).numpy()
    wrong = part.labels != right
    training = {
        "wrong_labels": round(float(wrong.mean()), 4),
        "right_class_of_rightly_labelled": round(float((said == right)[~wrong].mean()), 4),
        "right_class_of_wrongly_labelled": round(float((said == right)[wrong].mean()), 4) if percent else None,
        "wrong_label_learnt": round(float((said == part.labels)[wrong].mean()), 4) if percent else None,
    }
    ship_and_measure(net(percent), {"thirty classes": ("pictures", test)}, training_pictures=training)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--percent", type=int, choices=PERCENTS)
    parser.add_argument("--train-only", action="store_true", help="neither ship nor measure")
    given = parser.parse_args()
    for percent in PERCENTS if given.percent is None else (given.percent,):
        train(net(percent))
        if not given.train_only:
            measure(percent)


if __name__ == "__main__":
    main()
