"""Task-Specific Skill Localization in Fine-tuned Language Models, February 13, 2023.

MiniLM (22 million weights) is tuned on 32 examples a class to place sentences at one of two frozen words that say
nothing of the task, so that the base is at chance and only the tuned blocks carry the skill; embeddings and words stay
as they are. Tuned by plain gradient descent with an L1 pull back to the base, as the paper does where skills are
spread out. The masks are learnt from the same few examples and always measured rounded. Tasks: the sentiment of tweets,
of sentences on films, and spam.

What fails, and why as far as is known: a thousandth of the weights recovers two thirds of the gain, not 95 % (without
the L1 pull a hundredth did not reach it either). The tuned model, held back by the pull, is calibrated well already.
The base, at 40 %, is below chance on tweets, so any disturbance that brings it to chance counts as a fifth of the gain:
the flipped graft does just that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import monochord as mc
from monochord.core.delta import Delta
from monochord.core.history import Callback, Run
from monochord.core.selection import Selection
from monochord.edit.skill_grafting import graft, localize, movement_mask, overlap
from monochord.lab.kept import kept
from monochord.lab.paper import Paper, Trial
from monochord.objectives import CrossEntropy
from monochord.read.calibration import calibration_error

paper = Paper(
    "skill-grafting",
    "A thousandth to a hundredth of the tuned weights, found by optimising a mask, carries most of a skill",
    uses=["monochord.edit.skill_grafting", "monochord.read.calibration"],
    chance={"accuracy": 0.5},
)

WORDS = ("table", "river")  # where the two classes are placed
TASKS = ("tweets", "movies", "spam")
SHARES = {"1 %": 0.01, "0.1 %": 0.001}
SHOTS, LENGTH, PULL = 32, 24, 1e-5


@paper.arm("learnt mask")
def learnt_mask(trial: Trial) -> dict[str, Any]:
    """The graft that optimisation found, at two budgets, beside the base and the tuned model."""
    pair = _Pair(trial, ("tweets",))
    found: dict[str, Any] = {}
    for name, (model, change) in {"base": (pair.base, None), "tuned": (pair.tuned, None)}.items():
        found |= pair.measures(name, model, change)
    for name, share in SHARES.items():
        mask, left = pair.localized("tweets", share)
        found |= pair.measures(name, pair.base, graft(pair.base, pair.tuned, mask))
        found[f"{name} gain"] = pair.gain(found[f"{name} accuracy"], found)
        found[f"{name} used"], found[f"{name} left the start"] = mask.count / pair.size, left
        if name == "1 %":
            found["bytes a weight"] = graft(pair.base, pair.tuned, mask).nbytes / mask.count
    return found | pair.exactness()


@paper.arm("movement mask", role="baseline")
def movement(trial: Trial) -> dict[str, Any]:
    """The coordinates that tuning moved most, as many."""
    pair = _Pair(trial, ("tweets",))
    return pair.compared({name: movement_mask(pair.delta, fraction=share) for name, share in SHARES.items()})


@paper.arm("random mask", role="control")
def random_mask(trial: Trial) -> dict[str, Any]:
    """As many coordinates of every tensor as the movement mask has, at random."""
    pair = _Pair(trial, ("tweets",))
    masks = {name: movement_mask(pair.delta, fraction=share) for name, share in SHARES.items()}
    return pair.compared({name: mask.random_like(trial.seed) for name, mask in masks.items()})


@paper.arm("wrong way", role="control")
def wrong_way(trial: Trial) -> dict[str, Any]:
    """The movement mask's coordinates moved as far to the other side, and a mask learnt from shuffled labels."""
    pair = _Pair(trial, ("tweets",))
    mask = movement_mask(pair.delta, fraction=SHARES["1 %"])
    ends = {name: pair.accuracy(model, "tweets") for name, model in (("base", pair.base), ("tuned", pair.tuned))}
    around = {f"{name} accuracy": value for name, value in ends.items()}
    flipped = pair.accuracy(pair.base, "tweets", -graft(pair.base, pair.tuned, mask))
    shuffled, _ = pair.localized("tweets", SHARES["0.1 %"], shuffled=True)
    other = pair.accuracy(pair.base, "tweets", graft(pair.base, pair.tuned, shuffled))
    return {"flipped gain": pair.gain(flipped, around), "shuffled gain": pair.gain(other, around)}


@paper.arm("three tasks")
def three_tasks(trial: Trial) -> dict[str, Any]:
    """One model tuned on all, a graft a task: what each does for each, and how much they share."""
    pair = _Pair(trial, TASKS)
    masks = {task: pair.localized(task, SHARES["0.1 %"])[0] for task in TASKS}
    base = [pair.accuracy(pair.base, task) for task in TASKS]
    gains = [[pair.accuracy(pair.base, task, graft(pair.base, pair.tuned, masks[own])) - start
              for task, start in zip(TASKS, base, strict=True)] for own in TASKS]  # fmt: skip
    matrix = np.array(gains)
    union = masks[TASKS[0]] | masks[TASKS[1]] | masks[TASKS[2]]
    together = [pair.accuracy(pair.base, task, graft(pair.base, pair.tuned, union)) for task in TASKS]

    def shared(a: str, b: str) -> float:
        return (overlap(masks[a], masks[b]) + overlap(masks[b], masks[a])) / 2

    return {
        "own_gain": matrix.diagonal().mean(),
        "other_gain": (matrix.sum() - matrix.trace()) / 6,
        "union_gain": np.mean(together) - np.mean(base),
        "sentiments_overlap": shared("tweets", "movies"),
        "spam_overlap": (shared("tweets", "spam") + shared("movies", "spam")) / 2,
        "matrix": matrix.flatten(),
    }


@paper.claim(
    "nothing grafted is the base, everything the tuned model, and weights outside the mask the base's, bit for bit",
    exact=True,
)
def _(e):
    return e["learnt mask"].exact.min == 1


@paper.claim("tuning lifts accuracy from chance by 25 points or more")
def _(e):
    return e["learnt mask"]["tuned accuracy"].mean - e["learnt mask"]["base accuracy"].mean >= 0.25


@paper.claim("a learnt graft of at most 1 % of the weights recovers 95 % of the gain")
def _(e):
    return e["learnt mask"]["1 % gain"].mean >= 0.95


@paper.claim("a learnt graft of at most 0.1 % of the weights recovers 95 % of the gain")
def _(e):
    return e["learnt mask"]["0.1 % gain"].mean >= 0.95


@paper.claim("at 0.1 % the learnt mask is at least 3 points above the movement mask and the random one")
def _(e):
    others = (e["movement mask"]["0.1 % accuracy"].mean, e["random mask"]["0.1 % accuracy"].mean)
    return e["learnt mask"]["0.1 % accuracy"].mean >= max(others) + 0.03


@paper.claim("the learnt mask left its start: coordinates were dropped and others added")
def _(e):
    return e["learnt mask"]["0.1 % left the start"].min > 0


@paper.claim("the graft of 1 % is calibrated better than the tuned model: its error is smaller by a quarter or more")
def _(e):
    return e["learnt mask"]["1 % calibration error"].mean <= 0.75 * e["learnt mask"]["tuned calibration error"].mean


@paper.claim("on sentences on films the graft of 1 % is at most half a point below the tuned model")
def _(e):
    return e["learnt mask"]["1 % elsewhere"].mean >= e["learnt mask"]["tuned elsewhere"].mean - 0.005


@paper.claim("a random mask recovers less than half of the gain, at both budgets")
def _(e):
    return max(e["random mask"][f"{name} gain"].mean for name in SHARES) < 0.5


@paper.claim("moved the other way the same weights gain nothing")
def _(e):
    return e["wrong way"]["flipped gain"].mean < 0.1


@paper.claim("a mask learnt from shuffled labels recovers less than half of what the right labels' does")
def _(e):
    return e["wrong way"]["shuffled gain"].mean < 0.5 * e["learnt mask"]["0.1 % gain"].mean


@paper.claim("of a model tuned on three tasks each graft helps its own task more than the others")
def _(e):
    return (e["three tasks"].own_gain.values > e["three tasks"].other_gain.values).all()


@paper.claim("grafts of the two sentiment tasks share more than either shares with that of spam")
def _(e):
    return e["three tasks"].sentiments_overlap.mean > e["three tasks"].spam_overlap.mean


@paper.figure("Accuracy of grafts")
def _(e, axes):
    places = np.arange(len(SHARES))
    for i, arm in enumerate(("learnt mask", "movement mask", "random mask")):
        values = [e[arm][f"{name} accuracy"] for name in SHARES]
        spread = [v.interval.half_width for v in values]
        axes.bar(places + 0.27 * (i - 1), [v.mean for v in values], 0.25, yerr=spread, label=arm)
    for name, style in (("base", ":"), ("tuned", "--")):
        axes.axhline(e["learnt mask"][f"{name} accuracy"].mean, color="grey", ls=style, label=name)
    axes.set(xticks=places, xticklabels=list(SHARES), xlabel="share of the weights", ylabel="accuracy", ylim=(0, 1))
    axes.legend()


@paper.figure("What the graft of one task does for another: gain in accuracy")
def _(e, axes):
    matrix = e["three tasks"].matrix.mean.reshape(3, 3)
    axes.imshow(matrix, cmap="Blues", vmin=0)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axes.text(
                j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > matrix.max() / 2 else "black"
            )
    axes.set(xticks=range(3), xticklabels=TASKS, yticks=range(3), yticklabels=TASKS, xlabel="task", ylabel="graft of")


class _Placed(nn.Module):
    """An encoder whose pooled state is compared with frozen places, (classes, d_model): logits are scaled cosines."""

    def __init__(self, encoder: nn.Module, places: Tensor, scale: float = 20.0) -> None:
        super().__init__()
        self.encoder, self.scale = encoder, scale
        self.places: Tensor
        self.register_buffer("places", places)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        pooled = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return SimpleNamespace(logits=self.scale * pooled @ self.places.T, pooled=pooled)


class _Pair:
    """The base, the model tuned on `tasks`, and few examples and many tests of each."""

    def __init__(self, trial: Trial, tasks: Sequence[str]) -> None:
        self.trial, self.tasks, self.tokenizer = trial, tasks, mc.models.processor("minilm")
        encoder = mc.load("minilm")
        words = self.tokenizer(list(WORDS), return_tensors="pt")
        with torch.no_grad():
            self.base = _Placed(encoder, torch.zeros(2, 384)).eval()
            self.base.places = self.base(words["input_ids"], words["attention_mask"]).pooled
        self.trains = trial.pick(smoke=".layer.5.output.", full=".layer.")  # of the names of weights
        self.few = {task: _rows(task, True, trial.pick(smoke=4, full=SHOTS), trial.seed) for task in TASKS}
        self.tests = {task: _rows(task, False, trial.pick(smoke=4, full=140), trial.seed) for task in TASKS}
        self.tuned = copy.deepcopy(self.base)
        name = "-".join(tasks)
        self.tuned.load_state_dict(kept(paper, trial, name, self._tune), strict=False)
        self.delta = Delta.between(self.base, self.tuned)
        self.size = sum(entry.dense().numel() for entry in self.delta.values())

    def _tune(self) -> Mapping[str, Tensor]:
        model = copy.deepcopy(self.base)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.trains in name)
        splits = [self.few[task] for task in self.tasks]
        rows = mc.data.Split({"text": [t for s in splits for t in s["text"]],
                              "label": np.concatenate([s["label"] for s in splits])})  # fmt: skip
        steps = self.trial.pick(smoke=1, full=48 + 16 * (len(splits) - 1))
        batches = mc.data.Batches(rows, self.tokenizer, 8, max_length=LENGTH, seed=self.trial.seed, steps=steps)
        mc.fit(model, batches, CrossEntropy(), steps=steps, update=mc.Gradient("sgd", 0.02), seed=self.trial.seed,
               callbacks=[_Pull(self.base)], progress=False)  # fmt: skip
        return {name: p.detach() for name, p in model.named_parameters() if self.trains in name}

    def localized(self, task: str, share: float, shuffled: bool = False) -> tuple[Selection, int]:
        """A learnt mask of at most `share` of the blocks' weights, and how many coordinates left the start."""
        batches = list(mc.data.Batches(self.few[task], self.tokenizer, 16, max_length=LENGTH, shuffle=False))
        if shuffled:
            g = torch.Generator().manual_seed(self.trial.seed)
            labels = torch.cat([b["labels"] for b in batches])
            mixed = torch.split(labels[torch.randperm(len(labels), generator=g)], [len(b["labels"]) for b in batches])
            batches = [{**b, "labels": part} for b, part in zip(batches, mixed, strict=True)]
        budget = round(share * self.size)
        start = movement_mask(self.delta, k=budget * 3 // 4)
        epochs = self.trial.pick(smoke=1, full=10)
        found = localize(self.base, self.delta, batches, CrossEntropy(), budget=budget, start=start, epochs=epochs)
        return found.mask, (start - found.mask).count

    def logits(self, model: nn.Module, task: str, change: Delta | None = None) -> tuple[Tensor, Tensor]:
        """Logits and labels of the tests of a task, with a graft in place for the while."""
        batches = mc.data.Batches(self.tests[task], self.tokenizer, 40, max_length=LENGTH, shuffle=False)
        if change is not None:
            with change.applied(model, strict=False):
                return self.logits(model, task)
        with torch.inference_mode():
            found = [(model(b["input_ids"], b["attention_mask"]).logits, b["labels"]) for b in batches]
        return torch.cat([logits for logits, _ in found]), torch.cat([labels for _, labels in found])

    def accuracy(self, model: nn.Module, task: str, change: Delta | None = None) -> float:
        logits, labels = self.logits(model, task, change)
        return float((logits.argmax(1) == labels).float().mean())

    def measures(self, name: str, model: nn.Module, change: Delta | None) -> dict[str, float]:
        """Accuracy and calibration on tweets, and accuracy on sentences on films, which were never trained."""
        logits, labels = self.logits(model, "tweets", change)
        return {
            f"{name} accuracy": float((logits.argmax(1) == labels).float().mean()),
            f"{name} calibration error": calibration_error(logits.softmax(1), labels),
            f"{name} elsewhere": self.accuracy(model, "movies", change),
        }

    def compared(self, masks: Mapping[str, Selection]) -> dict[str, float]:
        """Accuracy and gain with each mask."""
        ends = {"base": self.base, "tuned": self.tuned}
        found = {f"{name} accuracy": self.accuracy(model, "tweets") for name, model in ends.items()}
        for name, mask in masks.items():
            found[f"{name} accuracy"] = self.accuracy(self.base, "tweets", graft(self.base, self.tuned, mask))
            found[f"{name} gain"] = self.gain(found[f"{name} accuracy"], found)
        return found

    def gain(self, accuracy: float, found: Mapping[str, float]) -> float:
        """The share of what tuning gained."""
        whole = found["tuned accuracy"] - found["base accuracy"]
        return (accuracy - found["base accuracy"]) / whole if whole else 0.0

    def exactness(self) -> dict[str, float]:
        """1 where grafts of nothing, everything and a random tenth are what they should be, bit for bit."""
        right = True
        base, tuned = ({n: p.detach().clone() for n, p in m.named_parameters()} for m in (self.base, self.tuned))
        for share in (0.0, 0.1, 1.0):
            mask = Selection.random({n: base[n] for n in self.delta}, seed=0, fraction=share)
            with graft(self.base, self.tuned, mask).applied(self.base, strict=False):
                for name, p in self.base.named_parameters():
                    wanted = torch.where(mask[name], tuned[name], base[name]) if name in mask else base[name]
                    right &= torch.equal(p, wanted)
        return {"exact": float(right)}


class _Pull(Callback):
    """After every step each weight goes back towards the base's by `PULL`, at most to it: the L1 penalty's step."""

    def __init__(self, base: nn.Module) -> None:
        self.base = dict(base.named_parameters())

    @torch.no_grad()
    def on_step(self, run: Run) -> None:
        for name, parameter in run.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(self.base[name] + F.softshrink(parameter - self.base[name], PULL))


def _rows(task: str, train: bool, each: int, seed: int) -> Any:
    """At most `each` examples a class: texts with label 1 for positive, or wanted mail."""
    if task == "spam":
        data = mc.data("spam")["train" if train else "test"]
        texts, labels = list(data["text"]), np.asarray(data["label"])
    else:
        data = mc.data("sentiment-scores", source=task)
        parts = [data["train"]] if train else [data["validation"], data["test"]]
        values = np.concatenate([np.asarray(part["value"]) for part in parts])
        every = [text for part in parts for text in part["text"]]
        clear = np.flatnonzero(np.abs(values) > 0.8)
        texts, labels = [every[i] for i in clear], (values[clear] > 0).astype(np.int64)
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:each] for label in (0, 1)])
    order = rng.permutation(chosen)
    return mc.data.Split({"text": [texts[i] for i in order], "label": labels[order].astype(np.int64)})
