"""In-context linear regression: points of a hidden line, and one more whose value is asked for.

From "What Can Transformers Learn In-Context? A Case Study of Simple Function Classes", August 1, 2022; with two
priors, from "Understanding Catastrophic Forgetting in Language Models via Implicit Inference", September 18, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monochord.data.dataset import DataError
from monochord.data.tasks.problem import Problems, source

Floats = np.ndarray


@dataclass(frozen=True)
class LinearRegression:
    """`y = w . x + noise`, with `points` shown points and a last one to predict; float32.

    `x` (n, points + 1, features) is standard normal, `y` (n, points + 1) and `weight` (n, features) are the truth;
    `clean` is the last y without its noise. Weights are normal with deviation `spread`, or, in a share `discrete`
    of the problems (column `is_discrete`), one of `fixed_tasks` fixed vectors, drawn from `task_seed`. The
    counterfactual `y` belongs to another weight of the same prior at the same x.
    """

    points: int = 20
    features: int = 8
    noise: float = 0.5
    spread: float = 1.0
    discrete: float = 0.0
    fixed_tasks: int = 64
    task_seed: int = 0

    def __post_init__(self) -> None:
        if self.points < 1 or self.features < 1 or self.noise < 0 or not 0 <= self.discrete <= 1:
            raise DataError("points and features must be positive, noise at least 0 and discrete a share from 0 to 1")

    def tasks(self) -> Floats:
        """The fixed weights, (fixed_tasks, features)."""
        rng = np.random.default_rng(self.task_seed)
        return rng.normal(0, self.spread, (self.fixed_tasks, self.features))

    def draw(self, n: int, rng: np.random.Generator) -> Problems:
        x = rng.normal(size=(n, self.points + 1, self.features))
        noise = rng.normal(0, 1, (n, self.points + 1)) * self.noise
        is_discrete = rng.random(n) < self.discrete
        weight, other = (self._weights(is_discrete, rng) for _ in range(2))
        y, changed = (np.einsum("nkd,nd->nk", x, w) + noise for w in (weight, other))
        columns = {"x": x, "y": y, "weight": weight, "counterfactual_y": changed, "clean": (x[:, -1] * weight).sum(1)}
        return Problems(
            {name: value.astype(np.float32) for name, value in columns.items()} | {"is_discrete": is_discrete}
        )

    def _weights(self, is_discrete: np.ndarray, rng: np.random.Generator) -> Floats:
        n = len(is_discrete)
        normal = rng.normal(0, self.spread, (n, self.features))
        fixed = self.tasks()[rng.integers(self.fixed_tasks, size=n)]
        return np.where(is_discrete[:, None], fixed, normal)

    def bayes(self, x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
        """The best predictions of the last y from all before: continuous prior, discrete prior, both mixed; (n,).

        `x` (n, k + 1, features), `y` (n, k + 1), whose last value is not looked at. Raises `DataError` without noise.
        """
        if self.noise == 0:
            raise DataError("the predictors weigh tasks by their likelihood, which needs noise above 0")
        seen, values, query = x[:, :-1].astype(float), y[:, :-1].astype(float), x[:, -1].astype(float)
        variance, prior = self.noise**2, self.spread**2
        gram = np.einsum("nkd,nke->nde", seen, seen) + variance / prior * np.eye(x.shape[2])
        moment = np.einsum("nkd,nk->nd", seen, values)
        continuous = np.linalg.solve(gram, moment[..., None])[..., 0]
        tasks = self.tasks()
        errors = values[:, None] - np.einsum("nkd,td->ntk", seen, tasks)
        fits = -(errors**2).sum(2) / (2 * variance) - values.shape[1] / 2 * np.log(2 * np.pi * variance)
        best = fits.max(1, keepdims=True)
        share = np.exp(fits - best)
        discrete = (share / share.sum(1, keepdims=True)) @ tasks
        evidence_discrete = best[:, 0] + np.log(share.mean(1))
        covariance = prior * np.einsum("nkd,nld->nkl", seen, seen) + variance * np.eye(values.shape[1])
        fit = np.einsum("nk,nk->n", values, np.linalg.solve(covariance, values[..., None])[..., 0])
        evidence = -0.5 * (fit + np.linalg.slogdet(covariance)[1] + values.shape[1] * np.log(2 * np.pi))
        with np.errstate(divide="ignore"):
            odds = np.log(1 - self.discrete) + evidence - np.log(self.discrete) - evidence_discrete
        mixed = 1 / (1 + np.exp(np.clip(odds, -500, 500)))
        weights = (continuous, discrete, mixed[:, None] * discrete + (1 - mixed[:, None]) * continuous)
        one, two, three = (np.einsum("nd,nd->n", query, w) for w in weights)
        return one, two, three


ENTRIES = [source(LinearRegression, "linear-regression", "in-context linear regression with one or two priors")]
