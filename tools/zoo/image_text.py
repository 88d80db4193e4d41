"""Train the projections that join the packaged DINOv2-S and MiniLM: pictures and texts in one space.

    python tools/zoo/image_text.py             # features, trains, ships, measures

Pairs: emoji in Google's style with name or keywords, clip art with title or keywords, Tux Paint's stamps with
captions; the training splits alone. Both encoders stay as they are, so their features are computed once, in bfloat16.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from classify import RUNS
from torch import Tensor, nn
from torch.nn.functional import normalize

import monochord as mc
from monochord.models.nets.image_text import ImageText, contrastive

SEED, STEPS, PAIRS, RATE, DECAY, DROPPED, WIDTH = 0, 1500, 256, 1e-3, 0.3, 0.2, 256
SETS = ("emoji", "clip-art", "tuxpaint")


def towers() -> ImageText:
    """DINOv2-S and MiniLM with projections at their random start."""
    torch.manual_seed(SEED)
    return ImageText(mc.load("dinov2-s"), mc.load("minilm"), WIDTH).eval()


def seen(model: ImageText, name: str, split: str, limit: int | None = None, **options: Any) -> Tensor:
    """The vision tower's features of a split (pictures, 768), from a file once they were computed."""
    said = "-".join([name, split, *map(str, options.values()), *([str(limit)] if limit else [])])
    file = RUNS / f"image-text/{said}.npy"
    if not file.exists():
        dataset = mc.data(name, **options)
        images = (dataset[split].first(limit) if limit else dataset[split])["image"]
        process, parts = mc.processor("dinov2-s"), []
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


def pairs(model: ImageText, split: str) -> tuple[Tensor, Tensor]:
    """Pictures (n, 768) and both texts of each (n, 2, 384) of a split of all sets."""
    pictures = torch.cat([seen(model, name, split) for name in SETS])
    both = [texts_of(mc.data(name)[split]) for name in SETS]
    texts = torch.stack([read(model, [t for named in both for t in named[i]]) for i in (0, 1)], 1)
    return pictures, texts


def train(model: ImageText, steps: int = STEPS) -> dict[str, Any]:
    """Train the projections in place; what it took."""
    torch.set_num_threads(1)
    pictures, texts = pairs(model, "train")
    validation = pairs(model, "validation")
    seconds = time.process_time()
    generator = torch.Generator().manual_seed(SEED)
    trained = [model.visual_projection.weight, model.text_projection.weight, model.logit_scale]
    nn.init.orthogonal_(model.visual_projection.weight, generator=generator)
    nn.init.orthogonal_(model.text_projection.weight, generator=generator)
    groups = [{"params": trained[:2], "weight_decay": DECAY}, {"params": trained[2:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
    log = []
    for step in range(steps):
        rows = torch.randint(len(pictures), (PAIRS,), generator=generator)
        which = torch.randint(2, (PAIRS,), generator=generator)
        kept = (torch.rand(PAIRS, pictures.shape[1], generator=generator) > DROPPED) / (1 - DROPPED)
        loss = contrastive(logits(model, pictures[rows] * kept, texts[rows, which]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)
        if (step + 1) % 100 == 0:
            log.append({"step": step + 1, "loss": round(loss.item(), 3), **retrieval(model, *validation)})
    return {"pairs": len(pictures), "steps": steps, "cpu_seconds": round(time.process_time() - seconds), "log": log}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--features-only", action="store_true", help="compute and keep the features, no more")
    given = parser.parse_args()
    model = towers()
    if given.features_only:
        for name in SETS:
            for split in ("train", "validation", "test"):
                seen(model, name, split)
        return
    print(train(model))


if __name__ == "__main__":
    main()
