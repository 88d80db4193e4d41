"""Train the projections that join an encoder of pictures and MiniLM: pictures and texts in one space.

    python tools/zoo/image_text.py                                # DINOv2-S: features, trains, ships, measures
    python tools/zoo/image_text.py --name image-text-small        # the body of fashion-vit

Pairs: emoji in Google's style with name or keywords, clip art with title or keywords, Tux Paint's stamps with
captions; the training splits alone. The encoders stay as they are, so their features are computed once, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from classified import REPORTS, write
from classify import RUNS
from torch import Tensor
from torch.nn.functional import normalize

import monochord as mc
from monochord.models.nets.image_text import ImageText, contrastive
from monochord.models.shipped import SHIPPED, read_weights, write_weights
from monochord.models.zoo.image_text import PROJECTIONS, towers

SEED, PAIRS = 0, 256
SETS = ("emoji", "clip-art", "tuxpaint")
VISION = {"image-text": "dinov2-s", "image-text-small": "fashion-vit"}


@dataclass(frozen=True)
class Recipe:
    """How the projections are trained, chosen on the validation split; `dropped` is the share of a picture's features
    that a step does not see."""

    steps: int = 800
    rate: float = 3e-3
    decay: float = 1.0
    dropped: float = 0.0


def seen(model: ImageText, name: str, split: str, limit: int | None = None, **options: Any) -> Tensor:
    """The vision tower's features of a split (pictures, 2 d_model), from a file once they were computed."""
    said = "-".join([name, split, *map(str, options.values()), *([str(limit)] if limit else [])])
    small = model.visual_projection.in_features < 768
    file = RUNS / f"image-text{'-small' * small}/{said}.npy"
    if not file.exists():
        dataset = mc.data(name, **options)
        images = (dataset[split].first(limit) if limit else dataset[split])["image"]
        process, parts = mc.processor(VISION["image-text" + "-small" * small]), []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, len(images), 64):
                parts.append(model.see(process(np.asarray(images[start : start + 64]))["pixel_values"]).float())
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file.with_suffix(".part.npy"), torch.cat(parts).numpy())
        file.with_suffix(".part.npy").rename(file)
    return torch.from_numpy(np.load(file))


def read(model: ImageText, texts: list[str]) -> Tensor:
    """The text tower's features (texts, 384)."""
    tokenizer, parts = mc.processor("minilm"), []
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            given = tokenizer(
                texts[start : start + 64], padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
            parts.append(model.read(given["input_ids"], given["attention_mask"]))
    return torch.cat(parts)


def texts_of(split: Any) -> tuple[list[str], list[str]]:
    """Two texts for each picture: its name, and its keywords where it has any."""
    named = [text or keywords for text, keywords in zip(split["text"], _keywords(split), strict=True)]
    return named, [words or name for words, name in zip(_keywords(split), named, strict=True)]


def _keywords(split: Any) -> list[str]:
    return list(split["keywords"]) if "keywords" in split else [""] * len(split)


@cache
def pairs(model: ImageText, split: str) -> tuple[Tensor, Tensor]:
    """Pictures (n, 2 d_model) and both texts of each (n, 2, 384) of a split of all sets."""
    pictures, file = torch.cat([seen(model, name, split) for name in SETS]), RUNS / f"image-text/texts-{split}.npy"
    if not file.exists():
        both = [texts_of(mc.data(name)[split]) for name in SETS]
        texts = torch.stack([read(model, [t for named in both for t in named[i]]) for i in (0, 1)], 1)
        np.save(file.with_suffix(".part.npy"), texts.numpy())
        file.with_suffix(".part.npy").rename(file)
    return pictures, torch.from_numpy(np.load(file))


def train(model: ImageText, recipe: Recipe) -> dict[str, Any]:
    """Train the projections in place; what it took."""
    torch.set_num_threads(1)
    pictures, texts = pairs(model, "train")
    validation = pairs(model, "validation")
    seconds = time.process_time()
    generator = torch.Generator().manual_seed(SEED)
    trained = [model.get_parameter(name) for name in PROJECTIONS]
    groups = [{"params": trained[:2], "weight_decay": recipe.decay}, {"params": trained[2:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps, pct_start=0.05)
    log = []
    for step in range(recipe.steps):
        rows = torch.randint(len(pictures), (PAIRS,), generator=generator)
        which = torch.randint(2, (PAIRS,), generator=generator)
        kept = (torch.rand(PAIRS, pictures.shape[1], generator=generator) >= recipe.dropped) / (1 - recipe.dropped)
        loss = contrastive(logits(model, pictures[rows] * kept, texts[rows, which]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # a factor of 100 at most
        if (step + 1) % 100 == 0:
            log.append({"step": step + 1, "loss": round(loss.item(), 3), **retrieval(model, *validation)})
    return {
        "pairs": len(pictures),
        "steps": recipe.steps,
        "cpu_seconds": round(time.process_time() - seconds),
        "log": log,
    }


def logits(model: ImageText, pictures: Tensor, texts: Tensor) -> Tensor:
    """Scaled cosines of features (pictures, texts)."""
    image = normalize(model.visual_projection(pictures), dim=-1)
    return model.logit_scale.exp() * image @ normalize(model.text_projection(texts), dim=-1).T


def retrieval(model: ImageText, pictures: Tensor, texts: Tensor) -> dict[str, float]:
    """How often a picture's own name is the first, and among the first five."""
    with torch.inference_mode():
        return ranks(logits(model, pictures, texts[:, 0]), texts[:, 0])


def ranks(scores: Tensor, texts: Tensor) -> dict[str, float]:
    """Recall at 1 and 5 of scores (pictures, texts); equal texts are the same answer."""
    same = texts @ texts.T > 0.9999
    order = scores.topk(5, dim=1).indices
    right = same.gather(1, order)
    return {
        "recall_1": round(right[:, 0].float().mean().item(), 4),
        "recall_5": round(right.any(1).float().mean().item(), 4),
    }


def ship(name: str, model: ImageText, steps: int) -> None:
    """Store the projections, and read them back into the model, as stored."""
    folder = SHIPPED / name
    state = {key: model.get_parameter(key).detach() for key in PROJECTIONS}
    write_weights(state, folder / f"step-{steps}.safetensors")
    (folder / "net.json").write_text(json.dumps({"seed": SEED, "steps": [steps]}) + "\n", encoding="utf8")
    model.load_state_dict(read_weights(folder / f"step-{steps}.safetensors"), strict=False)


def measure(model: ImageText) -> dict[str, Any]:
    """Retrieval of names and naming of classes never trained as such, beside chance and a linear map."""
    ridge = Ridge(model)
    found: dict[str, Any] = {}
    for title, name, options in (
        ("emoji", "emoji", {}),
        ("emoji in Twitter's style, never trained", "emoji", {"style": "twitter"}),
        ("tuxpaint", "tuxpaint", {}),
    ):
        pictures = seen(model, name, "test", **options)
        texts = read(model, texts_of(mc.data(name, **options)["test"])[0])
        with torch.inference_mode():
            own = ranks(logits(model, pictures, texts), texts)
            linear = ranks(ridge.predict(pictures) @ texts.T, texts)
        chance = {"recall_1": round(1 / len(texts), 4), "recall_5": round(5 / len(texts), 4)}
        found[title] = {"candidates": len(texts), "projections": own, "ridge": linear, "chance": chance}
    for name, limits in (("emoji", (None, None)), ("fashion-mnist", (2000, 1000))):
        known, asked = (seen(model, name, split, n) for split, n in zip(("train", "test"), limits, strict=True))
        data = mc.data(name)
        few = [data[s].first(n) if n else data[s] for s, n in zip(("train", "test"), limits, strict=True)]
        labels = [np.asarray(split["label"]) for split in few]
        names = read(model, [title.lower().replace("&", "and") for title in data.label_names])
        with torch.inference_mode():
            said = {"projections": logits(model, asked, names), "ridge": ridge.predict(asked) @ names.T}
        means = torch.stack([known[torch.from_numpy(labels[0] == c)].mean(0) for c in range(data.n_classes)])
        said["nearest class mean, which has seen labels"] = -torch.cdist(asked, means)
        right = {how: round(float((s.argmax(1).numpy() == labels[1]).mean()), 4) for how, s in said.items()}
        chance = round(float(np.bincount(labels[1]).max() / len(asked)), 4)
        found[f"classes of {name}"] = {"items": len(asked), "accuracy": right, "most_frequent_class": chance}
    return found


class Ridge:
    """The closed-form linear map from pictures to names; its penalty by the validation split."""

    def __init__(self, model: ImageText) -> None:
        (x, texts), (asked, wanted) = pairs(model, "train"), pairs(model, "validation")
        self.mean, y = x.mean(0), texts[:, 0]
        self.bias = y.mean(0)
        self.weight, best = torch.zeros(0), -1.0
        for penalty in (0.01, 0.1, 1.0, 10.0):
            centred = x - self.mean
            gram = centred.T @ centred + penalty * torch.eye(x.shape[1])
            weight = torch.linalg.solve(gram, centred.T @ (y - self.bias))
            said = normalize((asked - self.mean) @ weight + self.bias, dim=-1)
            if (score := ranks(said @ wanted[:, 0].T, wanted[:, 0])["recall_5"]) > best:
                self.weight, best = weight, score

    def predict(self, pictures: Tensor) -> Tensor:
        """Unit vectors (pictures, 384) in the space of MiniLM."""
        return normalize((pictures - self.mean) @ self.weight + self.bias, dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--name", choices=VISION, default="image-text")
    parser.add_argument("--features-only", action="store_true", help="compute and keep the features, no more")
    given = parser.parse_args()
    model = towers(VISION[given.name]).eval()
    if given.features_only:
        for name in SETS:
            for split in ("train", "validation", "test"):
                seen(model, name, split)
        return
    told = train(model, Recipe())
    before = measure(model)
    ship(given.name, model, told["steps"])
    report = {
        "name": given.name,
        "encoders": [VISION[given.name], "minilm"],
        "parameters": sum(value.numel() for value in model.parameters()),
        "trained_parameters": sum(model.get_parameter(name).numel() for name in PROJECTIONS),
        "seed": SEED,
        "shipped_bytes": sum(file.stat().st_size for file in (SHIPPED / given.name).iterdir()),
        "test": measure(model),
        "test_before_storing": before,
        "training_minutes": round(told.pop("cpu_seconds") / 60, 1),
        "training_note": "CPU time of one thread, without the features",
        **told,
    }
    REPORTS.mkdir(exist_ok=True)
    write(given.name, report)


if __name__ == "__main__":
    main()
