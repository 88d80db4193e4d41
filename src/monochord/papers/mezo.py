"""Fine-Tuning Language Models with Just Forward Passes, May 26, 2023.

The project's language model of 0.3 million weights tells spam from wanted mail by a prompt: the first tokens of a mail,
"It is", and whether " good" or " bad" is likelier to follow (chance 50 %). All weights of its blocks are tuned by two
forward passes a step, or LoRA's factors, or the same without the prompt (a fresh head), from a random start, with
slopes that belong to other directions, and towards accuracy itself, which has no gradient. Adam takes a tenth of the
steps. Every arm takes the better of two rates, by validation.

What fails, at this size: a hundred steps of Adam reach 0.87, a thousand of two passes 0.77 (0.79 with four samples a
step); spam is told from a random start (0.72) or without the prompt (0.74) nearly as well, so that pretraining counts
for little; the model untuned always says one of the two words, where accuracy itself has no slope; and of a net of four
blocks Adam's step takes 2.8 times the memory. A larger model was tried: SmolLM2 tells whether a sentence praises a film
in 0.66 untuned; 2000 steps of two passes on its last block come to 0.74 to 0.76 (three seeds; 2500 on seed 101 to
0.79), a hundred of Adam, and logistic regression, to 0.82 there; on accuracy itself it then rises a little (0.69).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import monochord as mc
from monochord.adapt.full_tuning import FullTuning
from monochord.adapt.lora import LoRA
from monochord.core.curvature import curvature
from monochord.core.tuner import Tuner
from monochord.core.zeroth_order import ZerothOrder
from monochord.data import Split
from monochord.lab.paper import Paper, Trial
from monochord.lab.problem import Batch, Problem, accuracy, copied
from monochord.models.heads import Classifier
from monochord.objectives.cross_entropy import CrossEntropy
from monochord.objectives.prompt_classification import PromptClassification

paper = Paper(
    "mezo",
    "Two forward passes a step tune a prompted language model, in the memory of inference and without gradients",
    uses=["monochord.core.zeroth_order", "monochord.core.noise", "monochord.core.curvature",
          "monochord.objectives.prompt_classification", "monochord.lab.problem"],
    chance={"accuracy": 0.5},
)  # fmt: skip

MODEL, PROMPT, WORDS, LENGTH = "ladder-0.3m", " It is", (" good", " bad"), 20
BLOCKS = "blocks.**"
STEPS, EVERY, EPS = 1000, 100, 1e-2
RATES, LORA_RATES, ADAM_RATES = (5e-4, 1e-3), (5e-3, 1e-2), (1e-3, 3e-3)


@paper.arm("mezo")
def mezo(trial: Trial) -> dict[str, Any]:
    """The method on all weights of the blocks."""
    return _tuned(trial, lambda: FullTuning(BLOCKS), RATES)


@paper.arm("mezo on lora")
def mezo_lora(trial: Trial) -> dict[str, Any]:
    """The same on LoRA's factors of rank 3, of which there are far fewer, scaled by 2 as in the paper."""
    return _tuned(trial, lambda: LoRA(rank=3, alpha=6.0), LORA_RATES)


@paper.arm("adam", role="ceiling")
def adam(trial: Trial) -> dict[str, Any]:
    """Backpropagation through all weights of the blocks; and logistic regression on the state at the answer."""
    from sklearn.linear_model import LogisticRegression

    problem = _mails(trial)
    tried = problem.best(lambda: FullTuning(BLOCKS), ADAM_RATES, trial.pick(smoke=2, full=STEPS // 10))
    seen = [_states(problem.model(), batches) for batches in (_epoch(trial), problem.validation, problem.test)]
    probes = [LogisticRegression(C=c, max_iter=300).fit(*seen[0]) for c in (0.1, 1.0, 10.0)]
    best = max(probes, key=lambda probe: probe.score(*seen[1]))
    return {
        **tried.measures(),
        "zero_shot": problem.score(problem.model(), problem.test),
        "probe": best.score(*seen[2]),
    }


@paper.arm("other directions", role="control")
def other_directions(trial: Trial) -> dict[str, Any]:
    """Each slope moves the weights along a direction that it was not taken along."""
    return _tuned(trial, lambda: FullTuning(BLOCKS), RATES, update=_Astray)


@paper.arm("random init", role="control")
def random_init(trial: Trial) -> dict[str, Any]:
    """The method on the model before any training."""
    return _tuned(trial, lambda: FullTuning(BLOCKS), RATES, problem=_mails(trial, checkpoint="init"))


@paper.arm("no prompt", role="control")
def no_prompt(trial: Trial) -> dict[str, Any]:
    """A head that starts at random in the place of prompt and words."""
    return _tuned(trial, lambda: FullTuning((BLOCKS, "head.*")), RATES, problem=_mails(trial, prompted=False))


@paper.arm("accuracy itself")
def accuracy_itself(trial: Trial) -> dict[str, Any]:
    """The method on the batch's accuracy, in wider steps of the difference."""
    objective = PromptClassification(_words(), measure="accuracy")
    return _tuned(trial, lambda: FullTuning(BLOCKS), RATES, objective=objective, eps=3e-2)


@paper.arm("memory and curvature", seeded=False)
def memory(trial: Trial) -> dict[str, Any]:
    """What a step adds to the process at its peak, on 16 texts of 256 tokens, and the effective rank at the start."""
    model, size = copied("ladder-1m"), trial.pick(smoke=(2, 16), full=(16, 256))
    batch = {"input_ids": torch.arange(size[0] * size[1]).reshape(size) % 2000}
    objective, found = PromptClassification(_words()), {}
    batch["labels"] = torch.arange(size[0]) % 2
    for name, update in (("forward", ZerothOrder(1e-9, noise="sign")), ("adam", mc.Gradient("adam", 1e-9))):
        update.setup(model)
        before = _reset_peak()
        update.step(model, batch, objective)
        found[name] = _peak() - before
    mails = _mails(trial)
    small = mails.model()
    for parameter in small.parameters():
        parameter.requires_grad_(True)
    probes = trial.pick(smoke=2, full=16)
    curved = curvature(small, objective, mails.validation[0], probes=probes, iterations=probes)
    return {
        "memory_forward": found["forward"],
        "memory_adam": found["adam"],
        "effective_rank": curved.effective_rank,
        "weights": curved.count,
        "slowdown": curved.slowdown(),
    }


@paper.claim("mezo is at least 10 points better than the model untuned")
def _(e):
    return e["mezo"].score.mean >= e["adam"].zero_shot.mean + 0.1


@paper.claim("and at most a point behind logistic regression on the model's states")
def _(e):
    return e["mezo"].score.mean >= e["adam"].probe.mean - 0.01


@paper.claim("and within 5 points of Adam")
def _(e):
    return e["mezo"].score.mean >= e["adam"].score.mean - 0.05


@paper.claim("with slopes along other directions it learns nothing: within 3 points of chance")
def _(e):
    return e["other directions"].score.mean <= e.chance["accuracy"] + 0.03


@paper.claim("from a random start it gains at most 30 % of what it gains on the trained model")
def _(e):
    gains = [e[arm].score.mean - e.chance["accuracy"] for arm in ("random init", "mezo")]
    return gains[0] <= 0.3 * gains[1]


@paper.claim("without the prompt it ends at least 5 points lower")
def _(e):
    return e["no prompt"].score.mean <= e["mezo"].score.mean - 0.05


@paper.claim("on accuracy itself it rises at least 5 points, on data not trained on")
def _(e):
    return e["accuracy itself"].score.mean >= e["adam"].zero_shot.mean + 0.05


@paper.claim("LoRA, with fifty times fewer numbers, takes between a third of the steps and three times as many")
def _(e):
    few = e["mezo"].trained.mean / e["mezo on lora"].trained.mean >= 50
    ratio = e["mezo on lora"].steps_to_target.mean / e["mezo"].steps_to_target.mean
    reached = max(e["mezo on lora"].steps_to_target.max, e["mezo"].steps_to_target.max) <= STEPS
    return few and reached and 1 / 3 < ratio < 3


@paper.claim("Adam's step takes at least three times the memory")
def _(e):
    own = e["memory and curvature"]
    return own.memory_adam.mean >= 3 * own.memory_forward.mean


@paper.figure("Training loss over steps")
def _(e, axes):
    for arm in ("mezo", "mezo on lora", "random init", "no prompt", "other directions"):
        losses = e[arm].losses.mean
        axes.plot(np.arange(1, len(losses) + 1) * STEPS / len(losses), losses, label=arm)
    axes.axhline(np.log(2), color="grey", ls=":", lw=0.8, label="chance")
    axes.set(xlabel="step", ylabel="nats", ylim=(0.3, 1.3))
    axes.legend()


@paper.figure("Accuracy on test mails")
def _(e, axes):
    arms = [arm for arm in e if arm != "memory and curvature"]
    found = [e[arm].score for arm in arms]
    axes.barh(arms, [f.mean for f in found], xerr=[f.interval.half_width for f in found])
    axes.axvline(e["adam"].zero_shot.mean, color="grey", ls=":", lw=0.8)
    axes.set(xlabel="accuracy", xlim=(0.4, 1))


class _Astray(ZerothOrder):
    """Takes each slope for that of another direction."""

    def _update(self, pairs: Sequence[tuple[int, float]], rate: float, behind: float = 0.0) -> None:
        for seed, _ in pairs:  # first back to where the slopes were taken
            self._move(seed, behind)
        super()._update([(seed + 12_345, g) for seed, g in pairs], rate)


def _tuned(
    trial: Trial, make: Callable[[], Tuner], rates: tuple[float, ...], *, problem: Problem | None = None,
    objective: PromptClassification | None = None, update: type[ZerothOrder] = ZerothOrder, eps: float = EPS,
) -> dict[str, Any]:  # fmt: skip
    """The better rate: its accuracy, losses in tenths, and the first step from which the loss stays below 0.6."""
    problem = problem or _mails(trial)
    steps, rates = trial.pick(smoke=2, full=STEPS), trial.pick(smoke=rates[:1], full=rates)
    options: dict[str, Any] = {"update": lambda rate: update(rate, eps, noise="sign", seed=trial.seed)}
    tried = problem.best(make, rates, steps, objective=objective, train_head=False, **options)
    parts = np.array_split(np.asarray(tried.losses), trial.pick(smoke=2, full=STEPS // EVERY))
    losses = [float(part.mean()) for part in parts]
    reached = next((i for i in range(len(losses)) if max(losses[i:]) < 0.6), len(losses))
    return {**tried.measures(), "losses": losses, "steps_to_target": (reached + 1.0) * EVERY}


def _mails(trial: Trial, checkpoint: str = "final", prompted: bool = True) -> Problem:
    words = PromptClassification(_words())

    def model() -> nn.Module:
        base = copied(MODEL, checkpoint=checkpoint)
        return base if prompted else Classifier(base, 2, seed=trial.seed)

    def score(model: nn.Module, batches: Sequence[Batch]) -> float:
        if not prompted:
            return accuracy(model, batches)
        with torch.inference_mode():
            right = [words.scores(model(b["input_ids"], b["attention_mask"]).logits, b).argmax(-1) == b["labels"]
                     for b in batches]  # fmt: skip
        return float(torch.cat(right).float().mean())

    size, steps = trial.pick(smoke=(16, 2), full=(512, STEPS))
    rows = np.random.default_rng((trial.seed, 1))
    order = np.concatenate([rows.permutation(size) for _ in range(-(-steps * 16 // size))])[: steps * 16]
    train = _batches(_drawn("train", size, trial.seed), order, 16)
    held = [_batches(_drawn(part, trial.pick(smoke=8, full=n), seed), None, 100)
            for part, n, seed in (("validation", 200, trial.seed), ("test", 400, 0))]  # fmt: skip
    objective = words if prompted else CrossEntropy()
    return Problem(model, Split({"batch": train}), held[0], held[1], objective, score, seed=trial.seed)


def _epoch(trial: Trial) -> list[Batch]:
    return _batches(_drawn("train", trial.pick(smoke=16, full=512), trial.seed), None, 64)


def _drawn(part: str, count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Mails of a split, as many of each kind."""
    rows, rng = mc.data("spam")[part], np.random.default_rng((seed, 11))
    labels = np.asarray(rows["label"])
    chosen = np.concatenate([rng.permutation(np.flatnonzero(labels == kind))[: count // 2] for kind in (0, 1)])
    chosen = rng.permutation(chosen)
    return [rows["text"][i] for i in chosen], labels[chosen]


def _batches(mails: tuple[list[str], np.ndarray], order: np.ndarray | None, size: int) -> list[Batch]:
    """The first tokens of each mail and the prompt, padded on the right."""
    tokenizer = mc.models.processor(MODEL)
    tail = tokenizer(PROMPT)["input_ids"]
    ids = [torch.tensor(tokenizer(text[:200])["input_ids"][:LENGTH] + tail) for text in mails[0]]
    order = np.arange(len(ids)) if order is None else order
    made: list[Batch] = []
    for rows in np.split(order, range(size, len(order), size)):
        chosen = [ids[i] for i in rows]
        padded = nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        kept = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in chosen], batch_first=True)
        made.append({"input_ids": padded, "attention_mask": kept, "labels": torch.from_numpy(mails[1][rows])})
    return made


def _words() -> tuple[int, ...]:
    return tuple(mc.models.processor(MODEL)(word)["input_ids"][0] for word in WORDS)


def _states(model: nn.Module, batches: Sequence[Batch]) -> tuple[Any, Any]:
    """The last hidden state where the answer stands, and the labels."""
    states: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches:
            hidden = model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states[-1]
            states.append(hidden[torch.arange(len(hidden)), batch["attention_mask"].sum(1) - 1])
    return torch.cat(states).numpy(), torch.cat([batch["labels"] for batch in batches]).numpy()


def _reset_peak() -> float:
    """Forget the process's peak of memory (Linux); MiB in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
