"""Less is More: Local Intrinsic Dimensions of Contextual Language Models, June 1, 2025.

The mean local dimension (TwoNN in neighbourhoods of fixed tokens) is followed in three trainings: a one-layer
transformer that groks addition modulo 43, the language model of 0.9 million weights that goes on with medical
abstracts, and the one of 0.3 million that overfits 50 kB of them. Known answers are cubes, spheres and a swiss roll.
The control shuffles every coordinate among the tokens, which keeps all marginals and no geometry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Generator, Tensor, nn
from torch.nn import functional as F

import monochord as mc
from monochord.core.history import Monitor
from monochord.data.tasks.modular_arithmetic import ModularArithmetic
from monochord.lab.paper import Paper, Trial
from monochord.objectives import NextToken
from monochord.read.dimension import Local, TwoNN
from monochord.read.dimension_monitor import LocalDimension

paper = Paper(
    "local-intrinsic-dimension",
    "The mean local dimension of token states falls with coming gains and on the tuned distribution, without labels",
    uses=["monochord.read.dimension", "monochord.read.dimension_monitor"],
    chance={"correlation": 0.0},
)

DIMENSIONS = (1, 2, 5, 10)
MODULUS, STEPS, EVERY = 43, 1500, 75
POINTS, NEIGHBOURS = 900, 64  # states looked at, and neighbours of each


@paper.arm("known clouds", seeded=False)
def known_clouds(trial: Trial) -> dict[str, Any]:
    """Global and mean local dimensions of clouds in 100 dimensions whose own is known."""
    n = trial.pick(smoke=600, full=5000)
    cubes = [_embedded(torch.rand(n, d, generator=Generator().manual_seed(d), dtype=torch.float64)) for d in DIMENSIONS]
    balls = [torch.randn(n, d + 1, generator=Generator().manual_seed(d), dtype=torch.float64) for d in DIMENSIONS]
    spheres = [_embedded(F.normalize(ball, dim=1)) for ball in balls]
    turn, height = torch.rand(2, n, generator=Generator().manual_seed(0), dtype=torch.float64)
    angle = 1.5 * math.pi * (1 + 2 * turn)
    roll = _embedded(torch.stack([angle * angle.cos(), 21 * height, angle * angle.sin()], 1))
    errors = [abs(TwoNN()(c) / d - 1) for clouds in (cubes, spheres) for c, d in zip(clouds, DIMENSIONS, strict=True)]
    local = [float(Local()(cloud[: n // 2 if trial.scale == "smoke" else n]).mean()) for cloud in cubes]
    return {
        "error_up_to_5": max([*errors[:3], *errors[4:7], abs(TwoNN()(roll) / 2 - 1)]),
        "error_at_10": max(errors[3], errors[7]),
        "local": local,
        "local_error": max(abs(value / d - 1) for value, d in zip(local, DIMENSIONS, strict=True)),
    }


@paper.arm("grokking")
def grokking(trial: Trial) -> dict[str, Any]:
    """Addition modulo a prime from half of the pairs, with strong weight decay: memorised first, understood later."""
    return _grokked(trial, decay=1.0)


@paper.arm("no weight decay", role="control")
def no_decay(trial: Trial) -> dict[str, Any]:
    """The same without weight decay: it memorises and, in this time, does not understand."""
    return _grokked(trial, decay=0.0)


@paper.arm("tuning on abstracts")
def tuning(trial: Trial) -> dict[str, Any]:
    """A language model goes on with medical abstracts: dimensions of their tokens and of reviews'."""
    model, tokenizer = mc.load("ladder-1m"), mc.models.processor("ladder-1m")
    rows, steps = trial.pick(smoke=(24, 2), full=(160, 160))
    train, own = (_blocks(tokenizer, _abstracts(split), n) for split, n in (("train", 8 * rows), ("validation", rows)))
    other = _blocks(tokenizer, mc.data("movie-text", source="imdb")["test"]["text"][: 4 * rows], rows)
    points = trial.pick(smoke=300, full=2000)
    local = Local(neighbours=NEIGHBOURS)
    watch = {n: LocalDimension(_batches(b), tokens=points, local=local, seed=trial.seed)
             for n, b in (("own", own), ("other", other))}  # fmt: skip
    before = {name: look.each(model) for name, look in watch.items()}
    loss = [_loss(model, own)]
    mc.fit(model, _batches(train, trial.seed), NextToken(), steps=steps, lr=1e-3, schedule="cosine", warmup=0.05,
           seed=trial.seed, progress=False)  # fmt: skip
    loss.append(_loss(model, own))
    falls = {name: before[name] - look.each(model) for name, look in watch.items()}
    gap = float(falls["own"].mean() - falls["other"].mean())
    error = math.sqrt(sum(float(fall.var()) / len(fall) for fall in falls.values()))
    return {
        "fall_on_own": falls["own"].mean(),
        "fall_on_other": falls["other"].mean(),
        "gap_over_error": gap / error,
        "dimension_before": before["own"].mean(),
        "loss_before": loss[0],
        "loss_after": loss[1],
    }


@paper.arm("overfitting")
def overfitting(trial: Trial) -> dict[str, Any]:
    """A small language model sees 50 kB of abstracts again and again: loss and dimension on others, step by step."""
    model, tokenizer = mc.load("ladder-0.3m"), mc.models.processor("ladder-0.3m")
    texts = _abstracts("train")
    chosen = np.random.default_rng(trial.seed).permutation(len(texts))
    kept = "\n".join(texts[i] for i in chosen)[:50_000]
    train = _blocks(tokenizer, [kept], 1000)
    rows, steps, every = trial.pick(smoke=(16, 4, 2), full=(96, 300, 15))
    held_out = _blocks(tokenizer, _abstracts("validation"), rows)
    local = Local(neighbours=NEIGHBOURS)
    dimension = LocalDimension(_batches(held_out), tokens=trial.pick(smoke=200, full=1500), local=local)
    watch = [Monitor("dimension", dimension, every=every), Monitor("loss", lambda m: _loss(m, held_out), every=every),
             Monitor("train_loss", lambda m: _loss(m, train), every=every)]  # fmt: skip
    history = mc.fit(model, _batches(train, trial.seed), NextToken(), steps=steps, lr=2e-3, callbacks=watch,
                     seed=trial.seed, progress=False)  # fmt: skip
    step, dims = zip(*history.monitors["dimension"], strict=True)
    loss, train_loss = ([value for _, value in history.monitors[name]] for name in ("loss", "train_loss"))
    return {
        "steps": step,
        "dimensions": dims,
        "losses": loss,
        "train_losses": train_loss,
        "step_of_least_loss": step[int(np.argmin(loss))],
        "step_of_least_dimension": step[int(np.argmin(dims))],
        "gap_correlation": _spearman(dims, np.subtract(loss, train_loss)),
    }


@paper.claim("the dimension of cubes, spheres and a swiss roll is found: within 10 % up to 5, within 20 % at 10")
def _(e):
    return e["known clouds"].error_up_to_5.max <= 0.10 and e["known clouds"].error_at_10.max <= 0.20


@paper.claim("mean local dimensions rise with the dimension and are within 25 % of it")
def _(e):
    return (np.diff(e["known clouds"].local.mean) > 0).all() and e["known clouds"].local_error.max <= 0.25


@paper.claim("the model groks: it memorises, and later is right on nearly all pairs it never saw")
def _(e):
    g = e["grokking"]
    return g.last_accuracy.min > 0.95 and (g.step_of_half.values > g.step_memorised.values).all()


@paper.claim("after memorisation the dimension falls as accuracy on unseen pairs rises: Spearman at most -0.5")
def _(e):
    return e["grokking"].correlation.mean <= -0.5


@paper.claim("it begins to fall no later than accuracy passes one half, in at least 2 of 3 seeds")
def _(e):
    g = e["grokking"]
    return (g.step_of_fall.values <= g.step_of_half.values).mean() >= 0.66


@paper.claim("without weight decay there is no grokking, and the dimension falls by at most a third as much")
def _(e):
    g, n = e["grokking"], e["no weight decay"]
    return n.last_accuracy.mean < 0.5 and n.fall.mean <= g.fall.mean / 3


@paper.claim("states with their coordinates shuffled show neither: a dimension above 20, and no correlation beyond 0.5")
def _(e):
    g = e["grokking"]
    return g.shuffled_dimension.min > 20 and abs(g.shuffled_correlation.mean) < 0.5


@paper.claim("tuning lowers the dimension on its own distribution more than on another, by over 2 standard errors")
def _(e):
    return e["tuning on abstracts"].gap_over_error.mean > 2


@paper.claim(
    "when a model overfits, the dimension of held-out tokens turns within 20 % of the steps of their least loss"
)
def _(e):
    o = e["overfitting"]
    far = np.abs(o.step_of_least_dimension.values - o.step_of_least_loss.values) / o.steps.values[:, -1]
    return (far <= 0.2).mean() >= 0.66


@paper.claim("over the run it rises with the gap between held-out and training loss")
def _(e):
    return e["overfitting"].gap_correlation.min > 0


@paper.figure("Grokking: accuracy on unseen pairs and mean local dimension")
def _(e, axes):
    for arm, colour in (("grokking", "C0"), ("no weight decay", "C1")):
        found = e[arm]
        axes.plot(found.steps.mean, found.dimensions.mean, color=colour, label=f"dimension, {arm}")
        axes.plot(
            found.steps.mean, found.accuracies.mean * 10, color=colour, ls="--", label=f"accuracy times 10, {arm}"
        )
    axes.axvline(e["grokking"].step_of_half.mean, color="grey", lw=0.8, ls=":")
    axes.set(xlabel="step", ylabel="mean local dimension", ylim=(0, None))
    axes.legend()


@paper.figure("Overfitting: losses and mean local dimension of held-out tokens")
def _(e, axes):
    found = e["overfitting"]
    for name, label in (("losses", "loss, held out"), ("train_losses", "loss, training"), ("dimensions", "dimension")):
        axes.plot(found.steps.mean, found[name].mean, label=label)
    axes.set(xlabel="step", ylim=(0, None))
    axes.legend()


class _Adder(nn.Module):
    """A one-layer transformer that reads two numbers and predicts their sum; only its last token looks back."""

    def __init__(self, p: int, width: int, heads: int, generator: Generator) -> None:
        super().__init__()

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / math.sqrt(shape[-1]))

        self.heads = heads
        self.tokens, self.places = normal(p + 1, width), normal(3, width)
        self.qkv, self.output = normal(3, width, width), normal(width, width)
        self.up, self.down, self.head = normal(4 * width, width), normal(width, 4 * width), normal(p, width)

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits (batch, p) of pairs (batch, 2)."""
        return F.linear(self.states(pairs), self.head)

    def states(self, pairs: Tensor) -> Tensor:
        """The last token's final state, (batch, width)."""
        equals = torch.full_like(pairs[:, :1], len(self.tokens) - 1)
        x = self.tokens[torch.cat([pairs, equals], 1)] + self.places
        query, key, value = (
            F.linear(part, w).reshape(len(x), part.shape[1], self.heads, -1).transpose(1, 2)
            for part, w in zip((x[:, -1:], x, x), self.qkv, strict=True)
        )
        looked = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)[:, 0]
        last = x[:, -1] + F.linear(looked, self.output)
        return last + F.linear(F.relu(F.linear(last, self.up)), self.down)


def _grokked(trial: Trial, decay: float) -> dict[str, Any]:
    p = MODULUS
    g = Generator().manual_seed(trial.seed)
    task = ModularArithmetic(p)
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    sums = torch.from_numpy(np.asarray(task.answer(pairs[:, 0].numpy(), pairs[:, 1].numpy())))
    order = torch.randperm(len(pairs), generator=g)
    train, test = order[: len(pairs) // 2], order[len(pairs) // 2 :]
    model = _Adder(p, 128, 4, g)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=decay, betas=(0.9, 0.98))
    points = torch.randperm(len(pairs), generator=g)[: trial.pick(smoke=200, full=POINTS)]
    local = Local(neighbours=NEIGHBOURS)
    seen: dict[str, list[float]] = {n: [] for n in ("step", "dimension", "shuffled", "accuracy", "train")}
    steps, every = trial.pick(smoke=(20, 10), full=(STEPS, EVERY))
    for step in range(steps + 1):
        if step % every == 0:
            with torch.no_grad():
                right = model(pairs).argmax(1) == sums
                states = model.states(pairs[points])
            mixed = torch.stack([c[torch.randperm(len(c), generator=g)] for c in states.T], 1)
            new = (
                step,
                local(states).mean(),
                local(mixed).mean(),
                right[test].float().mean(),
                right[train].float().mean(),
            )
            for values, value in zip(seen.values(), new, strict=True):
                values.append(float(value))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pairs[train]), sums[train])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return _story(seen)


def _story(seen: dict[str, list[float]]) -> dict[str, Any]:
    """When it memorised, when it understood, and when a tenth of the dimension's fall was done."""
    step, dims, accuracy = (np.array(seen[name]) for name in ("step", "dimension", "accuracy"))
    memorised = _first(np.array(seen["train"]) > 0.99)
    half = _first(accuracy > 0.5)
    after = dims[memorised:]
    top, low = float(after.max()), float(after.min())
    begins = memorised + int(after.argmax()) + _first(after[int(after.argmax()) :] < top - (top - low) / 10)
    return {
        "steps": step,
        "dimensions": dims,
        "accuracies": accuracy,
        "last_accuracy": accuracy[-1],
        "step_memorised": step[memorised],
        "step_of_half": step[half],
        "step_of_fall": step[min(begins, len(step) - 1)],
        "fall": dims[memorised] - dims[-1],
        "correlation": _spearman(after, accuracy[memorised:]),
        "shuffled_correlation": _spearman(seen["shuffled"][memorised:], accuracy[memorised:]),
        "shuffled_dimension": float(np.mean(seen["shuffled"][memorised:])),
    }


def _first(true: np.ndarray) -> int:
    """The first place that holds, the last place if none does."""
    found = np.flatnonzero(true)
    return int(found[0]) if len(found) else len(true) - 1


def _spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """The rank correlation, 0 where one of them never changes."""
    a, b = np.asarray(a), np.asarray(b)
    return float(spearmanr(a, b).statistic) if len(a) > 2 and np.ptp(a) and np.ptp(b) else 0.0


def _embedded(points: Tensor) -> Tensor:
    """Points (n, d) on a random plane through 100 dimensions."""
    directions = torch.randn(100, points.shape[1], generator=Generator().manual_seed(7), dtype=points.dtype)
    frame: Tensor = torch.linalg.qr(directions).Q
    return points @ frame.T


def _abstracts(split: str) -> list[str]:
    """Medical abstracts; the last tenth is for validation."""
    rows = mc.data("pubmed-qa")
    texts = [text for part in rows.splits.values() for text in part["text"]]
    cut = len(texts) * 9 // 10
    return texts[:cut] if split == "train" else texts[cut:]


def _blocks(tokenizer: Any, texts: Sequence[str], rows: int) -> Tensor:
    """The first `rows` rows of 64 tokens of running text."""
    ids = torch.tensor([token for text in texts for token in tokenizer(text)["input_ids"]])
    return ids[: len(ids) // 64 * 64].reshape(-1, 64)[:rows]


def _batches(blocks: Tensor, seed: int | None = None) -> list[dict[str, Tensor]]:
    """Sixteen rows a batch, shuffled where there is a seed."""
    order = (
        torch.arange(len(blocks))
        if seed is None
        else torch.randperm(len(blocks), generator=Generator().manual_seed(seed))
    )
    return [{"input_ids": blocks[order[i : i + 16]]} for i in range(0, len(blocks), 16)]


def _loss(model: nn.Module, blocks: Tensor) -> float:
    with torch.inference_mode():
        return float(np.mean([NextToken()(model, batch).total.item() for batch in _batches(blocks)]))
