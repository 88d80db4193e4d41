"""Arbitrary Few Parameters are Good Enough for Adapting Large-scale Pre-trained Language Models, June 4, 2023.

The project's language models of 0.3, 1 and 3 million weights tell spam from wanted mail (24 tokens, chance 50 %; a
fresh head trains beside every method). LoRA and adapters are compared with as many weights of the blocks, drawn blindly
coordinate by coordinate; places and rows change with the seed. How few it takes is followed on the smallest and the
largest. Controls: a model before its training, and one tensor that gets all the coordinates. Every method takes the
best of its rates, by validation.

What fails: certainty. The trend over three sizes is as told and its interval over seeds reaches across zero; crowded
into one tensor the coordinates lose 2 points (0.759 against 0.777) but differ no more from draw to draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import linregress

import monochord as mc
from monochord.adapt.bottleneck_adapter import BottleneckAdapter
from monochord.adapt.full_tuning import FullTuning
from monochord.adapt.lora import LoRA
from monochord.adapt.random_parameters import RandomParameters
from monochord.core.tuner import Tuner
from monochord.lab.paper import Paper, Trial
from monochord.lab.problem import Problem, Tried, classes, copied

paper = Paper(
    "apet",
    "The larger a model, the less it matters which of its weights are tuned: blindly drawn ones catch up with LoRA",
    uses=["monochord.adapt.random_parameters", "monochord.adapt.lora", "monochord.adapt.bottleneck_adapter",
          "monochord.lab.problem"],
    chance={"accuracy": 0.5},
)  # fmt: skip

SIZES = {"0.3m": 272_832, "1m": 918_656, "3m": 2_515_008}
BLOCKS = "blocks.**"
DESIGNED: dict[str, Callable[[], Tuner]] = {
    "lora": lambda: LoRA(rank=4),
    "adapter": lambda: BottleneckAdapter(bottleneck=4),
}
RATES, BLIND_RATES, FULL_RATES = (3e-3, 1e-2), (1e-2, 3e-2), (5e-4, 1e-3)
COUNTS = (10, 100, 1000, 10_000)
STEPS = 40


def _ladder(size: str) -> None:
    @paper.arm(size)
    def measure(trial: Trial) -> dict[str, Any]:
        """The designed methods, as many blind coordinates, all weights, and the head alone."""
        problem = _mails(trial, f"ladder-{size}")
        head, full = _best(trial, problem, lambda: None, (1.0,)), _best(trial, problem, _full, FULL_RATES)
        found = {"head": head.score, "full": full.score}
        for name, make in DESIGNED.items():
            designed = _best(trial, problem, make, RATES)
            blind = _best(trial, problem, _blind(designed.trained), BLIND_RATES)
            assert blind.trained == designed.trained
            found |= {name: designed.score, f"blind {name}": blind.score, f"{name} trained": designed.trained}
        return found


for _size in SIZES:
    _ladder(_size)


@paper.arm("thresholds")
def thresholds(trial: Trial) -> dict[str, Any]:
    """Accuracy with ever more blind coordinates of the smallest and of the largest model, and of norms alone."""
    found: dict[str, Any] = {}
    for size in ("0.3m", "3m"):
        problem = _mails(trial, f"ladder-{size}")
        counts = trial.pick(smoke=COUNTS[:1], full=COUNTS)
        scores = [_best(trial, problem, _blind(n), BLIND_RATES[1:]).score for n in counts]
        found[size] = [*scores, *[0.5] * (len(COUNTS) - len(scores))]
    problem = _mails(trial, "ladder-0.3m")
    norms = [_best(trial, problem, _blind(n, "blocks.*.*norm*.weight"), BLIND_RATES[1:]).score for n in (10, 100)]
    return {**found, "norms": norms}


@paper.arm("random init", role="control")
def random_init(trial: Trial) -> dict[str, Any]:
    """Blind coordinates, as many as LoRA's, in the largest model before its training."""
    problem = _mails(trial, "ladder-3m", checkpoint="init")
    head, full = _best(trial, problem, lambda: None, (1.0,)), _best(trial, problem, _full, FULL_RATES)
    lora = _best(trial, problem, DESIGNED["lora"], RATES)
    blind = _best(trial, problem, _blind(lora.trained), BLIND_RATES)
    return {"head": head.score, "full": full.score, "lora": lora.score, "blind lora": blind.score}


@paper.arm("badly placed", role="control")
def badly_placed(trial: Trial) -> dict[str, Any]:
    """1,000 coordinates in a single tensor drawn by the seed, and spread out."""
    problem = _mails(trial, "ladder-0.3m")
    chosen = np.random.default_rng(trial.seed).integers(3)
    kind = ("attn.q", "mlp.up", "mlp.down")[np.random.default_rng((trial.seed, 1)).integers(3)]
    packed = _best(trial, problem, _blind(1000, f"blocks.{chosen}.{kind}.weight"), BLIND_RATES)
    spread = _best(trial, problem, _blind(1000), BLIND_RATES)
    return {"packed": packed.score, "spread": spread.score}


@paper.claim("LoRA's and adapters' lead over blind coordinates, in shares of full tuning's gain, falls with size")
def _(e):
    gaps = _gaps(e)
    sizes = np.repeat(np.log(list(SIZES.values())), gaps.shape[1])
    return bool(linregress(sizes, gaps.flatten()).slope < 0)


@paper.claim("and does so with 90 % confidence, by the bootstrap over seeds")
def _(e):
    gaps, x = _gaps(e), np.log(list(SIZES.values()))
    rng = np.random.default_rng(0)
    slopes = [np.polyfit(x, gaps[:, rng.integers(gaps.shape[1], size=gaps.shape[1])].mean(1), 1)[0] for _ in range(999)]
    return float(np.quantile(slopes, 0.95)) < 0


@paper.claim("on the largest model blind coordinates keep at least 90 % of LoRA's gain")
def _(e):
    arm = e["3m"]
    return arm["blind lora"].mean - arm.head.mean >= 0.9 * (arm.lora.mean - arm.head.mean)


@paper.claim("the least number that beats chance by 10 points is the same within a factor of ten, norms included")
def _(e):
    lows = [_least(e["thresholds"][size].mean, 0.6) for size in ("0.3m", "3m")] + [
        _least(e["thresholds"].norms.mean, 0.6)
    ]
    return max(lows) <= 10 * min(lows) and max(lows) <= COUNTS[-1]


@paper.claim("the least share of the weights that reaches full tuning within 2 points falls from 0.3 to 3 million")
def _(e):
    shares = [_least(e["thresholds"][size].mean, e[size].full.mean - 0.02) / SIZES[size] for size in ("0.3m", "3m")]
    return shares[1] < shares[0]


@paper.claim("before training blind coordinates gain less over the head than after it")
def _(e):
    before, after = e["random init"], e["3m"]
    return before["blind lora"].mean - before.head.mean < after["blind lora"].mean - after.head.mean


@paper.claim("packed into one tensor, coordinates differ more from draw to draw than spread out")
def _(e):
    own = e["badly placed"]
    return float(own.packed.values.std()) > float(own.spread.values.std())


@paper.figure("Designed and blind, by size")
def _(e, axes):
    for name, style in (("lora", "-"), ("adapter", "--")):
        for prefix, colour in (("", "C0"), ("blind ", "C1")):
            scores = [e[size][f"{prefix}{name}"].mean for size in SIZES]
            axes.plot(list(SIZES.values()), scores, style, color=colour, marker="o", ms=4,
                      label=f"{prefix}coordinates, as many as {name}" if prefix else name)  # fmt: skip
    for name in ("full", "head"):
        label = {"full": "all weights (above), the head alone"}.get(name)
        axes.plot(list(SIZES.values()), [e[size][name].mean for size in SIZES], ":", color="grey", lw=0.9, label=label)
    axes.set(xscale="log", xlabel="weights", ylabel="accuracy on test mails")
    axes.set_xticks(list(SIZES.values()), [size.removeprefix("ladder-") for size in SIZES])
    axes.minorticks_off()
    axes.legend()


def _gaps(e: Any) -> np.ndarray:
    """The designed methods' lead in shares of what full tuning gains over the head, (sizes, seeds)."""
    rows = []
    for size in SIZES:
        arm = e[size]
        lead = np.mean([arm[name].values - arm[f"blind {name}"].values for name in DESIGNED], 0)
        rows.append(lead / max(arm.full.mean - arm.head.mean, 0.01))
    return np.stack(rows)


def _least(scores: Any, wanted: float) -> float:
    """The smallest of `COUNTS` with such a score, ten times the largest if there is none."""
    return float(next((n for n, score in zip(COUNTS, scores, strict=False) if score >= wanted), 10 * COUNTS[-1]))


def _full() -> Tuner:
    return FullTuning(BLOCKS)


def _blind(n: int, sites: str = BLOCKS) -> Callable[[], Tuner]:
    return lambda: RandomParameters(n=n, sites=sites)


def _best(trial: Trial, problem: Problem, make: Callable[[], Tuner | None], rates: tuple[float, ...]) -> Tried:
    return problem.best(make, trial.pick(smoke=rates[:1], full=rates), trial.pick(smoke=1, full=STEPS))


def _mails(trial: Trial, name: str, checkpoint: str = "final") -> Problem:
    sizes = trial.pick(smoke=(16, 8, 8), full=(640, 200, 600))
    return classes(name, mc.data("spam"), seed=trial.seed, train=sizes[0], validation=sizes[1], test=sizes[2],
                   max_length=24, start=lambda: copied(name, checkpoint=checkpoint))  # fmt: skip
