"""Towards a Unified View of Parameter-Efficient Transfer Learning, October 8, 2021.

One form for all, `h + s * f(x W_down) W_up`, with four choices: the function, where it acts, beside or behind the
sub-layer, and how it is added. Each way to choose is compared at equal numbers of trained weights on two tasks: the
project's language model of 0.3 million weights goes on with medical abstracts (nats a token), and MiniLM tells the
sentiment of tweets, trained on 160 of them (accuracy). Every method takes the best of the same three learning rates, by
validation. On tweets a fresh linear head trains along with every method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import monochord as mc
from monochord.adapt import BottleneckAdapter, FullTuning, LoRA, MixAndMatch, ParallelAdapter, PrefixTuning
from monochord.core.tuner import Tuner
from monochord.lab.paper import Paper, Trial
from monochord.lab.tasks import token_loss
from monochord.models.heads import Classifier
from monochord.objectives import CrossEntropy, NextToken

paper = Paper(
    "unified-peft",
    "Adapters, prefixes and LoRA are one form with four choices; parallel, on the MLP and scaled uses weights best",
    uses=["monochord.adapt.prefix_tuning", "monochord.adapt.parallel_adapter", "monochord.adapt.mix_and_match",
          "monochord.adapt.bottleneck_adapter", "monochord.adapt.lora"],
    chance={"tweets_accuracy": 0.5},
)  # fmt: skip

RATES = (1e-3, 3e-3, 1e-2)
FULL_RATES = (1e-4, 3e-4, 1e-3)
BUDGETS = {"large": 0.05, "small": 0.005}  # of the model's weights
MLP, ATTENTION = "blocks.*.mlp:out", "blocks.*.attn:out"

Make = Callable[[int, int, int, int], Tuner]  # from budget, layers, d_model and the width of keys


def _units(budget: int, layers: int, d: int) -> int:
    """The bottleneck of an adapter a layer that spends the budget, biases included."""
    return max(round((budget / layers - d) / (2 * d + 1)), 1)


def _length(budget: int, layers: int, d_keys: int) -> int:
    return max(round(budget / (2 * layers * d_keys)), 1)


METHODS: dict[str, Make] = {
    "sequential": lambda n, depth, d, k: BottleneckAdapter(MLP, _units(n, depth, d)),
    "parallel": lambda n, depth, d, k: ParallelAdapter(MLP, _units(n, depth, d), scale=1.0),
    "parallel at attention": lambda n, depth, d, k: ParallelAdapter(ATTENTION, _units(n, depth, d), scale=1.0),
    "scaled parallel": lambda n, depth, d, k: ParallelAdapter(MLP, _units(n, depth, d), scale=4.0),
    "prefix": lambda n, depth, d, k: PrefixTuning(_length(n, depth, k)),
    "prefix added to heads": lambda n, depth, d, k: PrefixTuning(_length(n, depth, k), compose="add", function="relu"),
    "lora": lambda n, depth, d, k: LoRA(rank=(r := max(round(n / depth / (3 * d + k)), 1)), alpha=2.0 * r),
    "mix and match": lambda n, depth, d, k: MixAndMatch(_length(n // 6, depth, k), _units(n - n // 6, depth, d)),
}


def _arm(name: str, make: Make) -> None:
    @paper.arm(name, role="method" if name == "mix and match" else "baseline")
    def measure(trial: Trial) -> dict[str, Any]:
        return _compared(trial, make)


for _name, _make in METHODS.items():
    _arm(_name, _make)


@paper.arm("full tuning", role="ceiling")
def full_tuning(trial: Trial) -> dict[str, Any]:
    """Every weight trains."""
    return _compared(trial, lambda n, depth, d, k: FullTuning("blocks.*"), budgets=("large",), rates=FULL_RATES)


@paper.arm("random projection", role="control")
def random_projection(trial: Trial) -> dict[str, Any]:
    """A parallel adapter whose down projection stays random, twice as wide: only `up` trains."""
    make: Make = lambda n, depth, d, k: ParallelAdapter(MLP, 2 * _units(n, depth, d), scale=1.0)
    return _compared(trial, make, budgets=("large",), frozen=("down", "down_bias"))


@paper.arm("one layer", role="control")
def one_layer(trial: Trial) -> dict[str, Any]:
    """The whole budget at one layer, drawn at random."""

    def make(n: int, depth: int, d: int, k: int) -> Tuner:
        chosen = int(np.random.default_rng(trial.seed).integers(depth))
        return ParallelAdapter(f"blocks.{chosen}.mlp:out", _units(n, 1, d), scale=1.0)

    return _compared(trial, make, budgets=("large",))


@paper.arm("no scale", role="control")
def no_scale(trial: Trial) -> dict[str, Any]:
    """Scale zero, on the language model: it must stay the base."""
    model, _, _, test, _ = _abstracts(trial)
    with ParallelAdapter(scale=0.0).attach(model):
        changed = abs(token_loss(model, test) - _base_loss(trial))
    return {"change": changed}


@paper.claim("scale zero is the base", exact=True)
def _(e):
    return e["no scale"].change.max < 1e-6


@paper.claim("methods train equally many weights, within 6 % of the budget of 5 %")
def _(e):
    spent = [e[name][f"{task}_large_spent"].values for name in METHODS for task in ("abstracts", "tweets")]
    return max(float(np.abs(value - 1).max()) for value in spent) <= 0.06


@paper.claim("parallel adapters rank above sequential ones over tasks and seeds, at 5 %")
def _(e):
    ranks = _ranks(e)
    return ranks["parallel"] < ranks["sequential"]


@paper.claim("at 5 % an adapter beside the MLP is better than one beside attention, over tasks and seeds")
def _(e):
    ranks = _ranks(e)
    return ranks["parallel"] < ranks["parallel at attention"]


@paper.claim("scaling by 4 is no worse than plain addition, over tasks and seeds")
def _(e):
    ranks = _ranks(e)
    return ranks["scaled parallel"] <= ranks["parallel"]


@paper.claim("at 0.5 % one of the changes of head attention has the lowest loss on abstracts")
def _(e):
    losses = {name: e[name].abstracts_small.mean for name in METHODS if name != "mix and match"}
    return min(losses, key=losses.__getitem__) in ("prefix", "prefix added to heads", "parallel at attention", "lora")


@paper.claim("mix and match is the best at 5 % on abstracts, or within a standard error of it")
def _(e):
    own = e["mix and match"].abstracts_large
    error = own.values.std(ddof=1) / len(own) ** 0.5
    return own.mean <= min(e[name].abstracts_large.mean for name in METHODS) + error


@paper.claim("and within a standard error of the best on tweets")
def _(e):
    own = e["mix and match"].tweets_large
    error = own.values.std(ddof=1) / len(own) ** 0.5
    return own.mean >= max(e[name].tweets_large.mean for name in METHODS) - error


@paper.claim("mix and match recovers 90 % of what full tuning gains on abstracts")
def _(e):
    base = e["full tuning"].abstracts_base.mean
    return (base - e["mix and match"].abstracts_large.mean) >= 0.9 * (base - e["full tuning"].abstracts_large.mean)


@paper.claim("a random projection, or one layer with the whole budget, is worse than the parallel adapter on abstracts")
def _(e):
    own = e["parallel"].abstracts_large.mean
    return min(e["random projection"].abstracts_large.mean, e["one layer"].abstracts_large.mean) > own


@paper.figure("Loss on abstracts at two budgets")
def _(e, axes):
    names = sorted(METHODS, key=lambda name: -e[name].abstracts_large.mean)
    places = np.arange(len(names))
    for i, budget in enumerate(BUDGETS):
        metrics = [e[name][f"abstracts_{budget}"] for name in names]
        spread = [m.interval.half_width for m in metrics]
        axes.errorbar(
            [m.mean for m in metrics], places + 0.1 * i, xerr=spread, fmt="o", ms=4, label=f"{BUDGETS[budget]:.1%}"
        )
    axes.axvline(e["full tuning"].abstracts_large.mean, color="grey", ls="--", lw=0.8, label="full tuning")
    axes.set(yticks=places, yticklabels=names, xlabel="nats a token")
    axes.legend()


@paper.figure("Accuracy on tweets at 5 %")
def _(e, axes):
    names = sorted([*METHODS, "full tuning", "random projection", "one layer"], key=lambda n: e[n].tweets_large.mean)
    metrics = [e[name].tweets_large for name in names]
    axes.barh(names, [m.mean for m in metrics], xerr=[m.interval.half_width for m in metrics])
    axes.axvline(e.chance["tweets_accuracy"], color="grey", lw=0.8, ls=":")
    axes.set(xlabel="accuracy")


def _ranks(e: Any) -> dict[str, float]:
    """The mean rank of each method over both tasks and all seeds at the larger budget; 1 is the best."""
    total = dict.fromkeys(METHODS, 0.0)
    for metric, sign in (("abstracts_large", 1), ("tweets_large", -1)):
        table = np.stack([sign * e[name][metric].values for name in METHODS])  # (methods, seeds)
        for name, row in zip(METHODS, table, strict=True):
            total[name] += float(((table < row).sum(0) + 0.5 * ((table == row).sum(0) - 1) + 1).mean()) / 2
    return total


def _compared(
    trial: Trial, make: Make, *, budgets: tuple[str, ...] = tuple(BUDGETS), rates: tuple[float, ...] = RATES,
    frozen: tuple[str, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    found: dict[str, Any] = {"abstracts_base": _base_loss(trial)}
    rates = trial.pick(smoke=rates[:1], full=rates)
    for task, prepare in (("abstracts", _abstracts), ("tweets", _tweets)):
        for budget in budgets if task == "abstracts" else ("large",):
            best: tuple[float, float, float, float] | None = None
            for rate in rates:
                model, train, validation, test, score = prepare(trial)
                size = sum(p.numel() for p in model.parameters())
                config = model.config
                keys = config.hidden_size // config.num_attention_heads
                keys *= getattr(config, "num_key_value_heads", None) or config.num_attention_heads
                wanted = round(BUDGETS[budget] * size)
                tuner = make(wanted, config.num_hidden_layers, config.hidden_size, keys)
                tuner = tuner | FullTuning("head") if task == "tweets" else tuner
                tuned = tuner.attach(model, seed=trial.seed)
                for _, change in tuned.placements:
                    for name, parameter in change.named_parameters():
                        parameter.requires_grad_(parameter.requires_grad and name not in frozen)
                trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
                trained -= sum(p.numel() for p in model.head.parameters()) if task == "tweets" else 0
                objective = CrossEntropy() if task == "tweets" else NextToken()
                mc.fit(model, train, objective, steps=len(train), lr=rate, schedule="linear", warmup=0.1,
                       max_grad_norm=1.0, seed=trial.seed, progress=False)  # fmt: skip
                sign = 1 if task == "abstracts" else -1
                value = sign * score(model, validation)
                if best is None or value < best[0]:
                    best = value, score(model, test), rate, trained / wanted
            assert best is not None
            for name, figure in zip(("", "_rate", "_spent"), best[1:], strict=True):
                found[f"{task}_{budget}{name}"] = figure
    return found


def _abstracts(trial: Trial) -> tuple[Any, Any, Any, Any, Callable[[nn.Module, Any], float]]:
    """The language model and rows of 64 tokens of abstracts, drawn by the seed to train on."""
    model, tokenizer = _model("ladder-0.3m"), mc.models.processor("ladder-0.3m")
    rows, size = mc.data("pubmed-qa")["test"]["text"], trial.pick(smoke=16, full=64)
    order = np.random.default_rng(trial.seed).permutation(400)
    parts: list[Any] = [order[: trial.pick(smoke=32, full=400)], range(400, 450), range(450, 500)]
    made: list[Any] = []
    for part, count in zip(parts, (trial.pick(smoke=2, full=48), size // 8, size // 4), strict=True):
        ids = torch.tensor([t for i in part for t in tokenizer(rows[int(i)])["input_ids"]])
        blocks = ids[: len(ids) // 64 * 64].reshape(-1, 64)[: 8 * count]
        made.append([{"input_ids": b, "labels": b} for b in torch.split(blocks, 8)])
    return model, made[0], made[1], made[2], token_loss


def _base_loss(trial: Trial) -> float:
    model, _, _, test, _ = _abstracts(trial)
    return token_loss(model, test)


def _tweets(trial: Trial) -> tuple[Any, Any, Any, Any, Callable[[nn.Module, Any], float]]:
    """MiniLM with a head, and tweets of clear sentiment, as many of each kind."""
    model, tokenizer = Classifier(_model("minilm"), 2, seed=trial.seed), mc.models.processor("minilm")
    data = mc.data("sentiment-scores", source="tweets")
    rng = np.random.default_rng(trial.seed)
    made: list[Any] = []
    for split, each in (("train", trial.pick(smoke=8, full=96)), ("validation", trial.pick(smoke=4, full=40)),
                        ("test", trial.pick(smoke=4, full=75))):  # fmt: skip
        values = np.asarray(data[split]["value"])
        chosen = [rng.permutation(np.flatnonzero(sign * values > 0.8))[:each] for sign in (-1, 1)]
        rows = np.concatenate(chosen)
        labels = np.repeat([0, 1], [len(part) for part in chosen])
        made.append(mc.data.Split({"text": [data[split]["text"][i] for i in rows], "label": labels}))
    steps = trial.pick(smoke=1, full=20)
    train = mc.data.Batches(made[0], tokenizer, 8, max_length=20, seed=trial.seed, steps=steps)
    tests: list[Any] = [list(mc.data.Batches(part, tokenizer, 40, max_length=20, shuffle=False)) for part in made[1:]]
    return model, train, tests[0], tests[1], _accuracy


def _model(name: str) -> nn.Module:
    """A copy of a model that is loaded once a process."""
    return copy.deepcopy(_loaded(name))


@cache
def _loaded(name: str) -> nn.Module:
    return mc.load(name)


def _accuracy(model: nn.Module, batches: Any) -> float:
    with torch.inference_mode():
        right: list[Tensor] = [
            model(**{n: v for n, v in b.items() if n != "labels"}).logits.argmax(1) == b["labels"] for b in batches
        ]
    return float(torch.cat(right).float().mean())
