"""Points far stiffer than the grid's: all verified, and all within their error bars of the closed form."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from problems import START, StiffGrid, gradient_problem, options, scenarios, solve

from retrograd.certificates import gradient_table
from retrograd.schema import VERDICTS

pytestmark = pytest.mark.slow

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


def state(t: float, k: np.ndarray) -> np.ndarray:
    """Returns (x0, x1) at t, in closed form but for one quadrature: shape (2,), of k's type, complex too.

    With u = exp(x0) and w = exp(x1) both equations are linear. The intervals of the quadrature halve towards both ends:
    there the integrand changes, on the scales of the two rates.
    """
    p2, k1, k2, k3, k4 = k
    a, b, level = np.exp(k1), np.exp(k3), np.exp(k4)
    u0, w0 = np.exp(START)
    w = lambda s: level + (w0 - level) * np.exp(-b * s)
    grid = np.concatenate([[0.0], t / 2 * 2.0 ** -np.arange(75.0)[::-1]])
    low, high = grid[:-1], grid[1:]
    near = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * NODES
    weight = (high - low)[:, None] / 2 * WEIGHTS
    # From both ends, so that a small distance to either keeps its digits.
    integral = np.sum(weight * (np.exp(-a * near) / w(t - near) + np.exp(-a * (t - near)) / w(near)))
    return np.array([np.log(u0 * np.exp(-a * t) + a * np.exp(p2 - k2) * integral), np.log(w(t))])


def exact(times: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Returns states (time, state), loss and its gradient (parameter,), this one by a complex step."""
    rows = lambda k: np.array([np.array(START, k.dtype) if t == 0 else state(t, k) for t in times])
    loss = lambda k: np.sum(rows(k) ** 2)
    step = 1e-30j * np.eye(len(k))
    return rows(k), float(loss(k)), np.array([loss(k + row).imag / 1e-30 for row in step])


@pytest.mark.parametrize("stop", [10.0, 1e3, 1e5])
def test_random_points_with_rates_up_to_e25(stop: float, capsys: pytest.CaptureFixture[str]):
    rng = np.random.Generator(np.random.PCG64(int(stop)))
    k = rng.uniform([-10, -5, -2, -5, -6], [10, 25, 2, 25, 2], (100, 5))
    times, x = np.linspace(0, stop, 11), np.tile(START, (len(k), 1))
    settings = options(methods=["replay", "forward"], wrt=["dynamic"])
    records = solve(StiffGrid, StiffGrid(), settings, times, x, k)
    assert all(r.status == 0 for r in records)
    problem, recorded = gradient_problem(StiffGrid, StiffGrid(), settings, times), scenarios(records, x, k)
    table = gradient_table(problem, recorded)
    attempts = np.array([len(r.end) for r in records])
    with capsys.disabled():
        told = Counter(VERDICTS[v] for v in table["verdict"].ravel())
        print(f"\n  t_end {stop:g}: {dict(told)}, attempts {np.median(attempts)} median, {attempts.max()} most", end="")
    assert np.all(table["verdict"] == 0)
    replayed = problem.replay(recorded)[0]["rows"]
    for i in range(len(k)):
        states, loss, gradient = exact(times, k[i])
        assert np.all(np.abs(replayed[i] - states) <= table["x_error"][i]), k[i]
        assert abs(table["loss"][i] - loss) <= table["loss_error"][i], k[i]
        assert np.all(np.abs(table["ad"][i, 0] - gradient) <= table["ode_error"][i]), k[i]
