"""Parameter-Efficient Transfer Learning of Audio Spectrogram Transformers, December 6, 2023.

A spectrogram transformer of 1.2 million weights that tells languages by letters and telephone prompts goes on to two
new tasks with 16 sounds a class: nine languages in the spoken captions of Tux Paint, by speakers it never heard, and
the same under noise as strong as the sound (in log-mel energies). What is said, rather than in which language, this
body can't tell: kinds of prompts, vowels and first consonants stay near chance, fully tuned too. Adapters with and
without a convolution, LoRA, prefixes, prompts, BitFit and full tuning see the same batches and take the best of the
same two rates by validation (full tuning of lower ones); at 1 % of the weights where a method can choose. A new head
trains with every method at one rate. No norm of the body trains with any method but BitFit and full tuning.

What fails: a body that was never trained, frozen, with a conformer adapter and a head, is only 6 points worse. Nine
readers, one a language, are told apart by the spectrum of their voice and microphone, which random features keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import monochord as mc
from monochord.adapt.bitfit import BitFit
from monochord.adapt.bottleneck_adapter import BottleneckAdapter
from monochord.adapt.conformer_adapter import ConformerAdapter
from monochord.adapt.full_tuning import FullTuning
from monochord.adapt.lora import LoRA
from monochord.adapt.parallel_adapter import ParallelAdapter
from monochord.adapt.prefix_tuning import PrefixTuning
from monochord.adapt.prompt_tokens import PromptTokens
from monochord.core.attach import Placement, attach
from monochord.core.modification import Ablate, Modification
from monochord.core.tuner import Tuner
from monochord.data import Split
from monochord.lab.paper import Paper, Trial
from monochord.lab.problem import Problem, Tried, classes, copied
from monochord.objectives import CrossEntropy

paper = Paper(
    "petl-ast",
    "Adapters beside the MLP, with a convolution too, carry a spectrogram transformer to new sounds best",
    uses=["monochord.adapt.conformer_adapter"],
    chance={"tongues": 1 / 9, "noisy": 1 / 9},
)

NET = "speech-ast"
LAYERS, WIDTH, SIZE = 6, 128, 1_228_809
RATES, FULL_RATES = (3e-3, 1e-2), (3e-4, 1e-3)
TONGUES = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")
TASKS = ("tongues", "noisy")
NOISE = 0.5  # the sd of the input
FEW = 4  # sounds a class, beside 16

Make = Callable[[float], Tuner | None]  # of the share of the weights


def _width(share: float, each: int, fixed: int = 0) -> int:
    """How many units a layer spend the share, at `each` weights a unit and `fixed` ones a layer."""
    return max(round((share * SIZE / LAYERS - fixed) / each), 1)


def _conformer(share: float, kernel: int = 31) -> ConformerAdapter:
    return ConformerAdapter(reduction=round(WIDTH / _width(share, 3 * WIDTH + 4 + kernel, WIDTH)), kernel=kernel)


METHODS: dict[str, Make] = {
    "conformer": _conformer,
    "bottleneck": lambda s: ParallelAdapter("blocks.*.mlp:out", _width(s, 2 * WIDTH + 1, WIDTH), scale=1.0),
    "lora": lambda s: LoRA("blocks.*.attn.{q,v}.weight", rank=(r := _width(s, 4 * WIDTH)), alpha=2.0 * r),
    "prefix": lambda s: PrefixTuning(_width(s, 2 * WIDTH)),
    "prompt": lambda s: PromptTokens(min(round(s * SIZE / WIDTH), 32)),
    "bitfit": lambda s: BitFit(),
    "linear probe": lambda s: None,
}
SIZED, SPARSE = ("conformer", "bottleneck"), ("conformer", "bottleneck", "lora", "prefix", "prompt")


def _arm(name: str, make: Make) -> None:
    @paper.arm(name, role="method" if name in SIZED else "baseline")
    def measure(trial: Trial) -> dict[str, Any]:
        tried = {task: _best(_problem(trial, task), trial, make(0.01)) for task in TASKS}
        found: dict[str, Any] = {task: one.score for task, one in tried.items()}
        found |= {"mean": np.mean(list(found.values())), "trained": tried["tongues"].trained}
        found |= {f"{task}_rate": one.rate for task, one in tried.items()}
        if name in SPARSE:
            found["few"] = _best(_problem(trial, "tongues", FEW), trial, make(0.01)).score
        if name in SIZED:
            for share, label in ((0.003, "small"), (0.03, "large")):
                found[label] = _best(_problem(trial, "tongues"), trial, make(share)).score
        return found


for _name, _make in METHODS.items():
    _arm(_name, _make)


@paper.arm("full tuning", role="ceiling")
def full_tuning(trial: Trial) -> dict[str, Any]:
    """Every weight trains."""
    found = {
        task: _best(_problem(trial, task), trial, FullTuning("audio_spectrogram_transformer"), FULL_RATES).score
        for task in TASKS
    }
    return {**found, "mean": np.mean(list(found.values()))}


@paper.arm("kernel of one", role="control")
def kernel_of_one(trial: Trial) -> dict[str, Any]:
    """A conformer adapter that mixes no patches, as large."""
    return {"tongues": _best(_problem(trial, "tongues"), trial, _conformer(0.01, kernel=1)).score}


@paper.arm("patches in another order", role="control")
def shuffled_patches(trial: Trial) -> dict[str, Any]:
    """The convolution runs over the tokens in one fixed random order, which is undone after it."""
    return {"tongues": _best(_problem(trial, "tongues"), trial, _Reordered(_conformer(0.01))).score}


@paper.arm("random body", role="control")
def random_body(trial: Trial) -> dict[str, Any]:
    """The conformer adapter on a body that was never trained."""
    problem = _problem(trial, "tongues", start=_untrained)
    return {"tongues": _best(problem, trial, _conformer(0.01)).score}


@paper.arm("exactness", role="control", seeded=False)
def exactness(trial: Trial) -> dict[str, Any]:
    """What has to hold to the bit, or nearly."""
    problem = _problem(Trial(0, "smoke"), "tongues")
    batch = problem.test[0]
    start, found = _logits(problem.model(), batch), {}
    for name, tuner in {
        "parallel": _conformer(0.01),
        "sequential": BottleneckAdapter("blocks.*.mlp:out", 4),
        "bottleneck": METHODS["bottleneck"](0.01),
    }.items():
        assert tuner is not None
        model = problem.model()
        tuned = tuner.attach(model)
        found[f"{name}_start"] = float((_logits(model, batch) - start).abs().max())
        own = {id(t) for _, change in tuned.placements for t in (*change.parameters(), *change.buffers())}
        frozen = {n: t.clone() for n, t in model.state_dict(keep_vars=True).items() if id(t) not in own}
        before = [p.detach().clone() for p in tuned.parameters()]
        mc.fit(model, problem.batches(2, 8), CrossEntropy(), steps=2, lr=1e-2, progress=False, device="cpu")
        still = [torch.equal(a, b) for a, b in zip(before, tuned.parameters(), strict=True)]
        found[f"{name}_still"] = float(sum(still))
        now = model.state_dict()
        found[f"{name}_frozen_moved"] = float(sum(not torch.equal(now[n], t) for n, t in frozen.items()))
    replaced = problem.model()
    with attach(replaced, {"blocks.*.mlp:out": Ablate()}):  # what an adapter of zeros without residual leaves
        found["sequential_without_residual"] = float((_logits(replaced, batch) - start).abs().max())
    units = round(WIDTH / _conformer(0.01).reduction)
    formula = LAYERS * (2 * units * WIDTH + 2 * units + 31 * units + 2 * units + units * WIDTH + WIDTH)
    return {**found, "count": _conformer(0.01).attach(problem.model()).n_trainable - formula}


@paper.claim("untrained adapters leave the net as it is; behind a sub-layer without residual one can't", exact=True)
def _(e):
    found = e["exactness"]
    exact = max(found.parallel_start.max, found.sequential_start.max, found.bottleneck_start.max)
    return exact < 1e-5 and found.sequential_without_residual.max > 1e-3


@paper.claim("after two steps every trained tensor has moved and no frozen one; the count is the formula's", exact=True)
def _(e):
    found = [
        e["exactness"][f"{n}_{what}"].max for n in ("parallel", "sequential") for what in ("still", "frozen_moved")
    ]
    return max(found) == 0 and e["exactness"].count.max == 0


@paper.claim("the better adapter is at least 5 points above the linear probe, over both tasks")
def _(e):
    return _adapter(e, "mean") >= e["linear probe"].mean.mean + 0.05


for _other in ("prompt", "prefix", "bitfit", "lora"):

    @paper.claim(f"and not below {_other}")
    def _(e, other=_other):
        return _adapter(e, "mean") >= e[other].mean.mean


@paper.claim("a conformer adapter is at most half a point below a bottleneck of as many weights")
def _(e):
    return e.difference("conformer", "bottleneck", "mean").mean >= -0.005


@paper.claim("the better adapter has 95 % of full tuning's accuracy")
def _(e):
    return _adapter(e, "mean") >= 0.95 * e["full tuning"].mean.mean


@paper.claim("with 4 sounds a class an adapter is above LoRA, prefix and prompt")
def _(e):
    return _adapter(e, "few") > max(e[name].few.mean for name in ("lora", "prefix", "prompt"))


@paper.claim("adapters of 3 % are above those of 0.3 %")
def _(e):
    return all(e[name].large.mean > e[name].small.mean for name in SIZED)


@paper.claim("a kernel of one, which mixes no patches, is below the conformer adapter")
def _(e):
    return e.difference("conformer", "kernel of one", "tongues").mean > 0


@paper.claim("the convolution over patches in another order is below the conformer adapter")
def _(e):
    return e.difference("conformer", "patches in another order", "tongues").mean > 0


@paper.claim("on a body that was never trained it is at least 20 points lower")
def _(e):
    return e.difference("conformer", "random body", "tongues").mean >= 0.2


@paper.figure("Accuracy on two new tasks, 16 sounds a class, 1 % of the weights")
def _(e, axes):
    names = sorted([*METHODS, "full tuning"], key=lambda name: e[name].mean.mean)
    for i, (task, label) in enumerate((("tongues", "nine languages"), ("noisy", "under noise"))):
        values = [e[name][task] for name in names]
        spread = [v.interval.half_width for v in values]
        axes.errorbar(
            [v.mean for v in values], np.arange(len(names)) + 0.12 * i, xerr=spread, fmt="o", ms=4, label=label
        )
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="accuracy")
    axes.legend()


def _adapter(e: Any, metric: str) -> float:
    """The better of the two adapters."""
    return float(max(e[name][metric].mean for name in SIZED))


def _steps(trial: Trial) -> int:
    return trial.pick(smoke=1, full=40)


def _best(problem: Problem, trial: Trial, tuner: Tuner | None, rates: tuple[float, ...] = RATES) -> Tried:
    rates = trial.pick(smoke=rates[:1], full=rates if tuner is not None else rates[:1])
    return problem.best(lambda: tuner, rates, trial.pick(smoke=1, full=40))


@cache
def _problem(trial: Trial, task: str, each: int = 16, start: Callable[[], nn.Module] | None = None) -> Problem:
    """A task with `each` sounds a class to learn from."""
    data, (held, test) = _captions(), trial.pick(smoke=(18, 18), full=(180, 360))
    labels = [data.label_names.index(name) for name in TONGUES]
    count = trial.pick(smoke=2, full=each) * len(TONGUES)
    found = classes(NET, data, seed=trial.seed, train=count, validation=held, test=test, labels=labels, start=start)
    if task == "noisy":
        generator = torch.Generator().manual_seed(trial.seed)

        def noisy(values: Tensor) -> Tensor:
            return values + NOISE * torch.randn(values.shape, generator=generator)

        values = noisy(torch.from_numpy(found.train["input_values"])).numpy()
        found.train = Split({"input_values": values, "label": found.train["label"]})
        for batch in (*found.validation, *found.test):
            batch["input_values"] = noisy(batch["input_values"])
    return found


@cache
def _captions() -> Any:
    return mc.data("tuxpaint-speech")


@dataclass(frozen=True)
class _Reordered(Tuner):
    """A conformer adapter that sees the tokens in a fixed random order."""

    inner: ConformerAdapter

    def plan(self, model: nn.Module, generator: torch.Generator) -> Iterator[Placement]:
        for site, change in self.inner.plan(model, generator):
            yield site, _Reorder(change)


class _Reorder(Modification):
    reads = "input"

    def __init__(self, inner: Modification) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, value: Tensor, source: Tensor | None = None) -> Tensor:
        assert source is not None
        order = torch.randperm(value.shape[1], generator=torch.Generator().manual_seed(0))
        changed: Tensor = self.inner(value[:, order], source[:, order])
        return changed[:, order.argsort()]


def _untrained() -> nn.Module:
    return copied(NET, checkpoint="init")


def _logits(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_values=batch["input_values"]).logits
    return found
