"""The turnover system with f = p2 - x1 in closed form, at 50 digits.

With u = exp(x0) and v = exp(x1) both equations are linear: v(t) is elementary, u(t) one quadrature. Nothing here uses
the project's code.
"""

from __future__ import annotations

import mpmath as mp

PARAMETERS = ("p2", "k1", "k2", "k3", "k4")


def solution(t, x_start, k):
    """Returns (x0, x1) at time t, as mpf.

    - `x_start`: (x0, x1) at time 0.
    - `k`: parameter name to value.
    """
    with mp.workdps(50):
        t = mp.mpf(t)
        u0, v0 = mp.exp(x_start[0]), mp.exp(x_start[1])
        a, b = mp.exp(k["k1"]), mp.exp(k["k3"])
        level = mp.exp(k["k4"])
        drive = mp.exp(k["p2"] - k["k2"])
        v = lambda s: level + (v0 - level) * mp.exp(-b * s)
        if t == 0:
            return mp.mpf(x_start[0]), mp.mpf(x_start[1])
        kernel = lambda s: a * mp.exp(-a * (t - s)) * drive / v(s)
        # The integrand changes on the scale 1/b at the start and 1/a at the end: the intervals follow both.
        inner = [c / b for c in (1, 3, 10, 30, 100)] + [t - c / a for c in (1, 3, 10, 30, 100)]
        # v itself changes by orders of magnitude while it leaves its start.
        crossing = mp.log(max(abs(v0 / level - 1), mp.mpf(1) / 10**6) * 10**6) / b
        inner += [crossing * c / 12 for c in range(1, 13)]
        points = [mp.mpf(0), *sorted({s for s in inner if 0 < s < t}), t]
        u = mp.exp(-a * t) * u0 + mp.quad(kernel, points)
        return mp.log(u), mp.log(v(t))


def loss(times, x_start, k):
    """Returns the sum of squares of x over times and states."""
    return mp.fsum(x**2 for t in times for x in solution(t, x_start, k))


def gradient(times, x_start, k):
    """Returns the derivative of `loss` by each parameter, by mpmath's own numerical differentiation at 50 digits."""
    with mp.workdps(50):
        return {
            name: mp.diff(
                lambda value, name=name: loss(times, x_start, {**k, name: value}), k[name], h=mp.mpf(10) ** -15
            )
            for name in PARAMETERS
        }
