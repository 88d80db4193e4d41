"""LEVI: Generalizable Fine-tuning via Layer-wise Ensemble of Different Views, February 7, 2024.

Pictures of clothes with two cues that mislead: a CNN of 0.3 million weights learnt them on textures that agree with the
class in 95 %, and is carried to 2000 pictures whose border's colour agrees in 90 %; in the test both cues are random.
LEVI reads its four layers, frozen, beside a CNN of 40 thousand weights that learns from nothing; compared are tuning of
all weights or the head, both in turn, LoRA, WiSE-FT (the share by validation), the small net, the mean of two nets'
predictions, and ensembles without one of the parts. Two further settings have one of the cues alone. Then texts: frozen
MiniLM beside a small convolution tells how positive sentences are (from -4 to 4), learnt on three kinds of text, 200
sentences each, and tested on the fourth, each in turn. Every method takes the best of two or three rates by validation
in the known domain, at equal steps. Parts of maps, norms and hidden layers of the heads were settled on seed 101, whose
test with random cues was in view, as were paler borders and a net pretrained on digits: none of these let it win.

What fails: the ensemble. With both cues random it is right in 46.5 %, where tuning all weights has 54.0, WiSE-FT 54.7,
the head alone 47.0 and the mean of two nets 47.8. The low layers seem to cost most: they carry the border as well, and
each has a vote. Heads on the last layer alone are better (52.4 %); all layers without the small net are no worse
(47.3), nor with one that stays random (47.3). The small net gives nothing: alone it follows the border (25.1 %), and
where no border says the class, textures that it never met leave it 40.8. LEVI is the best there, by little (60.4;
WiSE-FT 59.4). If only the border misleads it has 54.0, the head alone 70.6. On unseen kinds of text it errs by 1.32:
less than the small net (1.38), more than its own layers without it (1.27) or MiniLM's last block tuned (1.27). On seed
101 LEVI over a large net that is tuned too came to 47 to 54 %, tuning alone to 58.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import monochord as mc
from monochord.adapt.levi import LayerEnsemble, PerLayer, feature_cache
from monochord.adapt.lora import LoRA
from monochord.core.memory import SavedActivations
from monochord.lab import shifts
from monochord.lab.kept import kept
from monochord.lab.paper import Paper, Trial
from monochord.lab.problem import copied
from monochord.lab.shifts import Headed, Made, Rows, accuracy, minilm

paper = Paper(
    "levi",
    "A frozen net read at several layers beside a small new one is right where the cues of both their data fail",
    uses=["monochord.adapt.levi", "monochord.data.spurious", "monochord.lab.shifts"],
    chance={"ood": 10.0, "id": 10.0},
    seeds=(0, 1, 2, 3, 4),
)

CHANCE = 0.1
SETTINGS = {  # how often a cue agrees with the class: the texture in pretraining, the border in fine-tuning
    "both": (0.95, 0.9),
    "border alone": (CHANCE, 0.9),
    "texture alone": (0.95, CHANCE),
}
SIZES = {"pretraining": 12_000, "train": 2000, "validation": 500, "test": 2000}
LARGE, SMALL = (32, 64, 128, 192), (24, 48, 64)  # 0.3 million weights and 40 thousand
SITES, CELLS, INNER = "blocks.*:out", 2, 64  # of the ensemble: layers, parts of a map's side, width within a head
RATES, NEW_RATES, HEAD_RATES = (1e-3, 3e-3), (3e-3, 1e-2), (1e-2, 3e-2)
PRETRAINING_STEPS, STEPS, BATCH = 500, 300, 64
ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
LARGER = 96  # width within heads that have as many numbers without the small net
TEXT_RATES = (1e-3, 3e-3, 1e-2)


def net(widths: Sequence[int], seed: int) -> Headed:
    return Headed(partial(shifts.Convolutions, widths), widths[-1], 10, seed)


def learnt(
    trial: Trial, train: Rows, make: Callable[[], Made], rates: Sequence[float],
    score: Callable[[Made], float] | None = None, steps: int = STEPS, batch: int = BATCH, **options: Any,
) -> Made:  # fmt: skip
    return shifts.best_of(train, make, PerLayer(**options), rates[: trial.pick(smoke=1, full=len(rates))], score,
                          steps=trial.pick(smoke=2, full=steps), batch=batch, seed=trial.seed)  # fmt: skip


@cache
def clothes(trial: Trial, setting: str) -> dict[str, Rows]:
    texture, border = SETTINGS[setting]
    sizes = trial.pick(smoke={"pretraining": 64, "train": 64, "validation": 20, "test": 20}, full=SIZES)
    return shifts.clothes({"texture": texture}, {"border": border}, sizes, trial.seed)


@cache
def pretrained(trial: Trial, setting: str) -> Headed:
    """The large net, which saw the setting's textures."""
    model = net(LARGE, trial.seed)

    def make() -> Mapping[str, Tensor]:
        train = clothes(trial, setting)["pretraining"]
        return learnt(trial, train, lambda: model, (3e-3,), steps=PRETRAINING_STEPS).state_dict()

    model.load_state_dict(kept(paper, trial, f"pretrained-{SETTINGS[setting][0]}", make))
    return model.eval().requires_grad_(False)


@cache
def rows(trial: Trial, setting: str) -> dict[str, Rows]:
    """What is learnt from and tested on, with what every layer of the large net makes of it, as "features"."""

    def make() -> Mapping[str, Tensor]:
        made: dict[str, Tensor] = {}
        for part in ("train", "validation", "test", "ood"):
            own = clothes(trial, setting)[part]
            batches = [{"pixel_values": some} for some in torch.split(own["pixel_values"], 250)]
            features = feature_cache(pretrained(trial, setting).trunk, SITES, batches, CELLS)
            made |= {f"{part}/{name}": value for name, value in {**own, "features": features}.items()}
        return made

    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in kept(paper, trial, f"rows-{setting}", make).items():
        part, column = name.split("/")
        parts.setdefault(part, {})[column] = value
    return dict(parts)


def best(trial: Trial, setting: str, make: Callable[[], Made], rates: Sequence[float], **options: Any) -> Made:
    """The best of the rates by validation."""
    own = rows(trial, setting)
    return learnt(trial, own["train"], make, rates, lambda model: accuracy(model, own["validation"]), **options)


def stored(trial: Trial, setting: str, name: str, make: Callable[[], nn.Module], rates: Sequence[float]) -> nn.Module:
    """The best, made once for all methods that begin with it."""
    model, learn = make(), lambda: best(trial, setting, make, rates).state_dict()
    model.load_state_dict(kept(paper, trial, f"{name}-{setting}", learn))
    return model.eval()


def tunable(trial: Trial, setting: str) -> Headed:
    return copy.deepcopy(pretrained(trial, setting)).requires_grad_(True)


def full(trial: Trial, setting: str) -> nn.Module:
    """The large net, all of it tuned."""
    return stored(trial, setting, "full", partial(tunable, trial, setting), RATES)


def scratch(trial: Trial, setting: str) -> nn.Module:
    """The small net alone."""
    return stored(trial, setting, "scratch", partial(net, SMALL, trial.seed + 1000), NEW_RATES)


def ensemble(
    trial: Trial, setting: str, last: bool = False, side: bool = True, frozen: bool = False, inner: int = INNER
) -> nn.Module:
    """Heads on the layers of the large net, or its `last`, beside the small one, which may stay `frozen` at random."""
    own = pretrained(trial, setting).trunk

    def make() -> nn.Module:
        view = net(SMALL, trial.seed + 1000).trunk.requires_grad_(not frozen) if side else None
        return LayerEnsemble(own, SITES, 10, side=view, side_width=SMALL[-1] * side, adapter=inner, normalised=True,
                             cells=CELLS, combine="last" if last else "mean", seed=trial.seed)  # fmt: skip

    weights = [0.0] * (len(LARGE) - 1) + [1.0] if last else None
    return best(trial, setting, make, RATES, weights=weights)


def probe(trial: Trial, setting: str) -> Headed:
    """The large net with its head alone tuned."""

    def make() -> Headed:
        model = tunable(trial, setting)
        model.trunk.requires_grad_(False)
        return model

    return best(trial, setting, make, HEAD_RATES)


def probe_then_full(trial: Trial, setting: str) -> Headed:
    model = probe(trial, setting).requires_grad_(True)
    return best(trial, setting, lambda: copy.deepcopy(model), RATES)


def low_rank(trial: Trial, setting: str) -> Any:
    def make() -> nn.Module:
        model = copy.deepcopy(pretrained(trial, setting))
        LoRA("blocks.*.0.weight", rank=8).attach(model, seed=trial.seed)
        model.head.requires_grad_(True)
        return model

    return best(trial, setting, make, NEW_RATES)


def averaged(trial: Trial, setting: str) -> Any:
    """WiSE-FT: weights between the large net's own and those fully tuned, as far as is best by validation."""
    model = copy.deepcopy(pretrained(trial, setting))
    change, scores = mc.Delta.between(model, full(trial, setting)), []
    for alpha in ALPHAS:
        with change.applied(model, alpha, strict=False):
            scores.append(accuracy(model, rows(trial, setting)["validation"]))
    change.apply(model, ALPHAS[int(np.argmax(scores))], strict=False)
    return model


def two(trial: Trial, setting: str) -> Callable[..., Tensor]:
    """The sum of the probabilities of the fully tuned large net and the small one."""
    first, second = full(trial, setting), scratch(trial, setting)
    return lambda **inputs: first(**inputs).softmax(-1) + second(**inputs).softmax(-1)


def _arm(name: str, role: Any, method: Callable[[Trial, str], Any], settings: Sequence[str] = ("both",)) -> None:
    @paper.arm(name, role=role)
    def measure(trial: Trial) -> dict[str, Any]:
        figures: dict[str, float] = {}
        for setting in settings:
            model, own = method(trial, setting), rows(trial, setting)
            figures |= {f"{setting} {metric}".removeprefix("both "): accuracy(model, own[part])
                        for metric, part in (("id", "test"), ("ood", "ood"))}  # fmt: skip
        return figures


_arm("levi", "method", ensemble, tuple(SETTINGS))
_arm("scratch", "baseline", scratch, tuple(SETTINGS))
_arm("linear probe", "baseline", probe, tuple(SETTINGS))
_arm("WiSE-FT", "baseline", averaged, tuple(SETTINGS))
_arm("full tuning", "baseline", full)
_arm("LP-FT", "baseline", probe_then_full)
_arm("LoRA", "baseline", low_rank)
_arm("two nets", "baseline", two)
_arm("last layer", "control", partial(ensemble, last=True))
_arm("random small net", "control", partial(ensemble, frozen=True))
_arm("larger heads", "control", partial(ensemble, side=False, inner=LARGER))
RIVALS = ("full tuning", "linear probe", "LoRA", "WiSE-FT", "scratch")


@cache
def texts(trial: Trial) -> dict[str, Rows]:
    """The splits, with the pooled states of all layers of MiniLM as "features"."""
    sizes = trial.pick(smoke=(6, 2, 2), full=(200, 80, 200))
    parts = shifts.texts(dict(zip(("train", "validation", "test"), sizes, strict=True)), trial.seed)

    def make() -> dict[str, Tensor]:
        found = {}
        for part, own in parts.items():
            ids, mask = (torch.split(own[name].flatten(0, 1), 100) for name in ("input_ids", "attention_mask"))
            batches = [{"input_ids": i, "attention_mask": m} for i, m in zip(ids, mask, strict=True)]
            found[part] = feature_cache(minilm(), SITES, batches).view(*own["labels"].shape, -1)
        return found

    features = kept(paper, trial, "texts", make)
    return {part: {**own, "features": features[part]} for part, own in parts.items()}


def _text_arm(name: str, role: Any, make: Callable[[int], nn.Module], rates: Sequence[float] = TEXT_RATES,
              steps: int = 200, batch: int = BATCH) -> None:  # fmt: skip
    @paper.arm(f"text: {name}", role=role)
    def measure(trial: Trial) -> dict[str, Any]:
        """Error on each kind when it is left out."""
        parts, figures = texts(trial), {}
        if name == "last block":
            parts = {part: {**own, "hidden": shifts.before_last(own)} for part, own in parts.items()}
        for k, kind in enumerate(shifts.KINDS):
            known = {part: shifts.without(own, k) for part, own in parts.items()}
            score = partial(lambda own, model: -shifts.error(model, own), known["validation"])
            model = learnt(trial, known["train"], partial(make, trial.seed), rates, score, steps, batch,
                           loss_of=shifts.squared)  # fmt: skip
            figures[kind] = shifts.error(model, shifts.only(parts["test"], k))
        return {**figures, "unseen": float(np.mean(list(figures.values())))}


def layered(seed: int, side: bool = True) -> nn.Module:
    view = Headed(shifts.Words, 48, 1, seed).trunk if side else None
    return LayerEnsemble(minilm(), SITES, 1, side=view, side_width=48 * side, seed=seed)


_text_arm("levi", "method", layered)
_text_arm("without the small net", "baseline", partial(layered, side=False))
_text_arm("small net", "baseline", lambda seed: Headed(shifts.Words, 48, 1, seed))
_text_arm("last block", "baseline", lambda seed: Headed(shifts.LastBlock, 384, 1, seed), (1e-4, 3e-4), 100, 16)


@paper.arm("text: constant", role="control")
def constant(trial: Trial) -> dict[str, Any]:
    """The mean of the known kinds."""
    train, test = (texts(trial)[part]["labels"] for part in ("train", "test"))
    found = [(test[k] - torch.cat([train[:k], train[k + 1 :]]).mean()).square().mean().sqrt()
             for k in range(len(shifts.KINDS))]  # fmt: skip
    return {"unseen": float(np.mean(found))}


@paper.arm("exact", seeded=False)
def exact(trial: Trial) -> dict[str, Any]:
    """MiniLM within the ensemble: whether it is as it was, keeps anything, and is the same from stored states."""
    model, tokenizer = copied("minilm").eval(), mc.models.processor("minilm")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = dict(tokenizer(["It is good.", "It could not be worse."], padding=True, return_tensors="pt"))
    both = LayerEnsemble(model, SITES, 1)
    with SavedActivations(model) as saved:
        online = both.layers(**batch)
    stored = both.layers(feature_cache(model, SITES, [batch]))
    mc.fit(both, [{**batch, "labels": torch.tensor([1.0, -1.0])}], PerLayer(shifts.squared), steps=2, progress=False,
           device="cpu")  # fmt: skip
    return {
        "moved": max(float((p - before[name]).abs().max()) for name, p in model.named_parameters()),
        "kept": sum(size for name, size in saved.by_module.items() if name),
        "stored": float((online - stored).abs().max()),
        "mean": float((both(**batch) - both.layers(**batch).mean(0)).detach().abs().max()),
        "count": sum(p.numel() for p in both.parameters()) - 6 * (384 + 1),
    }


@paper.claim("the frozen net does not move and keeps nothing for a backward pass", exact=True)
def _(e):
    return e["exact"].moved.max == 0 and e["exact"].kept.max == 0


@paper.claim(
    "stored states give the same, the prediction is the mean of the layers', numbers are as counted", exact=True
)
def _(e):
    return e["exact"].stored.max < 1e-5 and e["exact"].mean.max < 1e-7 and e["exact"]["count"].max == 0


@paper.claim("with both cues wrong it is 2 points above full tuning, linear probe, LoRA, WiSE-FT and the small net")
def _(e):
    return e["levi"].ood.mean >= max(e[name].ood.mean for name in RIVALS) + 2


@paper.claim("and above the two nets' mean prediction by more than a standard error")
def _(e):
    gains = e["levi"].ood.values - e["two nets"].ood.values
    return gains.mean() > gains.std(ddof=1) / len(gains) ** 0.5


@paper.claim("with the cue of fine-tuning still there it is within a point of the best")
def _(e):
    return e["levi"].id.mean >= max(e[name].id.mean for name in (*RIVALS, "LP-FT", "two nets")) - 1


@paper.claim(
    "a random small net that is not trained adds nothing to larger heads without one, and is less right than it"
)
def _(e):
    own = e["random small net"].ood.mean
    return own <= e["larger heads"].ood.mean + 1 and own < e["levi"].ood.mean


@paper.claim("on the last layer alone it is less right")
def _(e):
    return e["last layer"].ood.mean < e["levi"].ood.mean


@paper.claim("and so are larger heads without the small net, of equally many numbers")
def _(e):
    return e["larger heads"].ood.mean < e["levi"].ood.mean


@paper.claim("if only fine-tuning has a cue, WiSE-FT or the linear probe is above the small net")
def _(e):
    own = "border alone ood"
    return max(e["WiSE-FT"][own].mean, e["linear probe"][own].mean) > e["scratch"][own].mean


@paper.claim("if only pretraining has one, the small net is within 2 points of WiSE-FT and the linear probe, or above")
def _(e):
    own = "texture alone ood"
    return e["scratch"][own].mean >= max(e["WiSE-FT"][own].mean, e["linear probe"][own].mean) - 2


@paper.claim("in both cases it is within 2 points of the best of these")
def _(e):
    others = ("WiSE-FT", "linear probe", "scratch")
    cases = ("border alone ood", "texture alone ood")
    return all(e["levi"][own].mean >= max(e[name][own].mean for name in others) - 2 for own in cases)


for _other in ("last block", "small net", "without the small net", "constant"):

    @paper.claim(f"on unseen kinds of text its error is below that of: {_other}")
    def _(e, other=_other):
        return e["text: levi"].unseen.mean < e[f"text: {other}"].unseen.mean


@paper.figure("Clothes named right where both cues mislead")
def _(e, axes):
    names = sorted((name for name in e if "ood" in e[name]), key=lambda name: e[name].ood.mean)
    places = np.arange(len(names))
    for i, metric in enumerate(("ood", "id")):
        values = [e[name][metric] for name in names]
        axes.errorbar([v.mean for v in values], places + 0.15 * i, xerr=[v.interval.half_width for v in values],
                      fmt="o", ms=4, label={"ood": "cues random", "id": "as in fine-tuning"}[metric])  # fmt: skip
    axes.set(yticks=places, yticklabels=names, xlabel="% right")
    axes.legend()
