"""Replays with jumps among their steps: a chain of replays.

Forward, each begins where the jump puts the end of the one before. Backward, with J = d(jump)/dx and lam the cotangent
after the jump, J^T lam goes on, and lam . d(jump)/dp belongs to the gradient. The tangent is the same forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from retrograd.api import Model
from retrograd.batches import batched
from retrograd.jumps import Jumps, after, jumps_of
from retrograd.linalg import jitter as roundings
from retrograd.plugins import Field
from retrograd.replay import Linearised, Replayer, by_weights
from retrograd.rosenbrock import tableau_of
from retrograd.rosenbrock_replay import RosenbrockReplayer
from retrograd.starts import adjoint_through, tangent_through


@dataclass
class LinearisedChain:
    """`Linearised` of each piece, and how the steps of each scenario fall into pieces."""

    pieces: list[Linearised]
    cuts: list[list[int]]  # (scenario, jump), as `_cuts`
    lengths: np.ndarray  # (scenario,)

    def take(self, rows: np.ndarray) -> LinearisedChain:
        """Returns some of the scenarios."""
        return LinearisedChain([p.take(rows) for p in self.pieces], [self.cuts[i] for i in rows], self.lengths[rows])


class ReplayerWithJumps:
    """A `Replayer` for steps with jumps among them: the same methods, arguments and results.

    Of a jump, `stages` hold the state before it, and in the last row that after it, where steps of stiffly accurate
    methods have theirs.
    """

    def __init__(self, inner: Replayer, jumps: Jumps) -> None:
        self._inner, self._jumps = inner, jumps
        self.n, self.dtype, self.tableau, self.portions = inner.n, inner.dtype, inner.tableau, inner.portions
        self._times = np.asarray(jumps.times, self.dtype)
        self._begins = [np.zeros((), self.dtype), *after(self._times)]
        self._value = eqx.filter_jit(jax.vmap(jumps.apply, in_axes=(None, 0, 0, 0)))
        self._vjp = eqx.filter_jit(jax.vmap(self._adjoint_one, in_axes=(None, 0, 0, 0, 0)))
        self._jvp: Any = eqx.filter_jit(jax.vmap(self._tangent_one, in_axes=(None, 0, 0, 0, 0, None, None)))

    def _adjoint_one(self, model, t, x, k, lam):
        return adjoint_through(lambda model, x, k: self._jumps.apply(model, t, x, k), model, x, k, lam)

    def _tangent_one(self, model, t, x, k, dx, dk, dweights):
        jump = lambda model, x, k: self._jumps.apply(model, t, x, k)
        return tangent_through(jump, model, x, k, dx, dk, dweights)[1]

    def _cuts(self, steps: Sequence[np.ndarray]) -> list[list[int]]:
        # Of each scenario and jump the step that the jump is; one beyond the last step where it was not reached.
        return [np.searchsorted(np.asarray(s, self.dtype), self._times, side="right").tolist() for s in steps]

    def _pieces(self, cuts: list[list[int]], j: int) -> list[slice]:
        # Of each scenario the steps between a jump and the next.
        last = lambda c: c[j] if j < len(c) else None
        return [slice(c[j - 1] + 1 if j else 0, last(c)) for c in cuts]

    def _jumping(self, cuts: list[list[int]], lengths: Sequence[int] | np.ndarray, j: int) -> np.ndarray:
        # The scenarios that go through a jump.
        return np.array([i for i, c in enumerate(cuts) if j < len(c) and c[j] < lengths[i]], int)

    def _at(self, j: int, rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), self._times[j] if j < len(self._times) else 0)

    def _stages(self, before: np.ndarray, new: np.ndarray) -> np.ndarray:
        return np.stack([before] * (self._inner.kept - 1) + [new])

    def forward(
        self, model: Model, x_start: np.ndarray, k: np.ndarray, steps: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        cuts, lengths = self._cuts(steps), [len(s) for s in steps]
        ends = [np.zeros((n, self.n)) for n in lengths]
        stages = [np.zeros((n, self._inner.kept, self.n)) for n in lengths]
        x = np.array(x_start, float)
        for j, begin in enumerate(self._begins):
            pieces = self._pieces(cuts, j)
            found = self._inner.forward(model, x, k, _parts(steps, pieces), begin)
            _put(ends, found[0], pieces, x)
            _put(stages, found[1], pieces)
            rows = self._jumping(cuts, lengths, j)
            if len(rows):
                jumped = batched(self._value, model, self._at(j, rows), x[rows], k[rows])
                for i, new in zip(rows, jumped, strict=True):
                    stages[i][cuts[i][j]] = self._stages(x[i], new)
                    ends[i][cuts[i][j]] = x[i] = new
        return ends, stages

    def linearise(
        self, model: Model, k: np.ndarray, steps: Sequence[np.ndarray], stages: Sequence[np.ndarray]
    ) -> LinearisedChain:
        cuts, out = self._cuts(steps), []
        for j, begin in enumerate(self._begins):
            pieces = self._pieces(cuts, j)
            out.append(self._inner.linearise(model, k, _parts(steps, pieces), _parts(stages, pieces), begin))
        return LinearisedChain(out, cuts, np.array([len(s) for s in steps], int))

    def perturbed(
        self,
        model: Model,
        x_start: np.ndarray,
        k: np.ndarray,
        owner: np.ndarray,
        near: LinearisedChain,
        seed: int = 0,
        keep_stages: bool = False,
        weights: np.ndarray | None = None,
        of: np.ndarray | None = None,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        cuts, lengths = [near.cuts[o] for o in owner], near.lengths[owner]
        ends = [np.zeros((n, self.n)) for n in lengths]
        stages = [np.zeros((n if keep_stages else 0, self._inner.kept, self.n)) for n in lengths]
        x = np.array(x_start, float)
        for j, part in enumerate(near.pieces):
            pieces = self._pieces(cuts, j)
            found = self._inner.perturbed(model, x, k, owner, part, seed, keep_stages, weights, of)
            _put(ends, found[0], pieces, x)
            if keep_stages:
                _put(stages, found[1], pieces)
            rows = self._jumping(cuts, lengths, j)
            if len(rows):
                mine = None if of is None else of[rows]
                jumped = by_weights(self._value, model, weights, mine, self._at(j, rows), x[rows], k[rows])
                jumped = jumped * (1 + roundings((self.n,), self.dtype, seed))
                for i, new in zip(rows, jumped, strict=True):
                    if keep_stages:
                        stages[i][cuts[i][j]] = self._stages(x[i], new)
                    ends[i][cuts[i][j]] = x[i] = new
        return ends, stages

    def tangent(
        self,
        model: Model,
        k: np.ndarray,
        steps: Sequence[np.ndarray],
        stages: Sequence[np.ndarray],
        dx: np.ndarray,
        dk: np.ndarray,
        dweights: np.ndarray,
        jitter: int = 0,
    ) -> list[np.ndarray]:
        cuts, lengths = self._cuts(steps), [len(s) for s in steps]
        out = [np.zeros((n, *dx.shape[1:])) for n in lengths]
        moved = np.array(dx, float)
        along = jnp.asarray(dk, self.dtype), jnp.asarray(dweights, self.dtype)
        call = lambda model, *rows: self._jvp(model, *rows, *along)
        for j, begin in enumerate(self._begins):
            pieces = self._pieces(cuts, j)
            part = _parts(steps, pieces), _parts(stages, pieces)
            found = self._inner.tangent(model, k, *part, moved, dk, dweights, jitter, begin)
            _put(out, found, pieces, moved)
            rows = self._jumping(cuts, lengths, j)
            if len(rows):
                x = np.stack([stages[i][cuts[i][j], 0] for i in rows])
                found = batched(call, model, self._at(j, rows), x, k[rows], moved[rows])
                for i, new in zip(rows, found, strict=True):
                    out[i][cuts[i][j]] = moved[i] = new
        return out

    def backward(
        self,
        model: Model,
        k: np.ndarray,
        steps: Sequence[np.ndarray],
        stages: Sequence[np.ndarray],
        injected: Sequence[np.ndarray],
        weights: int,
        jitter: int = 0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cuts, lengths = self._cuts(steps), [len(s) for s in steps]
        lam, gk, gw = (
            np.zeros((len(steps), self.n)),
            np.zeros((len(steps), k.shape[1])),
            np.zeros((len(steps), weights)),
        )
        for j, begin in reversed(list(enumerate(self._begins))):
            rows = self._jumping(cuts, lengths, j)
            if len(rows):
                into = np.stack([injected[i][cuts[i][j]] for i in rows])
                x = np.stack([stages[i][cuts[i][j], 0] for i in rows])
                found = batched(self._vjp, model, self._at(j, rows), x, k[rows], lam[rows] + into)
                lam[rows] = found[0]
                gk[rows] += found[1]
                gw[rows] += found[2]
            pieces = self._pieces(cuts, j)
            part = _parts(steps, pieces), _parts(stages, pieces)
            # What comes from beyond the piece enters at its end.
            entering = [np.array(v, float) for v in _parts(injected, pieces)]
            for value, own in zip(entering, lam, strict=True):
                if len(value):
                    value[-1] += own
            gx, more_k, more_w = self._inner.backward(model, k, *part, entering, weights, jitter, begin)
            walked = np.array([len(v) > 0 for v in entering])
            lam = np.where(walked[:, None], gx, lam)
            gk, gw = gk + more_k, gw + more_w
        return lam, gk, gw


def _parts(values: Sequence[np.ndarray], pieces: list[slice]) -> list[np.ndarray]:
    return [v[p] for v, p in zip(values, pieces, strict=True)]


def _put(out: list[np.ndarray], found: list[np.ndarray], pieces: list[slice], last: np.ndarray | None = None) -> None:
    """Puts what was found of each piece into its place, and the last of it into `last`, shape (scenario, ...)."""
    for i, (piece, values) in enumerate(zip(pieces, found, strict=True)):
        out[i][piece] = values
        if last is not None and len(values):
            last[i] = values[-1]


def make_replayer(field: Field, options: Mapping[str, Any], n: int) -> Any:
    """Returns the replay of a variant's solver; arguments as those of `Replayer`."""
    kind = RosenbrockReplayer if tableau_of(options["solver"]).linearly_implicit else Replayer
    inner = kind(field, options, n)
    jumps = jumps_of(field)
    return inner if jumps is None else ReplayerWithJumps(inner, jumps)
