"""A regulated gene with turnover: the default study's model, with a pretrained promoter network.

The network stands for a measured promoter response that has no formula of its own. Here it was fitted
to `log_promoter`, a published Hill-type promoter, so that its error can be stated: see README.md beside
this file, and `scripts/pretrain_turnover.py`, which fits it.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from retrograd.api import Model

# From the literature; `log_promoter` says what was measured where.
HILL = 2.4
DISSOCIATION_NM = 55.0
LEAK = 1.0e-3

# Our choice: how far the product represses its own promoter at most, as a factor of its activity.
AUTOREGULATION = 0.25

# The network was fitted on this box, natural logarithms, in the order (x0, x1). Every scenario of
# config/scenarios/turnover.tsv stays inside.
BOX = ((-12.0, 6.0), (-12.0, 6.0))


def log_promoter(x0: jax.Array, x1: jax.Array) -> jax.Array:
    """Returns ln of the level at which the target gene settles, where its full level is 1.

    With r = exp(x1), the repressor in units of its dissociation constant, and s = exp(x0), the product
    in units of its own full level:

        f = ln(LEAK + (1 - LEAK) / (1 + r^HILL)) + ln((1 + AUTOREGULATION s) / (1 + s))

    - `x0`: ln of the target's level relative to its full, unrepressed level without autoregulation.
    - `x1`: ln of the regulator's concentration relative to DISSOCIATION_NM.

    The first term is the response of the lambda promoter P_R to its repressor CI in single cells of
    E. coli: Hill coefficient 2.4 and half-maximal expression at 55 nM, from Rosenfeld, Young, Alon,
    Swain and Elowitz, "Gene regulation at the single-cell level", Science 307:1962 (2005). The leak is
    the ratio of the promoter strengths under full repression and under none in the repressilator model
    of Elowitz and Leibler, Nature 403:335 (2000): 5e-4 to 0.5 transcripts per promoter and second.

    Our choice, from neither source: to combine the two; units in which the dissociation constant and
    the full level are 1, so that the 55 nM only translate x1 into a concentration and the unrepressed
    production rate drops out; and the second term. It is the saturating factor of a weak repressor that
    binds without cooperativity and leaves a quarter of the activity, half-bound at the full level. It
    makes the feedback negative and weak: df/dx0 lies between -1/3 and 0, the lowest value at s = 2. So
    f - x0 falls strictly in x0, and x0 = f(x0, x1) - k2 has exactly one solution for every x1 and k2.
    """
    # Both logarithms in softplus form: r and s may overflow where their logarithms do not.
    repressed = -jax.nn.softplus(HILL * x1)
    regulated = jnp.logaddexp(jnp.log(LEAK), jnp.log1p(-LEAK) + repressed)
    own = jax.nn.softplus(x0 + jnp.log(AUTOREGULATION)) - jax.nn.softplus(x0)
    return regulated + own


class Turnover(Model):
    """Production and first-order loss of a regulator and of its target, in log-concentrations.

        dx0/dt = exp(k1) * (exp(f(x; p) - x0 - k2) - 1)
        dx1/dt = exp(k3) * (exp(k4 - x1) - 1)

    In concentrations X = exp(x) this is dX0/dt = exp(k1) * (exp(f - k2) - X0), likewise for X1.
    All states and parameters are natural logarithms, hence of unit 1; time is in seconds.

    - `x0`: ln of the target's level relative to its full level.
    - `x1`: ln of the regulator's level relative to the dissociation constant of the promoter.
    - `k1`: ln of the target's turnover rate in 1/s.
    - `k2`: ln of the factor by which the target's production is cut: 0 for not at all, below 0 for a boost.
    - `k3`: ln of the regulator's turnover rate in 1/s.
    - `k4`: ln of the level at which the regulator settles, relative to the same dissociation constant.
    - `f`, `p`: the network and its 1185 weights: (x0, x1) to the level at which the target would settle
      with k2 = 0. Fitted to `log_promoter` on BOX; tanh keeps it bounded and smooth outside too.
    """

    states = {"x0": "1", "x1": "1"}
    parameters = {"k1": "1", "k2": "1", "k3": "1", "k4": "1"}
    time_unit = "s"
    formulations = {"naive": "naive_field", "stable": "vector_field"}

    network: eqx.nn.MLP

    @classmethod
    def build(cls, key: jax.Array) -> Turnover:
        """Returns the structure: 2-32-32-1 with tanh, in JAX's default float type.

        - `key`: a PRNG key for the weights, which the pretrained ones replace.
        """
        return cls(network=eqx.nn.MLP(2, 1, 32, 2, jnp.tanh, key=key))

    def log_level(self, x: jax.Array) -> jax.Array:
        """Returns f(x; p), scalar.

        - `x`: state, shape (2,).
        """
        return self.network(x)[0]

    def vector_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns dx/dt in 1/s, shape (2,), accurate near the steady state too.

        - `t`: time in s, scalar; the model is autonomous.
        - `x`: state, shape (2,).
        - `k`: k1 to k4, scalars.
        """
        del t
        target = jnp.exp(k["k1"]) * jnp.expm1(self.log_level(x) - x[0] - k["k2"])
        regulator = jnp.exp(k["k3"]) * jnp.expm1(k["k4"] - x[1])
        return jnp.stack([target, regulator])

    def naive_field(self, t: jax.Array, x: jax.Array, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the same as `vector_field`, written as on paper: it cancels near the steady state.

        - `t`: time in s, scalar; the model is autonomous.
        - `x`: state, shape (2,).
        - `k`: k1 to k4, scalars.
        """
        del t
        target = jnp.exp(k["k1"]) * (jnp.exp(self.log_level(x) - x[0] - k["k2"]) - 1.0)
        regulator = jnp.exp(k["k3"]) * (jnp.exp(k["k4"] - x[1]) - 1.0)
        return jnp.stack([target, regulator])

    def initial_guess(self, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the regulator's exact level and one fixed-point step for the target's, shape (2,).

        Newton's method on expm1(u) overshoots by exp(-u) where u is well below 0, so a guess of zeros
        would throw repressed targets far out of the box.

        - `k`: k1 to k4, scalars.
        """
        start = jnp.stack([-k["k2"], k["k4"]])
        return jnp.stack([self.log_level(start) - k["k2"], k["k4"]])

    def residual_scale(self, k: dict[str, jax.Array]) -> jax.Array:
        """Returns the time constants in s, shape (2,): the scaled residual is free of rates up to e^20.

        - `k`: k1 to k4, scalars.
        """
        return jnp.exp(-jnp.stack([k["k1"], k["k3"]]))
