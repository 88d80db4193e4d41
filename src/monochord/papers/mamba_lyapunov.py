"""Mamba State-Space Models Are Lyapunov-Stable Learners, May 31, 2024.

The state of a Mamba shrinks differences by exp(dt A) a token; does it therefore suffer less from low precision? The
project's Mamba-2 and its Llama, of 0.92 million weights each and trained on the same tokens, go on with medical
abstracts, whole or by LoRA, in float32 and with 10, 5 and 2 bits of mantissa in every product (float16 has 10, bfloat16
7). How far losses on five kinds of text and predictions get from the float32 run is compared. The scan computes in
float32, as the first Mamba's kernel does (that of Mamba-2 rounds what enters its products). Rates are the better of two
in float32 for both nets, tried with another seed.

The buffer is the rows of in_proj that make dt, B and C: one LoRA on it is compared with three of the same rank, and
with LoRA on every linear layer of as many blocks as give as many numbers, after 20 passes over 48 rows. Their rates are
from 0.0003 to 0.01, the best by other rows and another seed, with a worse one on both sides. One LoRA's gap is not the
smaller for its fewer numbers alone: of rank 16, with 19,200, it is 0.35 nats; three of rank 4, with 10,944, have 0.45.
Everywhere, as many numbers learn more (test loss 4.48 for 4.72 at rank 16) at a wider gap (1.04). In-context learning
is left out as costly: in one trial beside these, recall of shown pairs rose from 0 to 100 % by 12,800 such prompts.

What fails: in low precision the two nets are equally far from float32, in predictions (0.034 nats both) and in losses
(0.028 and 0.030, the difference within -0.001 and 0.005 in 90 %). Tuned whole, Mamba is the nearer (0.059 and 0.066 at
2 bits); by LoRA, where it learns more at equal weights and rate, it is the farther (0.074 and 0.067), and so it is with
10 bits (0.00002 and 0.000004). It is not the scan: with its products rounded too, Mamba was as far (0.034). Its state
does shrink every difference, yet a push of the first layer's reaches deeper states and the output through what is not
recurrent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

import monochord as mc
from monochord.adapt.full_tuning import FullTuning
from monochord.adapt.lora import LoRA, matrices
from monochord.core.changes import LowRank
from monochord.core.objective import Batch
from monochord.core.sites import Site
from monochord.core.tuner import Tuner
from monochord.lab.paper import Paper, Trial
from monochord.lab.problem import copied
from monochord.objectives import NextToken
from monochord.read.lyapunov import (
    divergence,
    lyapunov_spectrum,
    mamba_decays,
    mamba_drift,
    mamba_exponents,
    mamba_states,
)
from monochord.read.precision import coarse, rounding_drift

paper = Paper(
    "mamba-lyapunov",
    "Mamba's state shrinks every difference, and tuned in low precision it stays nearer to float32 than a Transformer",
    uses=["monochord.read.lyapunov", "monochord.read.precision", "monochord.adapt.lora"],
)

BITS = (10, 5, 2)
COARSE = (5, 2)  # where the effect can be seen on nets so small
PROBES: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "abstracts": ("pubmed-qa", "test", "text", {}),
    "films": ("movie-reviews", "test", "text", {"source": "rotten-tomatoes"}),
    "tweets": ("sentiment-scores", "train", "text", {"source": "tweets"}),
    "mail": ("spam", "train", "text", {}),
    "instructions": ("alpaca", "train", "response", {}),
}
RATES = {"full": 1e-3, "lora": 1e-2}
LENGTH, HELD_OUT = 64, 48
FIRST = "backbone.layers.0.mixer"
ALL = "blocks.{}.**.{{in_proj,out_proj}}.weight"
TUNERS: dict[str, dict[str, Tuner]] = {
    "mamba-1m": {"full": FullTuning("**"), "lora": LoRA("blocks.*.**.in_proj.weight", rank=4)},
    "ladder-1m": {"full": FullTuning("**"), "lora": LoRA("blocks.*.attn.{q,k,v}.weight", rank=6)},
}


@dataclass(frozen=True)
class BufferLoRA(LoRA):
    """LoRA on the rows of a Mamba-2's in_proj that make B, C and dt: one for all three, or one each if not `tied`."""

    sites: str | tuple[str, ...] = "blocks.*.**.in_proj.weight"
    tied: bool = True

    def plan(self, model: nn.Module, generator: Generator) -> Iterator[tuple[Site, LowRank]]:
        for site in matrices(model, self.sites):
            mixer: Any = model.get_submodule(site.module.rpartition(".")[0])
            states, (end, columns) = mixer.n_groups * mixer.ssm_state_size, (site.shape or ())
            sizes = [states, states, mixer.num_heads]
            buffer = torch.arange(end - sum(sizes), end)
            for number, rows in enumerate([buffer] if self.tied else torch.split(buffer, sizes)):
                shape = (len(rows), columns)
                part = replace(site, name=f"{site.name}.{number}", rows=tuple(rows.tolist()), shape=shape)
                yield part, LowRank(shape, self.rank, self.alpha / self.rank, 0.0, generator)


# By rank: tuners and their rates, the best by the validation rows of seed 101
PLACEMENTS: dict[str, dict[int, tuple[Tuner, float]]] = {
    "one lora on the buffer": {rank: (BufferLoRA(rank=rank), 3e-3) for rank in (1, 4, 16)},
    "three loras on the buffer": {rank: (BufferLoRA(rank=rank, tied=False), 3e-3) for rank in (1, 4)},
    "lora everywhere": {  # numbers as of one LoRA on the buffer within 3 %; at rank 1 within 9 %, none is nearer
        1: (LoRA(ALL.format(5), rank=1), 3e-3),
        4: (LoRA((ALL.format("{2..5}"), "blocks.1.**.out_proj.weight"), rank=1), 1e-3),
        16: (LoRA(ALL.format("*"), rank=3), 1e-3),
    },
}


def tuned(trial: Trial, name: str) -> dict[str, Any]:
    """How far each coarse run is from that in float32: losses and divergences, (tuners, coarse bits, texts) flat."""
    probes, bits, count, steps = trial.pick(smoke=([*PROBES][:2], BITS[-1:], 4, 1), full=([*PROBES], BITS, 16, 12))
    texts = {probe: blocks(probe, trial)[-count:] for probe in probes}
    batches, gaps, apart = eights(training_rows(trial), steps), [], []
    found: dict[str, Any] = {"base": np.mean([loss(copied(name), ids) for ids in texts.values()])}
    for kind, tuner in TUNERS[name].items():
        model = copied(name)
        train(model, batches, tuner, RATES[kind], trial.seed)
        exact = {probe: log_probabilities(model, ids) for probe, ids in texts.items()}
        found[f"{kind}_abstracts"] = nll(exact["abstracts"], texts["abstracts"])
        for level in bits:
            other = copied(name)
            with coarse(level, exact=(torch.einsum,)):  # the scan of Mamba-2, float32 as in the kernel of the first
                train(other, batches, tuner, RATES[kind], trial.seed)
                rounded = {probe: log_probabilities(other, ids) for probe, ids in texts.items()}
            for probe, ids in texts.items():
                log_p, log_q = exact[probe], rounded[probe]
                gaps.append(abs(nll(log_p, ids) - nll(log_q, ids)))
                apart.append(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
    table, differences = (np.array(values).reshape(2, len(bits), len(probes)) for values in (apart, gaps))
    low = min(len(bits), len(COARSE))
    found |= {"divergences": table[:, -low:].ravel(), "loss_gaps": differences[:, -low:].ravel()}
    return found | {"by_bits": table.mean((0, 2))}


paper.arm("mamba")(partial(tuned, name="mamba-1m"))
paper.arm("transformer", role="baseline")(partial(tuned, name="ladder-1m"))


@paper.arm("twins")
def twins(trial: Trial) -> dict[str, Any]:
    """A first-layer state is pushed, then both copies read the same tokens: how their distance goes, layer by layer."""
    model, rows = copied("mamba-1m"), trial.pick(smoke=4, full=40)
    ids, steps = blocks("abstracts", trial)[:rows], trial.pick(smoke=6, full=32)
    start, g = LENGTH - steps - 1, Generator().manual_seed(trial.seed)

    def push(name: str, state: Tensor, token: int) -> Tensor:
        if name != FIRST or token != start:
            return state
        towards: Tensor = torch.randn(state.shape, generator=g)
        return torch.add(state, 0.1 * state.norm() / towards.norm() * towards)

    both = zip(mamba_states(model, ids), mamba_states(model, ids, push), strict=True)
    apart = [[(ours[n] - theirs[n]).flatten(1).norm(dim=1).tolist() for n in ours] for ours, theirs in both]
    distances = np.array(apart)[start:].clip(1e-12)  # (steps + 1, layers, rows)
    first, deeper = distances[:, 0], distances[1:, 1:].mean((1, 2))
    decays = mamba_decays(model, {"input_ids": ids})[FIRST][:, start + 1 :].cumsum(1)
    bounds = first[0] * decays.amax(-1).T.exp().numpy()
    slopes = np.polynomial.polynomial.polyfit(np.arange(1, steps), np.log(first[1:-1]), 1)[1]
    return {
        "share_falling": float((slopes <= 0).mean()),
        "over_bound": float((first[1:] / bounds).max()),
        "curve": np.log(first / first[0]).mean(-1),
        "deeper": np.log(deeper / deeper[0]),
        "slope": float(slopes.mean()),
    }


@paper.arm("exponents", seeded=False)
def exponents(trial: Trial) -> dict[str, Any]:
    """Of the trained net on text, by formula and by QR; of systems whose exponents are known; with A's sign flipped."""
    model, batch = copied("mamba-1m"), {"input_ids": blocks("abstracts", trial)[:4]}
    found, untrained = (mamba_exponents(m, batch) for m in (model, copied("mamba-1m", checkpoint="init")))
    decays = mamba_decays(model, batch)[FIRST][0].double()  # (seq, heads)
    flipped = torch.cat([-decays[:, :2], decays[:, 2:]], 1)
    state = torch.randn(decays.shape[1], dtype=torch.float64, generator=Generator().manual_seed(0))
    by_qr, by_qr_flipped = (lyapunov_spectrum(lambda s, a: s * a.exp(), state, each) for each in (decays, flipped))
    apart = divergence(lambda s, a: s * a.exp(), state, flipped)
    start, many = torch.tensor([0.3], dtype=torch.float64), range(trial.pick(smoke=1000, full=3000))
    logistic = lyapunov_spectrum(lambda x, _: 4 * x * (1 - x), start, many)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=Generator().manual_seed(1)))[0]
    linear = lyapunov_spectrum(lambda x, _: 0.8 * turn @ x, state[:6], range(200))
    return {
        "formula_against_qr": float((by_qr - found[FIRST][0].double().sort(descending=True).values).abs().max()),
        "largest": max(float(value.max()) for value in found.values()),
        "largest_untrained": max(float(value.max()) for value in untrained.values()),
        "logistic": float(logistic[0]) - math.log(2),
        "linear": float((linear - math.log(0.8)).abs().max()),
        "flipped": float(by_qr_flipped[0]),
        "flipped_growth": float(apart[-1] - apart[0]),
    }


@paper.arm("rounded states", role="control")
def rounded_states(trial: Trial) -> dict[str, Any]:
    """States rounded at each token of a text: Mamba's, and those of tanh networks of spectral radius 0.8 and 1.5.

    The drift is the distance from the exact state, relative to it, over the second half of the text, by bits.
    """
    model, (rows, length) = copied("mamba-1m"), trial.pick(smoke=(1, 16), full=(4, 256))
    ids = blocks("abstracts", trial).flatten().roll(-1024 * trial.seed)[: rows * length].reshape(rows, length)
    found: dict[str, float] = {}
    for bits in BITS:
        layers = mamba_drift(model, ids, bits).values()
        found[f"mamba {bits}"] = float(torch.stack([each[length // 2 :] for each in layers]).mean())
    embed: Any = model.get_input_embeddings()
    given = embed(ids).detach().double()
    given = 0.1 * (given - given.mean()) / given.std()  # (rows, length, size)
    weight = torch.randn(2 * given.shape[-1:], generator=Generator().manual_seed(trial.seed), dtype=torch.float64)
    weight /= torch.linalg.eigvals(weight).abs().max()
    for name, radius in (("stable", 0.8), ("chaotic", 1.5)):

        def step(x: Tensor, u: Tensor, radius: float = radius) -> Tensor:
            return torch.tanh(radius * x @ weight.T + u)

        for bits in BITS:
            drift = rounding_drift(step, given[:, 0] * 0, given.unbind(1), bits)
            found[f"{name} {bits}"] = float(drift[length // 2 :].mean())
        found[f"{name} exponent"] = float(lyapunov_spectrum(step, given[0, 0] * 0, given[0], washout=5)[0])
    return found


@paper.arm("what the buffer's lora changes", seeded=False)
def changes(trial: Trial) -> dict[str, Any]:
    """One bottleneck for the rows of dt, B and C, or three: ranks, other rows, merging, and whether all else stays."""
    found, ids = dict[str, Any](), blocks("abstracts", trial)[:4]
    for name, tied in (("one", True), ("three", False)):
        model = copied("mamba-1m")
        before = {key: value.clone() for key, value in model.state_dict().items()}
        attached, mixer = BufferLoRA(rank=4, tied=tied).attach(model), cast(Any, model.get_submodule(FIRST))
        mc.fit(model, eights(ids, 2), NextToken(), steps=2, lr=1e-2, progress=False, device="cpu")
        changed = torch.stack([entry.dense() for entry in attached.delta().values()])  # (layers, rows, columns)
        buffer = 2 * mixer.n_groups * mixer.ssm_state_size + mixer.num_heads
        found[f"{name} rank"] = float(torch.linalg.matrix_rank(changed[:, -buffer:], rtol=1e-5).max())
        found[f"{name} merged"] = attached.merge({"input_ids": ids})
        after = attached.detach().state_dict()
        found[f"{name} moved"] = sum(not torch.equal(before[key], after[key]) for key in before)
        found[f"{name} moved"] += int(changed[:, :-buffer].count_nonzero())
    return found


def placed(trial: Trial, name: str) -> dict[str, float]:
    """By rank: losses of a net that saw the same 48 rows 20 times, and by how much the test's is above training's."""
    count, steps = trial.pick(smoke=(4, 1), full=(48, 120))
    rows, held_out = training_rows(trial)[:count], blocks("abstracts", trial)[-count:]
    found: dict[str, float] = {}
    for rank, (tuner, rate) in PLACEMENTS[name].items():
        model = copied("mamba-1m")
        found[f"trained {rank}"] = train(model, eights(rows, steps), tuner, rate, trial.seed)
        found |= {f"train {rank}": loss(model, rows), f"test {rank}": loss(model, held_out)}
        found[f"gap {rank}"] = found[f"test {rank}"] - found[f"train {rank}"]
    return found


paper.arm("one lora on the buffer")(partial(placed, name="one lora on the buffer"))
paper.arm("three loras on the buffer", role="control")(partial(placed, name="three loras on the buffer"))
paper.arm("lora everywhere", role="baseline")(partial(placed, name="lora everywhere"))


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
    found = e["what the buffer's lora changes"]
    bottleneck = 1 <= found["one rank"].max <= 4 < found["three rank"].max
    return bottleneck and found["one moved"].max == 0 and found["one merged"].max < 1e-3


@paper.claim("the distance of twin states falls in at least 95 % of texts")
def _(e):
    return e["twins"].share_falling.mean >= 0.95


@paper.claim("the two nets are matched: untuned, their losses over the five kinds of text are within 5 %")
def _(e):
    ours, theirs = e["mamba"].base.mean, e["transformer"].base.mean
    return abs(ours - theirs) <= 0.05 * max(ours, theirs)


@paper.claim("with 5 bits and less Mamba's losses stay nearer to float32's: 90 % bootstrap over seeds and texts")
def _(e):
    return nearer(e, "loss_gaps") > 0


@paper.claim("and its predictions too, by their divergence from the float32 run's")
def _(e):
    return nearer(e, "divergences") > 0


@paper.claim("both are further from float32 with 2 bits than with 10, by ten times or more")
def _(e):
    return all(e[n].by_bits.mean[-1] >= 10 * e[n].by_bits.mean[0] for n in ("mamba", "transformer"))


@paper.claim("with the signs of a few states flipped the meter is positive and differences grow")
def _(e):
    return e["exponents"].flipped.min > 0 and e["exponents"].flipped_growth.min > 0


@paper.claim("a tanh network of radius 1.5 has a positive exponent and at 10 bits drifts 10 times as far as one of 0.8")
def _(e):
    found = e["rounded states"]
    far = found["chaotic 10"].mean >= 10 * found["stable 10"].mean
    return found["chaotic exponent"].min > 0 > found["stable exponent"].max and far


@paper.claim("and further than Mamba's states on the same text, at every number of bits and in every seed")
def _(e):
    found = e["rounded states"]
    return all((found[f"chaotic {bits}"].values > found[f"mamba {bits}"].values).all() for bits in BITS)


@paper.claim("one LoRA on the buffer has no larger gap from training to test than three, at ranks 1 and 4")
def _(e):
    one, three = e["one lora on the buffer"], e["three loras on the buffer"]
    return all(one[f"gap {rank}"].mean <= three[f"gap {rank}"].mean for rank in (1, 4))


def by_bits(axes: Any, curves: Mapping[str, np.ndarray], label: str) -> None:
    """Means over seeds of (seeds, bits), with their spread."""
    for name, curve in curves.items():
        x = BITS[-curve.shape[1] :]
        axes.errorbar(x, curve.mean(0), yerr=curve.std(0), marker="o", ms=4, label=name)
    axes.set(xlabel="bits of mantissa", ylabel=label, yscale="log", xticks=BITS)
    axes.invert_xaxis()
    axes.legend()


@paper.figure("Divergence from the float32 run's predictions, by bits of mantissa")
def _(e, axes):
    by_bits(axes, {name: e[name].by_bits.values for name in ("mamba", "transformer")}, "nats a token")


@paper.figure("Drift of states that are rounded at each token, by bits of mantissa")
def _(e, axes):
    names = {"mamba": "mamba", "stable": "tanh, radius 0.8", "chaotic": "tanh, radius 1.5"}
    found = {label: [e["rounded states"][f"{name} {bits}"].values for bits in BITS] for name, label in names.items()}
    by_bits(axes, {label: np.transpose(values) for label, values in found.items()}, "distance, of the state's norm")


@paper.figure("Log distance of twins after a push of the first layer's state")
def _(e, axes):
    for metric, label in (("curve", "first layer's state"), ("deeper", "states of deeper layers")):
        axes.plot(e["twins"][metric].mean, label=label)
    axes.set(xlabel="tokens", ylabel="log distance, from its start")
    axes.legend()


@paper.figure("Test loss and its gap to the training loss, tuned on 48 rows, by rank on the buffer")
def _(e, axes):
    for name, tuners in PLACEMENTS.items():
        gap, test = (np.array([e[name][f"{what} {rank}"].values for rank in tuners]) for what in ("gap", "test"))
        axes.errorbar(gap.mean(1), test.mean(1), test.std(1), gap.std(1), marker="o", ms=4, label=name)
        for rank, *at in zip(tuners, gap.mean(1), test.mean(1), strict=True):
            axes.annotate(str(rank), at, xytext=(4, 4), textcoords="offset points")
    axes.set(xlabel="test loss less training loss, nats a token", ylabel="test loss")
    axes.legend()


def nearer(e: Any, metric: str) -> float:
    """The lower end of the 90 % bootstrap interval of Transformer minus Mamba, over seeds, texts and tuners."""
    ours, theirs = (e[name][metric].values.ravel() for name in ("mamba", "transformer"))
    rng, gap = np.random.default_rng(0), theirs - ours
    return float(np.quantile(gap[rng.integers(len(gap), size=(2000, len(gap)))].mean(1), 0.05))


def train(model: nn.Module, batches: Sequence[Batch], tuner: Tuner, rate: float, seed: int) -> int:
    """One step a batch; how many numbers trained."""
    attached = tuner.attach(model, seed=seed)
    mc.fit(model, batches, NextToken(), steps=len(batches), lr=rate, warmup=0.1, schedule="linear", max_grad_norm=1.0,
           seed=seed, progress=False, device="cpu")  # fmt: skip
    model.eval()
    return attached.n_trainable


def eights(rows: Tensor, steps: int) -> list[Batch]:
    """Eight rows a batch, in turn."""
    chosen = [rows[np.resize(np.roll(np.arange(len(rows)), -8 * step), 8)] for step in range(steps)]
    return [{"input_ids": ids, "labels": ids} for ids in chosen]


def log_probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    """Of the next token, (rows, seq - 1, vocabulary)."""
    with torch.inference_mode():
        return F.log_softmax(model(input_ids=ids).logits[:, :-1].float(), -1)


def nll(log_p: Tensor, ids: Tensor) -> float:
    return float(-log_p.gather(-1, ids[:, 1:, None]).mean())


def loss(model: nn.Module, ids: Tensor) -> float:
    return nll(log_probabilities(model, ids), ids)


def training_rows(trial: Trial) -> Tensor:
    """Abstracts in an order of the seed, without those that are held out."""
    rows = blocks("abstracts", trial)[:-HELD_OUT]
    return rows[np.random.default_rng(trial.seed).permutation(len(rows))]


@cache
def blocks(probe: str, trial: Trial) -> Tensor:
    """Rows of 64 tokens of a kind of text."""
    data, split, column, options = PROBES[probe]
    wanted, ids = trial.pick(smoke=56, full=240 if probe == "abstracts" else 16) * LENGTH, []
    tokenizer = mc.models.processor("mamba-1m")  # the Llama has the same
    for text in mc.data(data, **options)[split][column]:
        ids += tokenizer(text)["input_ids"]
        if len(ids) >= wanted:
            break
    return torch.tensor(ids[:wanted]).reshape(-1, LENGTH)
