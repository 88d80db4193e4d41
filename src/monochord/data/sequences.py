"""Generators of the classic sequences on which recurrent networks are compared; own integrators, all seeded.

- Mackey-Glass: "Oscillation and Chaos in Physiological Control Systems", July 15, 1977
- Lorenz: "Deterministic Nonperiodic Flow", March 1, 1963; with more variables: "Predictability: a problem partly
  solved", 1996
- Rössler: "An equation for continuous chaos", July 12, 1976
- Hénon: "A two-dimensional mapping with a strange attractor", February 1976
- NARMA: "New results on recurrent network training: unifying the algorithms and accelerating convergence", May 2000
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from monochord.data.dataset import DataError

Flow = Callable[[np.ndarray], np.ndarray]


def mackey_glass(
    steps: int, seed: int = 0, *, tau: float = 17.0, beta: float = 0.2, gamma: float = 0.1, power: float = 10.0
) -> np.ndarray:
    """`x' = beta x(t - tau) / (1 + x(t - tau)**power) - gamma x`, (steps, 1), a value a unit of time.

    Integrated by fourth-order Runge-Kutta in steps of a tenth; chaotic for `tau` above 16.8. The past before the
    start is 1.2 with a little noise from `seed`; the first 200 units of time are left out.
    """
    fine, warm_up = 10, 200
    h, delay = 1 / fine, round(tau * fine)
    if delay < 1 or abs(delay - tau * fine) > 1e-9:
        raise DataError(f"tau={tau}: use a positive multiple of {h}")
    total = (steps + warm_up) * fine
    x = np.empty(total + delay + 1)
    x[: delay + 1] = 1.2 + 0.1 * np.random.default_rng(seed).standard_normal(delay + 1)
    for i in range(delay, delay + total):
        before, after = x[i - delay], x[i - delay + 1]
        drive = [beta * past / (1 + past**power) for past in (before, (before + after) / 2, after)]
        k1 = drive[0] - gamma * x[i]
        k2 = drive[1] - gamma * (x[i] + h / 2 * k1)
        k3 = drive[1] - gamma * (x[i] + h / 2 * k2)
        k4 = drive[2] - gamma * (x[i] + h * k3)
        x[i + 1] = x[i] + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x[delay + warm_up * fine :: fine][:steps, None]


def lorenz(
    steps: int, seed: int = 0, *, h: float = 0.02, sigma: float = 10.0, rho: float = 28.0, beta: float = 8 / 3
) -> np.ndarray:
    """`x' = sigma (y - x), y' = x (rho - z) - y, z' = x y - beta z`, (steps, 3), a row every `h`."""

    def flow(state: np.ndarray) -> np.ndarray:
        x, y, z = state
        return np.array([sigma * (y - x), x * (rho - z) - y, x * y - beta * z])

    return _integrated(flow, 1 + np.random.default_rng(seed).random(3), steps, h, warm_up=1000)


def lorenz96(steps: int, seed: int = 0, *, variables: int = 36, force: float = 8.0, h: float = 0.01) -> np.ndarray:
    """`x_i' = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + force` on a ring, (steps, variables), a row every `h`."""
    if variables < 4:
        raise DataError(f"variables={variables}: the ring needs at least 4")

    def flow(x: np.ndarray) -> np.ndarray:
        return (np.roll(x, -1) - np.roll(x, 2)) * np.roll(x, 1) - x + force

    return _integrated(flow, force + 0.01 * np.random.default_rng(seed).standard_normal(variables), steps, h, 2000)


def rossler(steps: int, seed: int = 0, *, h: float = 0.1, a: float = 0.2, b: float = 0.2, c: float = 5.7) -> np.ndarray:
    """`x' = -y - z, y' = x + a y, z' = b + z (x - c)`, (steps, 3), a row every `h`."""

    def flow(state: np.ndarray) -> np.ndarray:
        x, y, z = state
        return np.array([-y - z, x + a * y, b + z * (x - c)])

    return _integrated(flow, np.random.default_rng(seed).random(3), steps, h, warm_up=1000)


def henon(steps: int, seed: int = 0, *, a: float = 1.4, b: float = 0.3) -> np.ndarray:
    """`x_{t+1} = 1 - a x_t**2 + y_t, y_{t+1} = b x_t`, (steps, 2)."""
    state = 0.1 * np.random.default_rng(seed).random(2)
    out = np.empty((steps + 100, 2))
    for t in range(len(out)):
        out[t] = state
        state = np.array([1 - a * state[0] ** 2 + state[1], b * state[0]])
    return out[100:]


def narma(steps: int, seed: int = 0, *, order: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Inputs `u` (steps, 1), uniform in 0 to 0.5, and what is to be computed of them, `y` (steps, 1).

    `y_{t+1} = 0.3 y_t + 0.05 y_t sum_{i<order} y_{t-i} + 1.5 u_{t-order+1} u_t + 0.1`. Orders above 10 may diverge,
    so a tanh is put around them, as is usual.
    """
    warm_up = 200
    u = np.random.default_rng(seed).uniform(0, 0.5, steps + warm_up)
    y = np.zeros(steps + warm_up)
    squash: Callable[[float], float] = float if order <= 10 else lambda value: float(np.tanh(value))
    for t in range(order - 1, len(y) - 1):
        recent = y[t - order + 1 : t + 1].sum()
        y[t + 1] = squash(0.3 * y[t] + 0.05 * y[t] * recent + 1.5 * u[t - order + 1] * u[t] + 0.1)
    if not (np.isfinite(y).all() and np.abs(y).max() < 10):
        raise DataError(f"the sequence of seed {seed} diverged, as one in many does: take another seed")
    return u[warm_up:, None], y[warm_up:, None]


def _integrated(flow: Flow, state: np.ndarray, steps: int, h: float, warm_up: int) -> np.ndarray:
    """Fourth-order Runge-Kutta in steps of `h`, the first `warm_up` left out."""
    out = np.empty((steps, len(state)))
    for t in range(-warm_up, steps):
        if t >= 0:
            out[t] = state
        k1 = flow(state)
        k2 = flow(state + h / 2 * k1)
        k3 = flow(state + h / 2 * k2)
        k4 = flow(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return out
