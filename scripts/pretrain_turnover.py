"""Fits the promoter network of config/models/turnover.py and writes its weights.

    PYTHONPATH=scripts python scripts/pretrain_turnover.py

The data are the promoter formula on a fixed grid, the fit is Levenberg-Marquardt in float64 on the full
grid: no random numbers but the initial weights. Another machine or library version rounds differently and
so ends at other weights of about the same error.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

# The order of summation in BLAS and in XLA depends on the number of threads.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree
from safetensors.numpy import save

from retrograd.plugins import load_class

MODELS = Path(__file__).resolve().parent.parent / "config" / "models"

# Finer in x1: there the formula bends within 1/HILL, in x0 within 1.
GRID = (48, 120)

# Below this RMS in log units, the fit is far more accurate than any measured promoter.
RMS_GOAL = 1.0e-5


def chebyshev(low: float, high: float, number: int) -> np.ndarray:
    """Returns extremal Chebyshev points: dense at the ends, where a fit has neighbours on one side only.

    - `low`, `high`: the ends of the interval, both among the points.
    - `number`: how many points.
    """
    return (low + high) / 2 - (high - low) / 2 * np.cos(np.pi * np.arange(number) / (number - 1))


def fold(network: eqx.nn.MLP, centre: np.ndarray, half: np.ndarray, offset: float, scale: float) -> eqx.nn.MLP:
    """Returns the network for raw inputs and outputs, with the scaling in its first and last layer.

    - `network`: maps (x - centre) / half to (y - offset) / scale.
    - `centre`, `half`: shape (2,). `offset`, `scale`: of the output.
    """
    first, last = network.layers[0], network.layers[-1]
    assert first.bias is not None and last.bias is not None
    weight = first.weight / half
    return eqx.tree_at(
        lambda n: (n.layers[0].weight, n.layers[0].bias, n.layers[-1].weight, n.layers[-1].bias),
        network,
        (weight, first.bias - weight @ centre, last.weight * scale, last.bias * scale + offset),
    )


def levenberg_marquardt(
    network: eqx.nn.MLP, inputs: jax.Array, targets: np.ndarray, steps: int, goal: float
) -> tuple[eqx.nn.MLP, int]:
    """Returns the network with weights that minimise the mean squared error, and the accepted steps.

    - `network`: the start.
    - `inputs`: shape (point, 2). `targets`: shape (point,).
    - `steps`: the most Jacobians to form.
    - `goal`: RMS error at which to stop.
    """
    arrays, static = eqx.partition(network, eqx.is_array)
    flat, unravel = ravel_pytree(arrays)

    def output(weights: jax.Array, point: jax.Array) -> jax.Array:
        return eqx.combine(unravel(weights), static)(point)[0]

    residual = jax.jit(lambda w: jax.vmap(output, (None, 0))(w, inputs) - targets)
    jacobian = jax.jit(lambda w: jax.vmap(jax.grad(output), (None, 0))(w, inputs))

    weights, damping, accepted = np.asarray(flat), 1.0e-2, 0
    error = np.asarray(residual(weights))
    loss = np.mean(error**2)
    for step in range(steps):
        slopes = np.asarray(jacobian(weights))
        normal = slopes.T @ slopes / error.size
        gradient = slopes.T @ error / error.size
        for _ in range(20):
            system = normal + damping * np.eye(weights.size)
            trial = weights - scipy.linalg.solve(system, gradient, assume_a="pos", overwrite_a=True)
            trial_error = np.asarray(residual(trial))
            trial_loss = np.mean(trial_error**2)
            if trial_loss < loss:
                break
            damping *= 4.0
        else:
            break
        weights, error, loss, accepted = trial, trial_error, trial_loss, step + 1
        # A floor on the damping keeps the weights small: the data do not determine all 1185 of them.
        damping = max(damping / 3.0, 1.0e-12)
        if step % 20 == 0:
            print(f"step {step:4d}: scaled RMS {np.sqrt(loss):.2e}, max {np.abs(error).max():.2e}")
        if loss < goal**2:
            break
    return eqx.combine(unravel(jnp.asarray(weights)), static), accepted


def leaves(network: eqx.nn.MLP) -> dict[str, np.ndarray]:
    """Returns the weights by their path below the model, such as network.layers.0.weight.

    - `network`: its array leaves are the weights.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(network, eqx.is_array))
    return {
        "network." + jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf, np.float64)
        for path, leaf in paths
    }


def main() -> None:
    """Fits, tests on points of its own, writes."""
    parser = argparse.ArgumentParser(description="Fit the promoter network of the turnover model.")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights")
    parser.add_argument("--steps", type=int, default=600, help="most Levenberg-Marquardt steps")
    parser.add_argument("--out", type=Path, default=MODELS / "turnover.safetensors", help="the file to write")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    started = time.perf_counter()

    turnover: Any = load_class(str(MODELS / "turnover.py"), "Turnover")
    plugin = sys.modules[turnover.__module__]
    low, high = np.asarray(plugin.BOX).T
    centre, half = (low + high) / 2, (high - low) / 2
    axes = [chebyshev(a, b, number) for a, b, number in zip(low, high, GRID, strict=True)]
    points = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=-1)
    formula = jax.jit(plugin.log_promoter)
    values = np.asarray(formula(points[:, 0], points[:, 1]))
    offset, scale = float(values.max() + values.min()) / 2, float(np.ptp(values)) / 2

    network = turnover.build(jax.random.key(options.seed)).network
    network, accepted = levenberg_marquardt(
        network,
        jnp.asarray((points - centre) / half),
        (values - offset) / scale,
        options.steps,
        RMS_GOAL / scale,
    )
    network = fold(network, centre, half, offset, scale)

    random = np.random.default_rng(options.seed + 1)
    test = random.uniform(low, high, (200_000, 2))
    # A tenth of them on the edges, where the largest errors tend to be.
    edge = np.arange(0, len(test), 10)
    side = random.integers(0, 2, edge.size)
    test[edge, side] = np.where(random.random(edge.size) < 0.5, low[side], high[side])
    fitted = jax.jit(jax.vmap(lambda x: network(x)[0]))
    error = np.asarray(fitted(test)) - np.asarray(formula(test[:, 0], test[:, 1]))
    slope = np.asarray(jax.jit(jax.vmap(jax.grad(lambda x: network(x)[0])))(test))[:, 0]

    weights = leaves(network)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(save(weights))
    elapsed = time.perf_counter() - started
    print(f"weights {sum(w.size for w in weights.values())}, steps {accepted}, {elapsed:.0f} s")
    print(f"test error in ln units: max {np.abs(error).max():.2e}, RMS {np.sqrt(np.mean(error**2)):.2e}")
    print(f"df/dx0 on the test points: {slope.min():.4f} to {slope.max():.2e}")


if __name__ == "__main__":
    main()
