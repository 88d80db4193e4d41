"""A paper as an experiment anyone can run again: arms that measure, claims over what they measured, figures.

    paper = Paper("flora", uses=["monochord.adapt.flora"])

    @paper.arm("flora")
    def flora(trial):
        return {"accuracy": train_and_test(trial.seed, steps=trial.pick(smoke=2, full=200))}

    @paper.arm("random factors", role="control")
    def control(trial): ...

    @paper.claim("the Tucker core beats flattened LoRA at equal parameters by half a point")
    def _(e):
        return e["flora"].accuracy.mean >= e["lora-flat"].accuracy.mean + 0.005

Arms times seeds are trials: pure functions of seed and scale, each in its own process. A claim is a predicate over
the stored evidence; the figures it looks at are printed beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from monochord.lab.evidence import Evidence

Role = Literal["method", "baseline", "control", "ceiling"]
Metrics = Mapping[str, Any]
ROLES: tuple[Role, ...] = ("method", "baseline", "control", "ceiling")
SCALES = ("smoke", "full")
T = TypeVar("T")


class PaperError(ValueError):
    """An experiment that can't be run or read; the message says why."""


@dataclass(frozen=True)
class Trial:
    """What an arm is given: its `seed`, and the `scale`, "smoke" (seconds, for tests) or "full"."""

    seed: int
    scale: str = "full"

    def pick(self, *, smoke: T, full: T) -> T:
        """One of two values, by the scale."""
        return smoke if self.scale == "smoke" else full


@dataclass(frozen=True)
class Arm:
    """One thing that is measured. `role`: the method, a baseline, a control that must fail, or a ceiling."""

    name: str
    role: Role
    measure: Callable[[Trial], Metrics]
    seeded: bool = True  # an exact invariant is the same for every seed and is measured once


@dataclass(frozen=True)
class Claim:
    """A sentence and the predicate that decides it; `exact` for invariants, which are tests too."""

    text: str
    holds: Callable[[Evidence], bool]
    exact: bool = False


@dataclass
class Paper:
    """The experiment of one paper of the catalog, declared by decorators.

    `uses` are modules whose code the results depend on, besides the experiment's own: a change there makes them
    stale. `chance` are the values of metrics that need no skill, by name. `summary` is the claim in one line.
    Raises `PaperError` when a name is there twice.
    """

    slug: str
    summary: str = ""
    uses: Sequence[str] = ()
    chance: Mapping[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    timeout: float = 900.0  # seconds a trial
    arms: dict[str, Arm] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    figures: dict[str, Callable[[Evidence, Axes], None]] = field(default_factory=dict)

    def arm(
        self, name: str, role: Role = "method", *, seeded: bool = True
    ) -> Callable[[Callable[[Trial], Metrics]], Callable[[Trial], Metrics]]:
        """Declare an arm: a function of a trial that returns numbers, or lists of numbers, by name."""
        if name in self.arms:
            raise PaperError(f"{self.slug}: the arm {name!r} is there twice")
        if role not in ROLES:
            raise PaperError(f"{self.slug}: unknown role {role!r} of {name!r}: use {', '.join(ROLES)}")

        def declare(measure: Callable[[Trial], Metrics]) -> Callable[[Trial], Metrics]:
            self.arms[name] = Arm(name, role, measure, seeded)
            return measure

        return declare

    def claim(self, text: str, *, exact: bool = False) -> Callable[[Callable[[Evidence], bool]], None]:
        """Declare a claim: a predicate over the evidence."""
        if any(claim.text == text for claim in self.claims):
            raise PaperError(f"{self.slug}: a claim is there twice: {text}")
        return lambda holds: self.claims.append(Claim(text, holds, exact))

    def figure(self, title: str) -> Callable[[Callable[[Evidence, Axes], None]], None]:
        """Declare a figure: a function that draws the evidence into axes."""

        def declare(draw: Callable[[Evidence, Axes], None]) -> None:
            self.figures[title] = draw

        return declare

    def check(self) -> None:
        """Raise `PaperError` unless there is a method, a claim, and something that shows what no skill gives."""
        roles = {arm.role for arm in self.arms.values()}
        if "method" not in roles:
            raise PaperError(f"{self.slug}: no arm has the role of the method")
        if not self.claims:
            raise PaperError(f"{self.slug}: no claim")
        if "control" not in roles and not self.chance:
            raise PaperError(f"{self.slug}: declare a control arm, or chance= for its metrics")


def measure_arm(module: str, arm: str, seed: int, scale: str) -> dict[str, Any]:
    """The trial the engine runs: one arm of the paper that `module` declares as `paper`."""
    import importlib
    import time

    paper: Paper = importlib.import_module(module).paper
    start = time.perf_counter()
    found = paper.arms[arm].measure(Trial(seed, scale))
    return {"metrics": {name: plain(value) for name, value in found.items()}, "seconds": time.perf_counter() - start}


def plain(value: Any) -> Any:
    """Numbers of torch and numpy as JSON has them."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return float(value)
