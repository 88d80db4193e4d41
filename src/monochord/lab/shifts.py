"""Problems whose test is not like what is learnt from, with small nets for them and one way to train these.

    rows = clothes({"texture": 0.95}, {"border": 0.9}, sizes, seed)     # pictures with cues that mislead
    rows["pretraining"], rows["train"], rows["validation"], rows["test"], rows["ood"]
    parts = texts({"train": 200, "validation": 80, "test": 200}, seed)  # how positive sentences of four kinds are
    known, unseen = without(parts["train"], 0), only(parts["test"], 0)

Rows are tensors by name, "labels" among them; they are small enough to be held whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from monochord.core.capture import capture
from monochord.core.fit import fit
from monochord.core.objective import Objective
from monochord.data import data
from monochord.data.spurious import spurious_images
from monochord.lab.problem import copied
from monochord.models import processor

KINDS = ("tweets", "movies", "products", "news")
PART = 250  # rows of one forward pass that learns nothing
Rows = Mapping[str, Tensor]
Made = TypeVar("Made", bound=nn.Module)


def clothes(
    pretraining: Mapping[str, float], finetuning: Mapping[str, float], sizes: Mapping[str, int], seed: int
) -> dict[str, Rows]:
    """The splits of `spurious_images` of clothes: pixels from -1 to 1, (n, 3, 32, 32), and labels."""
    own = data("fashion-mnist")
    made = spurious_images(own, pretraining=pretraining, finetuning=finetuning, sizes=sizes, seed=seed)
    return {
        name: {"pixel_values": torch.from_numpy(split["image"]).permute(0, 3, 1, 2) / 127.5 - 1,
               "labels": torch.from_numpy(split["label"])}
        for name, split in made.splits.items()
    }  # fmt: skip


def texts(sizes: Mapping[str, int], seed: int) -> dict[str, Rows]:
    """Tokens for MiniLM and values from -4 to 4, (kinds, n, ...) each; the rows of "test" are the first of theirs."""
    tokenizer, rng = processor("minilm"), np.random.default_rng((seed, 3))
    parts: dict[str, Rows] = {}
    for part, n in sizes.items():
        made = []
        for kind in KINDS:
            split = data("sentiment-scores", source=kind)[part]
            chosen = split.take(np.arange(n) if part == "test" else rng.permutation(len(split))[:n])
            tokens = tokenizer(list(chosen["text"]), padding="max_length", truncation=True, max_length=32,
                               return_tensors="pt")  # fmt: skip
            made.append({**tokens, "labels": torch.tensor(np.asarray(chosen["value"], np.float32))})
        parts[part] = {name: torch.stack([own[name] for own in made]) for name in made[0]}
    return parts


def without(rows: Rows, kind: int) -> dict[str, Tensor]:
    """The rows of all kinds but one."""
    return {name: torch.cat([value[:kind], value[kind + 1 :]]).flatten(0, 1) for name, value in rows.items()}


def only(rows: Rows, kind: int) -> dict[str, Tensor]:
    """The rows of one kind."""
    return {name: value[kind] for name, value in rows.items()}


class Convolutions(nn.Module):
    """Convolutions that halve the sides; the mean over pixels after the last, (batch, width)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.ReLU())
            for a, b in pairwise((3, *widths))
        )

    def forward(self, pixel_values: Tensor, **_: Any) -> Tensor:
        x = pixel_values
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))


@cache
def minilm() -> Any:
    """MiniLM, frozen, which all may read."""
    return copied("minilm").eval().requires_grad_(False)


class Words(nn.Module):
    """Vectors of words as MiniLM has them, a convolution over three of them, and its largest values, (batch, 48)."""

    def __init__(self) -> None:
        super().__init__()
        self.three = nn.Conv1d(384, 48, 3, padding=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        with torch.no_grad():
            vectors = F.layer_norm(minilm().get_input_embeddings()(input_ids), (384,)) * attention_mask[..., None]
        return F.relu(self.three(vectors.transpose(1, 2))).amax(-1)


class LastBlock(nn.Module):
    """MiniLM's last block over the `hidden` states `before_last`, and their mean, (batch, 384)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([copy.deepcopy(minilm().encoder.layer[-1]).requires_grad_(True)])

    def forward(self, hidden: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        states: Tensor = self.blocks[0](hidden, attention_mask=attention_mask[:, None, None].bool())
        return (states * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)


def before_last(rows: Rows) -> Tensor:
    """States of all tokens before MiniLM's last block, (kinds, n, tokens, 384)."""
    found = []
    for ids, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True):
        with torch.no_grad(), capture(minilm(), "blocks.4:out") as states:
            minilm()(input_ids=ids, attention_mask=mask)
        found.append(states["blocks.4:out"])
    return torch.stack(found)


class Headed(nn.Module):
    """A trunk and a linear head, drawn by the seed; `layers` as a `LayerEnsemble` has them, of one layer."""

    def __init__(self, trunk: Callable[[], nn.Module], width: int, outputs: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk, self.head = trunk(), nn.Linear(width, outputs)

    def forward(self, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(**inputs))
        return logits

    def layers(self, **inputs: Tensor) -> Tensor:
        return self.forward(**inputs)[None]


def best_of(
    train: Rows, make: Callable[[], Made], objective: Objective, rates: Sequence[float],
    score: Callable[[Made], float] | None = None, *, steps: int, batch: int, seed: int,
) -> Made:  # fmt: skip
    """`make()` trained at each rate, always on the same batches: the one with the best score."""
    numbers: Any = range(len(train["labels"]))
    loader: Any = DataLoader(numbers, min(batch, len(numbers)), shuffle=True, drop_last=True,
                             collate_fn=lambda chosen: {name: v[chosen] for name, v in train.items()})  # fmt: skip
    models: list[Made] = []
    for rate in rates:
        model = make()
        fit(model, loader, objective, steps=steps, lr=rate, weight_decay=1e-2, schedule="linear", warmup=0.1,
            seed=seed, progress=False, device="cpu")  # fmt: skip
        models.append(model.eval())
    return max(models, key=score) if score else models[0]


def predicted(model: Callable[..., Tensor], rows: Rows) -> Tensor:
    """What the model says of all rows."""
    inputs = {name: torch.split(value, PART) for name, value in rows.items() if name != "labels"}
    parts: Iterable[tuple[Tensor, ...]] = zip(*inputs.values(), strict=True)
    with torch.inference_mode():
        return torch.cat([model(**dict(zip(inputs, part, strict=True))) for part in parts])


def accuracy(model: Callable[..., Tensor], rows: Rows) -> float:
    """In per cent."""
    return 100 * float((predicted(model, rows).argmax(-1) == rows["labels"]).float().mean())


def squared(prediction: Tensor, labels: Tensor) -> Tensor:
    """The mean squared error of (batch, 1) against (batch,)."""
    return F.mse_loss(prediction.squeeze(-1), labels)


def error(model: Callable[..., Tensor], rows: Rows) -> float:
    """The root of the mean squared error."""
    return float(squared(predicted(model, rows), rows["labels"]).sqrt())
