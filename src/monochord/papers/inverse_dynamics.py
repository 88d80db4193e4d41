"""Inverse Dynamics Pretraining Learns Good Representations for Multitask Imitation, May 26, 2023.

DOCSTRING
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.linalg import subspace_angles
from torch import Generator, Tensor, nn

import monochord as mc
from monochord.core.objective import Objective
from monochord.data.pixel_reacher import PixelReacher
from monochord.data.point_mass import PixelPointMass, PixelWorld, demonstrations
from monochord.data.rollouts import rollout
from monochord.lab.paper import Paper, Trial
from monochord.objectives.inverse_dynamics import (
    BehaviorCloning,
    ForwardDynamics,
    InverseDynamics,
    StaticContrast,
    TransitionModel,
    info_nce,
    jittered,
)
from monochord.objectives.spatial_softmax import PixelDecoder, SpatialSoftmax, SpatialSoftmaxEncoder, encoded

paper = Paper(
    "inverse-dynamics",
    "An encoder that learnt which action lies between two observations imitates a new task from few demonstrations",
    uses=["monochord.objectives.inverse_dynamics", "monochord.objectives.spatial_softmax",
          "monochord.data.point_mass", "monochord.data.pixel_reacher", "monochord.data.rollouts"],
    chance={"r2": 0.0},
)  # fmt: skip

COUNTS, GOALS, EPISODES, NOISE, HORIZON, ROLLOUTS = (1, 2, 5, 10), 5, (1200, 12), 0.3, 30, 30
WIDTH, BATCH, STEPS, RATE, CLONING_STEPS, CLONING_RATE = 64, 64, 600, 5e-3, 300, 3e-3
SCRATCH = 2  # of the goals, for which policies are trained from scratch as well


@dataclass(frozen=True)
class Suite:
    """A world, and whether its pictures show the goal."""

    world: Callable[..., PixelWorld] = PixelPointMass
    visible: bool = False

    def make(self, n: int, **options: Any) -> PixelWorld:
        return self.world(n, _patches(), visible=self.visible, **options)


HIDDEN = Suite()
VISIBLE, ARM = Suite(visible=True), Suite(PixelReacher, visible=True)


@dataclass(frozen=True)
class Pretraining:
    """`change` is "shuffled" for actions of other rows, "same" for the first picture in the place of the second."""

    objective: Objective
    role: Any = "baseline"
    suite: Suite = HIDDEN
    change: str = ""


class Drawn(Sequence[dict[str, Tensor]]):
    """Endless batches: each step's are what `make` gives for a generator of its own."""

    def __init__(self, make: Callable[[Generator], dict[str, Tensor]], seed: int) -> None:
        self.make, self.seed = make, seed

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, step: Any) -> Any:
        return self.make(Generator().manual_seed(self.seed * 100_003 + step))


def pairs(columns: dict[str, np.ndarray], seed: int, plain: bool = False) -> Drawn:
    """Batches of transitions; both pictures of one are augmented alike, or not at all."""
    known = {name: torch.from_numpy(column) for name, column in columns.items()}

    def make(g: Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(known["action"]), (BATCH,), generator=g)
        both = torch.stack([known[name][rows] for name in ("observation", "next_observation")], 1).movedim(-1, 2) / 255
        both = both if plain else jittered(both, g)
        return {"observation": both[:, 0], "next_observation": both[:, 1], "action": known["action"][rows]}

    return Drawn(make, seed)


ARMS = {
    "inverse dynamics": Pretraining(InverseDynamics(), "method"),
    "cloning": Pretraining(BehaviorCloning()),
    "forward, contrastive": Pretraining(ForwardDynamics()),
    "forward, explicit": Pretraining(ForwardDynamics("explicit")),
    "two views": Pretraining(StaticContrast(jittered)),
    "shuffled actions": Pretraining(InverseDynamics(), "control", change="shuffled"),
    "one picture twice": Pretraining(InverseDynamics(), "control", change="same"),
    "inverse dynamics, goal visible": Pretraining(InverseDynamics(), "control", VISIBLE),
    "cloning, goal visible": Pretraining(BehaviorCloning(), "control", VISIBLE),
    "inverse dynamics, jointed arm": Pretraining(InverseDynamics(), "method", ARM),
    "cloning, jointed arm": Pretraining(BehaviorCloning(), "baseline", ARM),
}


def _arm(name: str, how: Pretraining) -> None:
    @paper.arm(name, role=how.role)
    def measure(trial: Trial) -> dict[str, Any]:
        return with_frozen(trial, how.suite, pretrained(trial, how))


for _name, _how in ARMS.items():
    _arm(_name, _how)


@paper.arm("random encoder", role="control")
def random_encoder(trial: Trial) -> dict[str, Any]:
    """The encoder as it is drawn, frozen."""
    return with_frozen(trial, HIDDEN, encoder(trial).eval())


@paper.arm("true state", role="ceiling")
def true_state(trial: Trial) -> dict[str, Any]:
    """Policies of the true position in the place of an embedding."""
    return imitated(trial, HIDDEN, None)


@paper.arm("from scratch", role="baseline")
def from_scratch(trial: Trial) -> dict[str, Any]:
    """For each set of demonstrations of the first goals, an encoder and a policy trained on it alone."""
    goals, demos = tasks(trial, HIDDEN, trial.pick(smoke=1, full=SCRATCH))
    nets = []
    for found in demos:
        nets.append(TransitionModel(encoder(trial), WIDTH, 2, hidden=64))
        fitted(trial, nets[-1], pairs(found.transitions(), trial.seed), BehaviorCloning(), RATE, CLONING_STEPS)
        nets[-1].eval()
    return rolled(trial, HIDDEN, goals, lambda seen: torch.stack(
        [net.policy(net.encoder(_pictures(part))) for net, part in zip(nets, seen, strict=True)]))  # fmt: skip


@paper.arm("linear model", role="method")
def linear_model(trial: Trial) -> dict[str, Any]:
    """Linear dynamics of 4 numbers seen through 64 noisy ones; experts of both signs. How far the subspace that linear
    inverse dynamics find is from the true one, by the number of transitions, and what cloning tells of new actions."""
    rng, counts = np.random.default_rng(trial.seed), np.array([300, 1000, 3000, 10_000, 30_000])
    basis = np.linalg.qr(rng.standard_normal((64, 4)))[0]
    free, driven, gain = (np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(3))

    def drawn(n: int, symmetric: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        state, sign = rng.standard_normal((n, 4)), rng.choice((-1, 1), (n, 1)) if symmetric else 1
        action = sign * (state @ gain + 0.5) + 0.5 * rng.standard_normal((n, 4))
        after = 0.9 * state @ free + action @ driven + 0.1 * rng.standard_normal((n, 4))
        now, then = (s @ basis.T + 0.5 * rng.standard_normal((n, 64)) for s in (state, after))
        return now, then, action

    found: dict[str, Any] = {"distance": []}
    for n in counts.tolist():
        now, then, action = drawn(n)
        weights = np.linalg.lstsq(np.c_[now, then], action, rcond=None)[0]
        found["distance"].append(np.sin(subspace_angles(weights[64:], basis).max()))
    found["slope"] = np.polyfit(np.log(counts), np.log(found["distance"]), 1)[0]
    for name, symmetric in (("both signs", True), ("one sign", False)):
        (now, _, action), (new, _, wanted) = drawn(30_000, symmetric), drawn(5000, symmetric)
        told = np.c_[new, np.ones(5000)] @ np.linalg.lstsq(np.c_[now, np.ones(30_000)], action, rcond=None)[0]
        found[f"cloning, {name}"] = 1 - ((told - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
    return found


@paper.arm("exact", role="control", seeded=False)
def exact(trial: Trial) -> dict[str, Any]:
    """What must be so to the bit, or to rounding."""
    same, spike = torch.ones(7, 3), torch.zeros(1, 1, 5, 9)
    spike[0, 0, 1, 8] = 1e4
    found = {"log of the batch": float(info_nce(same, same)) - np.log(7)}
    found["spike"] = float((SpatialSoftmax()(spike) - torch.tensor([[1.0, -0.5]])).abs().max())
    episodes = demonstrations(HIDDEN.make(3), 6, seed=1)
    ends = episodes.transitions(2)["next_observation"].reshape(3, 4, *episodes.observations.shape[1:])
    found["crossed"] = float((ends != episodes.observations.reshape(3, 6, *ends.shape[2:])[:, 2:]).sum())
    net, ahead = (TransitionModel(encoder(trial).eval(), WIDTH, 2, hidden=16) for _ in range(2))
    net.encoder.requires_grad_(False)
    ahead.load_state_dict(net.state_dict())
    before = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    pictures, action = _pictures(episodes.observations), torch.from_numpy(episodes.actions)
    ready = encoded(ahead.encoder, pictures)
    ahead.encoder = nn.Identity()
    for model, seen in ((net, pictures), (ahead, ready)):
        mc.fit(
            model, [{"observation": seen, "action": action}], BehaviorCloning(), steps=3, progress=False, device="cpu"
        )
    found["encoder moved"] = float(sum((before[n] != v).sum() for n, v in net.encoder.state_dict().items()))
    weights = [torch.cat([p.detach().flatten() for p in m.policy.parameters()]) for m in (net, ahead)]
    found["encoded ahead"] = float((weights[0] - weights[1]).abs().max())
    return found


@paper.claim("equal projections cost the log of the batch, and a spike is where it is", exact=True)
def _(e):
    return abs(e["exact"]["log of the batch"].mean) < 1e-6 and e["exact"].spike.mean < 1e-6


@paper.claim("no pair of observations crosses the end of an episode", exact=True)
def _(e):
    return e["exact"].crossed.mean == 0


@paper.claim("a frozen encoder stays bit-identical, and embeddings made ahead give the same policy", exact=True)
def _(e):
    return e["exact"]["encoder moved"].mean == 0 and e["exact"]["encoded ahead"].mean < 1e-5


@paper.claim("linear inverse dynamics find the state's subspace: log error falls by 0.3 to 0.7 a log of transitions")
def _(e):
    return -0.7 <= e["linear model"].slope.mean <= -0.3


@paper.claim("where experts of both signs cancel, linear cloning tells less than 1 % of actions, of one sign over half")
def _(e):
    found = e["linear model"]
    return abs(found["cloning, both signs"].mean) < 0.01 and found["cloning, one sign"].mean > 0.5


@paper.claim("success after inverse dynamics is ten points or more above that after cloning, over all counts")
def _(e):
    return e["inverse dynamics"].success.mean - e["cloning"].success.mean >= 0.1


@paper.claim("and above that after forward dynamics of both kinds and two views")
def _(e):
    return e["inverse dynamics"].success.mean > max(e[name].success.mean for name in list(ARMS)[2:5])


@paper.claim("and above policies trained from scratch for the same goals")
def _(e):
    return e["inverse dynamics"].goals.mean[:SCRATCH].mean() > e["from scratch"].goals.mean.mean()


@paper.claim("a linear probe tells position with an R2 of 0.9 after inverse dynamics, and less after cloning")
def _(e):
    return e["inverse dynamics"].r2.mean >= 0.9 and e["inverse dynamics"].r2.mean > e["cloning"].r2.mean


@paper.claim("with the goal visible, cloning catches up: the gap is at most half of that with the goal hidden")
def _(e):
    return gap(e, ", goal visible") <= 0.5 * gap(e)


@paper.claim("on the jointed arm, whose goal is visible, the gap is smaller than on the point mass with hidden goal")
def _(e):
    return gap(e, ", jointed arm") < gap(e)


@paper.claim("with shuffled actions inverse dynamics are no more than five points above a random encoder")
def _(e):
    return e["shuffled actions"].success.mean <= e["random encoder"].success.mean + 0.05


@paper.claim("with one picture twice inverse dynamics are cloning, to ten points")
def _(e):
    return abs(e["one picture twice"].success.mean - e["cloning"].success.mean) <= 0.1


def gap(e: Any, suite: str = "") -> Any:
    """By how much inverse dynamics succeed more often than cloning."""
    return e[f"inverse dynamics{suite}"].success.mean - e[f"cloning{suite}"].success.mean


@paper.figure("Success by demonstrations of a new goal that was hidden in pretraining")
def _(e, axes):
    for name in ("true state", *list(ARMS)[:5], "from scratch", "random encoder"):
        style = {"inverse dynamics": "-", "true state": ":", "random encoder": ":"}.get(name, "--")
        axes.plot(range(len(COUNTS)), e[name].curve.mean, style, marker="o", ms=4, label=name)
    axes.set(xticks=range(len(COUNTS)), xticklabels=COUNTS, xlabel="demonstrations", ylabel="success", ylim=(0, 1.05))
    axes.legend()


@paper.figure("Success with the goal hidden and visible, and what is left without what the objective needs")
def _(e, axes):
    names = [name for name in ARMS if name not in list(ARMS)[2:5]] + ["random encoder"]
    metrics = [e[name].success for name in names[::-1]]
    axes.barh(names[::-1], [m.mean for m in metrics], xerr=[m.interval.half_width for m in metrics])
    axes.set(xlabel="success", xlim=(0, 1.05))


def encoder(trial: Trial) -> SpatialSoftmaxEncoder:
    torch.manual_seed(trial.seed)
    return SpatialSoftmaxEncoder(32, (24, 32), (2, 1), keypoints=32, width=WIDTH)


def fitted(trial: Trial, model: nn.Module, data: Any, objective: Objective, rate: float, steps: int) -> None:
    mc.fit(model, data, objective, steps=trial.pick(smoke=1, full=steps), lr=rate, schedule="cosine", warmup=0.1,
           seed=trial.seed, progress=False, device="cpu")  # fmt: skip


def pretrained(trial: Trial, how: Pretraining) -> SpatialSoftmaxEncoder:
    """An encoder trained on episodes of as many goals."""
    episodes, length = trial.pick(smoke=(4, 4), full=EPISODES)
    found = demonstrations(how.suite.make(episodes), length, noise=NOISE, seed=1000 + trial.seed)
    columns = found.transitions()
    if how.change == "shuffled":
        columns["action"] = np.random.default_rng(trial.seed).permutation(columns["action"])
    elif how.change == "same":
        columns["next_observation"] = columns["observation"]
    made = encoder(trial)
    model = TransitionModel(made, WIDTH, 2, decoder=PixelDecoder(WIDTH + 2))
    batches = pairs(columns, trial.seed, plain=isinstance(how.objective, StaticContrast))
    fitted(trial, model, batches, how.objective, RATE, STEPS)
    return made.eval()


def tasks(trial: Trial, suite: Suite, n: int) -> tuple[np.ndarray, list[Any]]:
    """The first `n` of the new goals, and demonstrations of each, in sets of all counts."""
    asked = suite.make(GOALS)
    asked.reset(seed=2000 + trial.seed)
    goals, most = asked.goals[:n], max(COUNTS)
    world = suite.make(GOALS * most, goals=np.repeat(asked.goals, most, 0))
    found = demonstrations(world, trial.pick(smoke=4, full=50), seed=3000 + trial.seed)
    return goals, [found.take(range(i * most, i * most + count)) for i in range(n) for count in COUNTS]


def with_frozen(trial: Trial, suite: Suite, made: SpatialSoftmaxEncoder) -> dict[str, Any]:
    """Success with a frozen encoder, and how much of the position a linear probe on it tells of other episodes."""
    parts = []
    for seed in (5000, 6000):
        found = demonstrations(suite.make(trial.pick(smoke=12, full=60)), 20, noise=2.0, seed=seed + trial.seed)
        x = encoded(made, _pictures(found.observations)).double().numpy()
        parts.append((np.c_[x, np.ones(len(x))], found.extra["position"]))
    (x, y), (x_test, y_test) = parts
    told = x_test @ np.linalg.lstsq(x, y, rcond=None)[0]
    r2 = 1 - ((told - y_test) ** 2).sum() / ((y_test - y_test.mean(0)) ** 2).sum()
    return {**imitated(trial, suite, made), "r2": r2}


def imitated(trial: Trial, suite: Suite, made: nn.Module | None) -> dict[str, Any]:
    """Policies cloned side by side on embeddings of few demonstrations, or on the true state, and their success."""
    goals, demos = tasks(trial, suite, trial.pick(smoke=1, full=GOALS))
    if made is None:
        rows = [torch.from_numpy(found.extra["state"]) for found in demos]
    else:
        rows = [encoded(made, _pictures(found.observations)) for found in demos]
    actions = [torch.from_numpy(found.actions) for found in demos]
    model: Any = TransitionModel(nn.Identity(), rows[0].shape[-1], 2)
    model.policy = Policies(len(demos), rows[0].shape[-1], 2, 64, trial.seed)

    def draw(g: Generator) -> dict[str, Tensor]:
        chosen = [torch.randint(len(r), (BATCH,), generator=g) for r in rows]
        return {"observation": torch.stack([r[i] for r, i in zip(rows, chosen, strict=True)]),
                "action": torch.stack([a[i] for a, i in zip(actions, chosen, strict=True)])}  # fmt: skip

    fitted(trial, model, Drawn(draw, trial.seed), BehaviorCloning(), CLONING_RATE, CLONING_STEPS)

    def act(seen: np.ndarray) -> Any:
        if made is None:
            return model.policy(torch.from_numpy(seen).float())
        flat = encoded(made, _pictures(seen.reshape(-1, *seen.shape[2:])))
        return model.policy(flat.reshape(*seen.shape[:2], -1))

    return rolled(trial, suite, goals, act, state=made is None)


class Policies(nn.Module):
    """Independent policies side by side: (policies, batch, inputs) to (policies, batch, outputs), two hidden layers."""

    def __init__(self, policies: int, inputs: int, outputs: int, hidden: int, seed: int) -> None:
        super().__init__()
        g, widths = Generator().manual_seed(seed), (inputs, hidden, hidden, outputs)
        sizes = list(pairwise(widths))
        drawn = ((2 * torch.rand(policies, a, b, generator=g) - 1) * a**-0.5 for a, b in sizes)
        self.weights, self.biases = (
            nn.ParameterList(drawn),
            nn.ParameterList(torch.zeros(policies, 1, b) for _, b in sizes),
        )

    def forward(self, x: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x.relu() if i else x, weight)
        return x


def rolled(
    trial: Trial, suite: Suite, goals: np.ndarray, act: Callable[[np.ndarray], Any], state: bool = False
) -> dict[str, Any]:
    """The share of episodes that come to their goal: by count of demonstrations, by goal, and in all.

    `act` takes pictures, or states, (sets of demonstrations, episodes, ...) to actions of each.
    """
    sets, each = len(goals) * len(COUNTS), trial.pick(smoke=1, full=ROLLOUTS)
    world = suite.make(sets * each, goals=np.repeat(goals, each * len(COUNTS), 0))

    @torch.no_grad()
    def policy(seen: np.ndarray) -> Any:
        known = world.state if state else seen
        return act(known.reshape(sets, each, *known.shape[1:])).flatten(0, 1).numpy()

    found = rollout(policy, world, trial.pick(smoke=2, full=HORIZON), seed=4000 + trial.seed)
    success = found.extra["success"].reshape(len(goals), len(COUNTS), each, -1).any(-1)
    return {"curve": success.mean((0, 2)), "goals": success.mean((1, 2)), "success": success.mean()}


def _pictures(seen: np.ndarray) -> Tensor:
    return torch.from_numpy(seen).movedim(-1, 1)


@cache
def _patches() -> np.ndarray:
    """The middle of four hundred drawings, (400, 8, 8, 3)."""
    images = np.asarray(mc.data("tuxpaint")["train"]["image"][:400])
    return np.asarray(images.reshape(-1, 16, 4, 16, 4, 3).mean((2, 4))[:, 4:12, 4:12], np.uint8)
