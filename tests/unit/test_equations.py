"""Rates as formulas: each has the value of the field that it was read from, and reads as one would write it."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

from retrograd import equations as eq
from retrograd import report
from retrograd.api import Model


class Plain(Model):
    """A substance decays.

    Twice.
    """

    states = {"x": "1", "y_2": "1"}
    parameters = {"alpha": "1", "uptake": "1", "k1": "1"}

    def vector_field(self, t, x, k):
        """Says nothing."""
        a, b = x
        rate = k["uptake"] * jnp.exp(-t) * a / (k["k1"] + a**2)
        return jnp.stack([jnp.where(b > 1, rate, 0.5 * jnp.tanh(b)), -k["alpha"] * jnp.maximum(b, 0.0)])


class WithNetwork(Model):
    states = {"x": "1", "y": "1"}
    parameters = {"k": "1"}
    network: eqx.nn.MLP

    @classmethod
    def build(cls, key):
        return cls(network=eqx.nn.MLP(2, 2, 8, 2, jax.nn.softplus, key=key))

    def vector_field(self, t, x, k):
        del t
        out = self.network(x)
        return jnp.stack([out[0] - x[0], k["k"] * jnp.log1p(jax.nn.softplus(out[1]))])


class Loop(Model):
    states = {"x": "1"}

    def vector_field(self, t, x, k):
        del t, k
        return jax.lax.fori_loop(0, 3, lambda _, v: v / 2, x)


def test_a_formula_reads_as_one_would_write_it():
    first, second = eq.equations(Plain())
    assert first.startswith(r"\frac{\mathrm{d} x}{\mathrm{d} t} = \begin{cases}")
    assert r"\text{uptake} x e^{- t}" in first and r"k_{1} + x^{2}" in first
    assert r"0.5 \tanh{\left(y_{2} \right)}" in first
    assert second == r"\frac{\mathrm{d} y_{2}}{\mathrm{d} t} = - \alpha \max\left(0, y_{2}\right)"


def test_a_network_stays_whole():
    model = WithNetwork.build(jax.random.key(0))
    first, second = eq.equations(model)
    assert first.endswith(r"- x + \text{network}_{1}{\left(x,y \right)}")
    assert second.endswith(
        r"k \log{\left(\log{\left(e^{\text{network}_{2}{\left(x,y \right)}} + 1 \right)} + 1 \right)}"
    )
    assert eq.networks(model) == {"network": "MLP, 2 → 8 → 8 → 2, softplus, 114 weights"}


@pytest.mark.parametrize("at", [0.4, 1.7])
def test_formulas_have_the_values_of_the_field(at: float):
    x, k = np.array([0.7, at]), {"alpha": 0.3, "uptake": 2.5, "k1": 0.2}
    program = jax.make_jaxpr(lambda t, x, *k: Plain().vector_field(t, x, dict(zip(Plain.parameters, k, strict=True))))(
        0.0, x, *k.values()
    )
    names: Any = sp.symbols("t x y alpha uptake k1", real=True)
    vector = np.empty(2, object)
    vector[:] = names[1:3]
    found = eq.run(program, [names[0], vector, *names[3:]], eq._OPERATIONS, eq._CALLED)[0]
    values = dict(zip(names, [0.25, *x, *k.values()], strict=True))
    wanted = Plain().vector_field(0.25, jnp.asarray(x), {n: jnp.asarray(v) for n, v in k.items()})
    np.testing.assert_allclose([float(f.subs(values)) for f in found], wanted, rtol=1e-14)


def test_what_has_no_formula_is_left_out():
    assert eq.equations(Loop()) == [""]

    class Large(Plain):
        states = {f"x{i}": "1" for i in range(eq.MOST_RATES + 1)}

    assert eq.equations(Large()) == [""] * (eq.MOST_RATES + 1)

    class Long(Loop):
        def vector_field(self, t, x, k):
            return sum(jnp.sin((i + 0.5) * x) for i in range(eq.MOST_TERMS))

    assert eq.equations(Long()) == [""]


def test_words_and_text_of_a_model():
    assert eq.description_of(Plain) == "A substance decays.\n\nTwice."
    assert eq.description_of(Loop) == ""
    text = eq.text_of(Plain.vector_field)
    assert text.startswith("def vector_field(self, t, x, k):\n    a, b = x") and "Says nothing" not in text


@pytest.mark.parametrize(
    ("name", "tex"),
    [
        ("x", "x"),
        ("x0", "x_{0}"),
        ("k_cat", r"k_{\text{cat}}"),
        ("uptake", r"\text{uptake}"),
        ("alpha12", r"\alpha_{12}"),
        ("IkBa_mRNA_2", r"\text{IkBa}_{\text{mRNA\_2}}"),
    ],
)
def test_names(name: str, tex: str):
    assert eq.tex_name(name) == tex


def test_latex_becomes_mathml_and_nothing_else():
    for tex in eq.equations(Plain()):
        assert str(report.formula(tex)).startswith("<math ")
    for hostile in (
        r"\text{<script>alert(1)</script>}",
        r"\text{<img onerror=alert(1)>}",
        r"\href{javascript:1}{x}",
        "\\",
    ):
        assert "script" not in str(report.formula(hostile)) and "onerror" not in str(report.formula(hostile))
