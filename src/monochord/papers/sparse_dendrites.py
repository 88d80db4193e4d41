"""How do neurons operate on sparse distributed representations? January 4, 2016.

The formulas are checked against integers and against simulation, then against codes of real images, whose patterns
are correlated. Controls: dense codes, wiring that was not taken from the pattern, and the binomial shortcut.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats

import monochord as mc
from monochord.lab.paper import Paper, Trial
from monochord.neurons import sdr
from monochord.neurons.segments import SegmentMemory

paper = Paper(
    "sparse-dendrites",
    "A few synapses recognise sparse patterns almost without error, many patterns on one segment too; dense codes fail",
    uses=["monochord.neurons.sdr", "monochord.neurons.segments"],
)

KNOWN = {  # n, active, synapses, threshold: probability, from exact integers
    (200_000, 2000, 10, 10): 9.78e-21,
    (200_000, 2000, 20, 10): 1.65e-15,
    (10_000, 200, 24, 12): 6.45e-15,
    (2048, 40, 20, 10): 3.91e-13,
}
CELLS, ACTIVE, SYNAPSES, THRESHOLD = 4096, 82, 24, 12


@paper.arm("formulas", seeded=False)
def formulas(trial: Trial) -> dict[str, float]:
    """The largest relative errors against integer arithmetic, and the thresholds the theory predicts."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(trial.pick(smoke=20, full=300)):
        n = int(rng.integers(50, 10_000))
        a, s = int(rng.integers(1, n // 2)), int(rng.integers(1, 40))
        theta = int(rng.integers(0, min(s, a) + 1))
        ways = sum(math.comb(s, b) * math.comb(n - s, a - b) for b in range(theta, min(s, a) + 1))
        errors.append(abs(sdr.false_positive(n, a, s, theta, log=True) - _log_ratio(ways, math.comb(n, a))))
    known = [abs(sdr.false_positive(*setting) / value - 1) for setting, value in KNOWN.items()]
    best = [sdr.optimal_threshold(10_000, 200, s, noise) for noise in (0.2, 0.3) for s in (20, 25, 30, 40)]
    one = sdr.false_positive(10_000, 200, 24, np.arange(25))
    many = sdr.union_false_positive(10_000, 200, 24, np.arange(25), 10)
    return {
        "error_of_log": max(errors),
        "error_of_known": max(known),
        "smallest_best_threshold": min(best),
        "largest_best_threshold": max(best),
        "growth_with_synapses": min(best[3] - best[0], best[7] - best[4]),
        "growth_with_patterns": int((many > 1e-9).sum() - (one > 1e-9).sum()),
    }


@paper.arm("simulation")
def simulation(trial: Trial) -> dict[str, float]:
    """How many of 30 settings a kind have the formula inside the simulation's 99 % interval."""
    rng = np.random.default_rng(trial.seed)
    settings, draws = trial.pick(smoke=(3, 5000), full=(30, 100_000))
    inside = dict.fromkeys(("false_positive", "false_negative", "union", "exact_union", "segments"), 0)
    shortcut = 0
    for _ in range(settings):
        n, a, s, theta = _setting(rng)
        hits = (_sample(rng, draws, n, s) < a).sum(1) >= theta
        inside["false_positive"] += _covers(hits, sdr.false_positive(n, a, s, theta))
        noise = float(rng.uniform(0.1, 0.6))
        kept = (_sample(rng, draws, a, min(s, a)) < round(a * (1 - noise))).sum(1) < theta
        inside["false_negative"] += _covers(kept, sdr.false_negative(a, min(s, a), theta, noise))
        segments = int(rng.integers(2, 6))
        fired = ((_sample(rng, draws * segments, n, s) < a).sum(1) >= theta).reshape(draws, segments).any(1)
        wanted = sdr.any_segment(sdr.false_positive(n, a, s, theta), segments)
        inside["segments"] += _covers(fired, wanted)
        patterns = int(rng.integers(2, 6))
        merged = np.sort(np.concatenate([_sample(rng, draws, n, s) for _ in range(patterns)], 1), 1)
        fresh = np.diff(merged, axis=1, prepend=-1) > 0
        union = ((merged < a) & fresh).sum(1) >= theta
        inside["union"] += _covers(union, sdr.union_false_positive(n, a, s, theta, patterns))
        inside["exact_union"] += _covers(union, sdr.exact_union_false_positive(n, a, s, theta, patterns))
        few = 200
        near = (_sample(rng, draws, few, 30) < 60).sum(1) >= 13
        shortcut += _covers(near, float(stats.binom.sf(12, 30, 60 / few)))
    return {name: count / settings for name, count in inside.items()} | {"binomial_shortcut": shortcut / settings}


@paper.arm("real codes")
def real_codes(trial: Trial) -> dict[str, float]:
    """Segments of stored pictures: false alarms on other classes, and recall with noise."""
    return _codes(trial, ACTIVE, SYNAPSES, THRESHOLD)


@paper.arm("dense codes", role="baseline")
def dense_codes(trial: Trial) -> dict[str, float]:
    """The same with half of the cells active."""
    return _codes(trial, CELLS // 2, SYNAPSES, THRESHOLD)


@paper.arm("random wiring", role="control")
def random_wiring(trial: Trial) -> dict[str, float]:
    """Synapses at random instead of from the pattern: recall must fall to the chance of a false alarm."""
    rng = np.random.default_rng(trial.seed)
    draws = trial.pick(smoke=20_000, full=400_000)
    n, a, s, theta = 500, 60, 20, 6
    found = ((_sample(rng, draws, n, s) < a).sum(1) >= theta).mean()
    return {"recall_over_theory": found / sdr.false_positive(n, a, s, theta)}


@paper.claim("the formulas equal integer arithmetic, down to 1e-21", exact=True)
def _(e):
    return e["formulas"].error_of_log.max < 1e-9 and e["formulas"].error_of_known.max < 5e-3


@paper.claim("simulation agrees: 29 of 30 settings inside the 99 % interval, for single segments, several, and unions")
def _(e):
    s = e["simulation"]
    kinds = (s.false_positive, s.false_negative, s.segments, s.exact_union)
    return min(kind.mean for kind in kinds) >= 29 / 30 - 1e-9


@paper.claim("simulation agrees with the union formula, which takes the expected number of synapses for the actual one")
def _(e):
    return e["simulation"].union.mean >= 29 / 30 - 1e-9


@paper.claim("the best threshold is 6 to 20 active synapses and rises with synapses and with patterns a segment")
def _(e):
    f = e["formulas"]
    inside = f.smallest_best_threshold.min >= 6 and f.largest_best_threshold.max <= 20
    return inside and f.growth_with_synapses.min > 0 and f.growth_with_patterns.min > 0


@paper.claim("on codes of real pictures, false alarms are at most twice what the measured overlaps predict")
def _(e):
    return e["real codes"].over_theory.max <= 2


@paper.claim("on codes of real pictures, recall with 30 % of the active cells off is at least 95 %")
def _(e):
    return e["real codes"].recall.min >= 0.95


@paper.claim("dense codes fail: more than 40 % false alarms")
def _(e):
    return e["dense codes"].false_alarms.min > 0.4


@paper.claim("wiring that was not taken from the pattern recalls as often as a random pattern fires, within 15 %")
def _(e):
    return all(abs(value - 1) < 0.15 for value in e["random wiring"].recall_over_theory)


@paper.claim("the binomial shortcut is told from the exact formula in small populations")
def _(e):
    return e["simulation"].binomial_shortcut.max < 0.5


@paper.figure("False positives against the threshold")
def _(e, axes):
    thresholds = np.arange(1, 21)
    for label, n, a in (("sparse, 10,000 cells", 10_000, 200), ("sparse, 2,000", 2000, 40), ("dense, 500", 500, 250)):
        axes.semilogy(thresholds, sdr.false_positive(n, a, 24, thresholds), marker="o", ms=3, label=label)
    axes.set(xlabel="active synapses needed, of 24", ylabel="probability")
    axes.legend()


def _log_ratio(a: int, b: int) -> float:
    """log(a / b) of integers of any size."""
    shift = max(b.bit_length() - 1000, 0)
    extra = max(a.bit_length() - 1000, 0)
    return math.log(a >> extra) + extra * math.log(2) - math.log(b >> shift) - shift * math.log(2)


def _setting(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A setting whose false positives have a probability that 100,000 draws can see: 1e-4 to 0.99."""
    while True:
        n = int(rng.integers(200, 5000))
        a, s = int(n * rng.uniform(0.02, 0.3)), int(rng.integers(8, 30))
        theta = int(rng.integers(1, 12))
        if theta <= min(s, a) and 1e-4 < sdr.false_positive(n, a, s, theta) < 0.99:
            return n, a, s, theta


def _sample(rng: np.random.Generator, draws: int, n: int, s: int) -> np.ndarray:
    """`s` of `n` cells without repetition, (draws, s): rows with a repetition are drawn again."""
    if s * s > n:
        return np.concatenate(
            [rng.random((min(4000, draws - i), n)).argpartition(s - 1, 1)[:, :s] for i in range(0, draws, 4000)]
        )
    cells = rng.integers(0, n, (draws, s))
    while True:
        ordered = np.sort(cells, 1)
        again = (np.diff(ordered, axis=1) == 0).any(1)
        if not again.any():
            return cells
        cells[again] = rng.integers(0, n, (int(again.sum()), s))


def _covers(hits: np.ndarray, probability: float) -> bool:
    """Whether the exact 99 % interval of the share of hits has the probability in it."""
    interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(0.99)
    return bool(interval.low <= probability <= interval.high)


def _codes(trial: Trial, active: int, synapses: int, threshold: int) -> dict[str, float]:
    """Random projections of Fashion-MNIST with so many winners: stored, then met by other classes and by noise."""
    count = trial.pick(smoke=100, full=1000)
    rows = mc.data("fashion-mnist")["test"].first(2 * count)
    g = torch.Generator().manual_seed(trial.seed)
    images = torch.from_numpy(np.asarray(rows["image"])).flatten(1).float()
    images = (images - images.mean(1, keepdim=True)) / images.std(1, keepdim=True)
    values = images @ torch.randn(images.shape[1], CELLS, generator=g)
    codes = torch.zeros_like(values, dtype=torch.bool).scatter(1, values.topk(active).indices, True)
    labels = torch.from_numpy(np.asarray(rows["label"]))
    order = torch.randperm(len(codes), generator=g)
    stored, met = order[:count], order[count:]
    memory = SegmentMemory(CELLS, synapses, threshold)
    memory.store(codes[stored], g)
    other = labels[met][:, None] != labels[stored][None]
    alarms = memory.recognise(codes[met])[other].double().mean().item()
    shared = (codes[met].float() @ codes[stored].float().T)[other].long().bincount(minlength=active + 1)
    on = np.arange(active + 1)
    fires = 1 - stats.hypergeom.cdf(threshold - 1, active, on, synapses)
    predicted = float((shared.numpy() * fires).sum() / shared.sum())
    kept = torch.rand(count, CELLS, generator=g).masked_fill(~codes[stored], -1).topk(round(0.7 * active)).indices
    noisy = torch.zeros_like(codes[stored]).scatter(1, kept, True)
    recall = memory.recognise(noisy).diagonal().double().mean().item()
    independent = sdr.false_positive(CELLS, active, synapses, threshold)
    return {
        "false_alarms": alarms,
        "over_theory": alarms / predicted,
        "predicted": predicted,
        "if_independent": independent,
        "recall": recall,
    }
