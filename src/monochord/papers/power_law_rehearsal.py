"""Catastrophic Interference is Mitigated in Naturalistic Power-Law Learning Environments, January 18, 2024.

Ten tasks, each its own permutation of the pixels of handwritten digits (8 by 8), 1,297 images a task, one head for all,
two hidden layers of 256. After each task 130 images of old ones come back, shared by a power law of their age, or by
another law. EWC, SI and LwF are tuned over four strengths on another stream, of five tasks, with validation images.
Uniform rehearsal is better than any law that forgets: it is shown as the bound it is, not as something to beat.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import monochord as mc
from monochord.continual.ewc import EWC
from monochord.continual.rehearsal import RehearsalSchedule
from monochord.continual.retention import Retention
from monochord.continual.stream import Strategy, learn_stream
from monochord.continual.synaptic_intelligence import SynapticIntelligence
from monochord.continual.without_forgetting import LearningWithoutForgetting
from monochord.data.tasks.power_law_stream import PowerLawStream
from monochord.lab.paper import Paper, Trial
from monochord.objectives import CrossEntropy

paper = Paper(
    "power-law-rehearsal",
    "Old tasks that come back by a power law of their age are kept, better than by penalties or by other fading laws",
    uses=["monochord.continual.rehearsal", "monochord.continual.stream", "monochord.continual.retention",
          "monochord.continual.springs", "monochord.continual.ewc", "monochord.continual.synaptic_intelligence",
          "monochord.continual.without_forgetting"],
    chance={"final": 0.1},
)  # fmt: skip
TASKS, ROWS, EPOCHS, BATCH, SHARE = 10, 1297, 5, 32, 0.1
TUNING = 1000  # added to the seed of the runs in which a strength is chosen

EWC_STRENGTHS = (1.0, 5.0, 25.0, 125.0)
SI_STRENGTHS = (0.1, 1.0, 10.0, 100.0)
LWF_STRENGTHS = (0.3, 1.0, 3.0, 10.0)


def power(d: float = 1.0) -> RehearsalSchedule:
    return RehearsalSchedule.power_law(d, SHARE)


@paper.arm("power law")
def power_law(trial: Trial) -> dict[str, Any]:
    """Shares fall as one over the age."""
    return _measures(_run(trial, power()))


@paper.arm("power law, d = 0.5")
def power_law_slow(trial: Trial) -> dict[str, Any]:
    return _measures(_run(trial, power(0.5)))


@paper.arm("power law, d = 2")
def power_law_fast(trial: Trial) -> dict[str, Any]:
    return _measures(_run(trial, power(2.0)))


@paper.arm("none", role="baseline")
def none(trial: Trial) -> dict[str, Any]:
    """Nothing comes back: plain training in sequence."""
    return _measures(_run(trial, None))


@paper.arm("exponential", role="baseline")
def exponential(trial: Trial) -> dict[str, Any]:
    return _measures(_run(trial, RehearsalSchedule.exponential(1.0, SHARE)))


@paper.arm("recent", role="baseline")
def recent(trial: Trial) -> dict[str, Any]:
    return _measures(_run(trial, RehearsalSchedule.recent(SHARE)))


@paper.arm("ewc", role="baseline")
def ewc(trial: Trial) -> dict[str, Any]:
    """The best of four strengths, without rehearsal."""
    return _tuned(trial, EWC, EWC_STRENGTHS)


@paper.arm("si", role="baseline")
def si(trial: Trial) -> dict[str, Any]:
    return _tuned(trial, SynapticIntelligence, SI_STRENGTHS)


@paper.arm("lwf", role="baseline")
def lwf(trial: Trial) -> dict[str, Any]:
    return _tuned(trial, LearningWithoutForgetting, LWF_STRENGTHS)


@paper.arm("ewc with power law")
def ewc_with(trial: Trial) -> dict[str, Any]:
    return _tuned(trial, EWC, EWC_STRENGTHS[:2], power())


@paper.arm("lwf with power law")
def lwf_with(trial: Trial) -> dict[str, Any]:
    return _tuned(trial, LearningWithoutForgetting, LWF_STRENGTHS[:2], power())


@paper.arm("wrong labels", role="control")
def wrong_labels(trial: Trial) -> dict[str, Any]:
    """As much comes back, its labels permuted: it must not help."""
    return _measures(_run(trial, power(), shuffled=True))


@paper.arm("more of the new task", role="control")
def more_of_the_new(trial: Trial) -> dict[str, Any]:
    """As many further updates on rows of the new task: it is not the updates."""
    return _measures(_run(trial, power(), source=lambda phase, old: phase))


@paper.arm("uniform", role="ceiling")
def uniform(trial: Trial) -> dict[str, Any]:
    """Every old task as much: an environment that no natural learner gets."""
    return _measures(_run(trial, RehearsalSchedule.uniform(SHARE)))


@paper.arm("oldest most", role="ceiling")
def oldest(trial: Trial) -> dict[str, Any]:
    """Shares rise with the age."""
    return _measures(_run(trial, RehearsalSchedule.custom(lambda age: age, SHARE)))


@paper.arm("other sizes")
def other_sizes(trial: Trial) -> dict[str, Any]:
    """The gain over plain training with five tasks, a narrow net, a deep one, half and double the rehearsal."""
    changes: tuple[dict[str, Any], ...] = ({"tasks": 5}, {"width": 64}, {"layers": 3})
    gains = [_run(trial, power(), **c).final - _run(trial, None, **c).final for c in changes]
    plain = _run(trial, None).final
    gains += [_run(trial, RehearsalSchedule.power_law(1.0, share)).final - plain for share in (0.05, 0.2)]
    return {"gains": gains}


@paper.claim("rehearsal by a power law ends at least 15 points above plain training in sequence")
def _(e):
    return e.difference("power law", "none", "final").mean >= 0.15


@paper.claim("and at least 2 points above the best strength of EWC and of SI")
def _(e):
    return min(e.difference("power law", name, "final").mean for name in ("ewc", "si")) >= 0.02


@paper.claim(
    "power laws with d up to 1 end at least 5 points above exponential fading and rehearsal of the last task alone"
)
def _(e):
    slow = ("power law", "power law, d = 0.5")
    return min(e.difference(a, b, "final").mean for a in slow for b in ("exponential", "recent", "none")) >= 0.05


@paper.claim("accuracy falls slower with age than in plain training, on every seed and at every age from 2 on")
def _(e):
    gap = e["power law"].curve.values - e["none"].curve.values
    return gap[:, 2:].mean(0).min() > 0 and gap.sum(1).min() > 0


@paper.claim("the same amount with permuted labels, or of the new task instead, does not help")
def _(e):
    return max(e.difference(name, "none", "final").mean for name in ("wrong labels", "more of the new task")) < 0.03


@paper.claim("added to EWC it gains at least 2 points, and added to LwF it takes nothing")
def _(e):
    with_ewc = e.difference("ewc with power law", "ewc", "final").mean
    return with_ewc >= 0.02 and e.difference("lwf with power law", "lwf", "final").mean >= 0


@paper.claim(
    "it helps with five tasks, narrow and deep nets, half and twice the amount, by 10 points or more on average"
)
def _(e):
    return e["other sizes"].gains.mean.min() >= 0.10


@paper.figure("Accuracy against age")
def _(e, axes):
    for name in ("uniform", "power law, d = 0.5", "power law", "power law, d = 2", "exponential", "recent", "none"):
        axes.plot(e[name].curve.mean, marker="o", ms=3, label=name)
    axes.axhline(e.chance["final"], color="grey", lw=0.8, ls=":")
    axes.set(xlabel="tasks since it was learnt", ylabel="accuracy")
    axes.legend()


@paper.figure("Accuracy over all tasks at the end")
def _(e, axes):
    names = [name for name in e if name != "other sizes"]
    means = [e[name].final.mean for name in names]
    order = np.argsort(means)
    lows = [e[names[i]].final.interval.half_width for i in order]
    axes.barh([names[i] for i in order], [means[i] for i in order], xerr=lows)
    axes.axvline(e.chance["final"], color="grey", lw=0.8, ls=":")
    axes.set(xlabel="accuracy")


def _measures(found: Retention) -> dict[str, Any]:
    steps = found.steps_to(0.7)
    return {
        "final": found.final,
        "learned": found.learned,
        "forgetting": found.forgetting,
        "curve": found.curve(),
        "first_task_steps": steps[0],
        "later_task_steps": float(np.mean(steps[1:])),  # more than the first: no facilitation here
    }


def _tuned(
    trial: Trial,
    make: Callable[[float], Strategy],
    strengths: tuple[float, ...],
    schedule: RehearsalSchedule | None = None,
) -> dict[str, Any]:
    """The strength that is best on another stream and validation images, measured on this one."""
    if trial.scale == "smoke":
        strengths = strengths[1:2]
    tried = (
        [_run(trial, schedule, strategy=make(s), tuning=True, tasks=5).final for s in strengths]
        if len(strengths) > 1
        else [0.0]
    )
    best = strengths[int(np.argmax(tried))]
    return _measures(_run(trial, schedule, strategy=make(best))) | {"strength": best, "tried": tried}


def _run(
    trial: Trial,
    schedule: RehearsalSchedule | None,
    *,
    strategy: Strategy | None = None,
    tuning: bool = False,
    shuffled: bool = False,
    source: Callable[[int, int], int] | None = None,
    tasks: int = TASKS,
    width: int = 256,
    layers: int = 2,
) -> Retention:
    tasks, rows, tests = trial.pick(smoke=(3, 100, 100), full=(tasks, ROWS, 1000))
    seed = trial.seed + TUNING * tuning
    train, test = _images("train", rows, seed), _images("validation" if tuning else "test", tests, 0)
    stream = PowerLawStream(tasks=tasks, seed=seed)
    orders = [torch.from_numpy(stream.permutation(k, train[0].shape[1])) for k in range(tasks)]
    given: list[Any] = [{"x": train[0][:, order], "labels": train[1]} for order in orders]
    if shuffled:  # what comes back is of a twin of each task, with permuted labels
        g = torch.Generator().manual_seed(seed)
        given += [{"x": t["x"], "labels": t["labels"][torch.randperm(rows, generator=g)]} for t in given]
        source = lambda phase, old: old + tasks
    torch.manual_seed(seed)
    widths = [train[0].shape[1], *[width] * layers]
    hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*hidden, nn.Linear(width, 10))

    def accuracy(model: nn.Module, k: int) -> float:
        return float((model(test[0][:, orders[k]]).argmax(1) == test[1]).float().mean())

    options: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH, "seed": seed, "phases": tasks, "source": source}
    return learn_stream(net, given, CrossEntropy(), accuracy, schedule=schedule, strategy=strategy, **options)


def _images(split: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """`n` images of a split as (n, 64) and their labels; those of training are drawn by the seed."""
    rows = mc.data("digits")[split]
    chosen = np.random.default_rng(seed).permutation(len(rows))[:n]
    chosen.sort()
    images = torch.from_numpy(np.asarray(rows["image"][chosen])).flatten(1).float() / 255
    return images, torch.from_numpy(np.asarray(rows["label"])[chosen])
