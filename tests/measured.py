"""An exponential approach to a new inflow, measured in two experiments: a plug-in, and its closed forms by mpmath.

    x(t) = a / k + (a_steady / k - a / k) exp(-k t),    level = scale x,    whole = x

with normal noise of scale `sd` on the level and of 0.1 on the whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import mpmath

TIMES = (0.0, 0.5, 1.0, 2.0, 4.0)
PARAMETERS = ("k", "a", "scale", "sd", "which")

PLUGIN = '''\
"""An exponential approach to a new inflow, measured in two experiments."""

import jax.numpy as jnp
from retrograd.api import Model

# Of each experiment its measurements; the last one of `high` is padding.
ROWS = ((0, 2, 4, 1), (3, 5, 6, -1))


class Approach(Model):
    states = {"x": "1"}
    parameters = {"k": "s-1", "a": "s-1", "scale": "1", "sd": "1", "which": "1"}
    measurements = {
        "experiment": ("low", "low", "low", "high", "low", "high", "high"),
        "observable": ("level", "level", "level", "level", "whole", "whole", "level"),
        "time": (0.5, 1.0, 4.0, 0.0, 2.0, 2.0, 4.0),
        "measurement": (1.9, 2.4, 3.3, 1.1, 1.4, 3.9, 9.2),
    }

    def vector_field(self, t, x, k):
        return k["a"] - k["k"] * x

    def fitted(self, times, x, k):
        rows = jnp.asarray(ROWS)[jnp.round(k["which"]).astype(int)]
        at = jnp.argmin(jnp.abs(times - jnp.asarray(self.measurements["time"])[rows][:, None]), axis=1)
        level = jnp.asarray([o == "level" for o in self.measurements["observable"]])[rows]
        x = x[at, 0]
        return rows, jnp.where(level, k["scale"] * x, x), jnp.where(level, k["sd"], 0.1)

    def loss(self, times, x, k):
        rows, simulation, noise = self.fitted(times, x, k)
        residual = (jnp.asarray(self.measurements["measurement"])[rows] - simulation) / noise
        parts = 0.5 * residual**2 + jnp.log(noise) + 0.5 * jnp.log(2 * jnp.pi)
        return jnp.sum(jnp.where(rows >= 0, parts, 0.0))
'''

# Two samples of the parameters, and the inflows of each experiment before the dynamics and in them.
SAMPLES = {"first": {"k": 0.7, "scale": 2.0, "sd": 0.3}, "second": {"k": 0.5, "scale": 2.2, "sd": 0.2}}
INFLOWS = {"low": (0.5, 1.2), "high": (0.4, 3.0)}
WHICH = {name: float(i) for i, name in enumerate(INFLOWS)}

MEASUREMENTS = (
    *(("low", "level", 0.5, 1.9), ("low", "level", 1.0, 2.4), ("low", "level", 4.0, 3.3), ("high", "level", 0.0, 1.1)),
    *(("low", "whole", 2.0, 1.4), ("high", "whole", 2.0, 3.9), ("high", "level", 4.0, 9.2)),
)


def scenarios(samples: Mapping[str, Mapping[str, float]] = SAMPLES) -> str:
    """Returns a scenario table of all experiments under each sample; one sample alone goes without its name."""
    lines = ["scenario\tk\tscale\tsd\twhich\ta@steady\ta@dynamic"]
    for sample, p in samples.items():
        for name, (before, after) in INFLOWS.items():
            scenario = name if len(samples) == 1 else f"{sample}:{name}"
            cells = (p["k"], p["scale"], p["sd"], WHICH[name], before, after)
            lines.append("\t".join([scenario, *map(repr, cells)]))
    return "\n".join(lines) + "\n"


def simulated(
    sample: Mapping[str, float], row: int, moved: Mapping[str, mpmath.mpf] | None = None
) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Returns value and noise in the place of a measurement.

    - `moved`: what is added to parameters, in both phases.
    """
    moved = moved or {}
    p = {name: mpmath.mpf(sample.get(name, 0)) + moved.get(name, 0) for name in PARAMETERS}
    experiment, observable, time, _ = MEASUREMENTS[row]
    before, after = ((mpmath.mpf(v) + p["a"]) / p["k"] for v in INFLOWS[experiment])
    x = after + (before - after) * mpmath.exp(-p["k"] * time)
    return (p["scale"] * x, p["sd"]) if observable == "level" else (x, mpmath.mpf("0.1"))


def llh(
    sample: Mapping[str, float], moved: Mapping[str, mpmath.mpf] | None = None, only: str | None = None
) -> mpmath.mpf:
    """Returns the log-likelihood of a sample: of all measurements, or of one experiment's."""
    total = mpmath.mpf(0)
    for row, (experiment, _, _, measured) in enumerate(MEASUREMENTS):
        if only in (None, experiment):
            value, noise = simulated(sample, row, moved)
            total += mpmath.log(mpmath.npdf(measured, value, noise))
    return total


def slope(sample: Mapping[str, float], name: str, only: str | None = None) -> float:
    """Returns the derivative of the log-likelihood by a parameter that is one number in both phases."""
    return float(mpmath.diff(lambda h: llh(sample, {name: h}, only), 0)) if name != "which" else 0.0
