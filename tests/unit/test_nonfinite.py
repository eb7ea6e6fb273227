"""Which expression made the first value that is not finite: the line is the one marked `# here`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrograd.nonfinite import NonFinite, first_nonfinite
from retrograd.plugins import vector_field


def marked(function: Callable[..., Any], mark: str = "# here") -> int:
    """Returns the number of the one line of a function's source that ends in a mark."""
    lines, start = inspect.getsourcelines(function)
    (offset,) = [i for i, line in enumerate(lines) if line.rstrip().endswith(mark)]
    return start + offset


def overflow(x):
    low = x - 1
    return low + jnp.exp(x)  # here


def log_of_negative(x):
    return jnp.log(-x) + 1.0  # here


def zero_by_zero(x):
    zero = x - x
    return jnp.stack([x, zero / zero])  # here


def inf_minus_inf(x):
    big = x * 1e306  # here
    return big - big


def power(x):
    return (x - 2 * x) ** 0.5  # here


def square(x):
    return x + (x * 1e200) ** 2  # here


def reciprocal(x):
    return 1.0 / (x - x)  # here


def contraction(x):
    row = jnp.full(3, 1e300) * (x / x)
    return row @ row  # here


def in_scan(x):
    def body(carry, step):
        return carry * jnp.exp(carry), step  # here

    return jax.lax.scan(body, x / 1000, jnp.arange(8.0))


def in_reversed_scan(x):
    def body(carry, step):
        return carry, jnp.log(step - 2.5) * x  # here

    return jax.lax.scan(body, x, jnp.arange(5.0), reverse=True)[1]


def in_branch(x):
    return jax.lax.cond(
        x > 0,
        lambda v: jnp.exp(v),  # here
        lambda v: jnp.log(v),
        x,
    )


def in_switch(x):
    return jax.lax.switch(
        2,
        [
            jnp.sin,
            jnp.log,
            lambda v: jnp.sqrt(-v),  # here
        ],
        x,
    )


def in_while(x):
    return jax.lax.while_loop(
        lambda v: v < 1e300,
        lambda v: v**2,  # here
        x,
    )


def in_condition(x):
    # The loop ends by an overflow in its condition, and the result itself is finite.
    return jax.lax.while_loop(lambda v: jnp.exp(v * 1000) < jnp.inf, lambda v: v + 1, -x)


def in_jit(x):
    @jax.jit
    def inner(v):
        w = v + 1
        return jnp.exp(w)  # here

    return inner(x) * 2


def in_checkpoint(x):
    return jax.checkpoint(lambda v: jnp.sin(jnp.exp(v)))(x)  # here


def in_vmap(x):
    return jax.vmap(lambda v: jnp.log(v - 2))(jnp.arange(5.0) * (x / x))  # here


def relu_of_overflow(x):
    wide = jax.nn.relu(x) + 1
    return jax.nn.relu(jnp.exp(wide))  # here


def softplus_of_overflow(x):
    return jax.nn.softplus(x) + jax.nn.softplus(x * 1e308)  # here


def stable_exponential(x):
    return jnp.expm1(x)  # here


def in_linear_solve(x):
    matrix = jnp.eye(3) * (x - x)
    return jnp.linalg.solve(matrix, jnp.full(3, x))  # here


def library_function(x):
    return jax.nn.standardize(jnp.stack([x, x]), variance=-1.0)  # here


@pytest.mark.parametrize(
    ("function", "primitive", "value"),
    [
        (overflow, "exp", "inf"),
        (log_of_negative, "log", "nan"),
        (zero_by_zero, "div", "nan"),
        (inf_minus_inf, "mul", "inf"),
        (power, "pow", "nan"),
        (square, "integer_pow", "inf"),
        (reciprocal, "div", "inf"),
        (contraction, "dot_general", "inf"),
        (in_scan, "exp", "inf"),
        (in_reversed_scan, "log", "nan"),
        (in_branch, "exp", "inf"),
        (in_switch, "sqrt", "nan"),
        (in_while, "integer_pow", "inf"),
        (in_jit, "exp", "inf"),
        (in_checkpoint, "exp", "inf"),
        (in_vmap, "log", "nan"),
        (relu_of_overflow, "exp", "inf"),
        (softplus_of_overflow, "mul", "inf"),
        (stable_exponential, "expm1", "inf"),
        (library_function, "rsqrt", "nan"),
        (in_linear_solve, "custom_linear_solve", "nan"),
    ],
)
def test_the_expression_and_its_line_are_found(function, primitive, value):
    found = first_nonfinite(function, 1000.0)
    assert found is not None
    assert (found.kind, found.primitive, found.value) == ("equation", primitive, value)
    assert found.file == __file__
    assert found.line == marked(function)
    assert found.text.endswith("# here") and found.expression in found.text
    # What it says is so: finite operands, and a result that is not.
    assert all(np.all(np.isfinite(v)) for v in found.operands)
    assert not np.all(np.isfinite(found.output))
    assert f"{found.line}" in str(found) and primitive in str(found)


def test_the_expression_is_cut_out_of_its_line():
    assert first_nonfinite(overflow, 1000.0).expression == "jnp.exp(x)"

    def several(x):
        return (x - 1) * (jnp.log(x - 3) + jnp.exp(x))

    found = first_nonfinite(several, 1.0)
    assert found is not None
    assert (found.expression, found.value) == ("jnp.log(x - 3)", "nan")
    np.testing.assert_array_equal(found.operands, [-2.0])


def test_numbers_of_the_operands_are_told():
    found = first_nonfinite(lambda a, b: a / (b - 2), jnp.array([3.0, 4.0]), 2.0)
    assert found is not None
    np.testing.assert_array_equal(found.operands[0], [3.0, 4.0])
    np.testing.assert_array_equal(found.operands[1], 0.0)
    np.testing.assert_array_equal(found.output, [np.inf, np.inf])
    assert str(found).startswith("div of [3, 4], 0 gave [inf, inf]\n")


def test_iterations_and_branches_are_named():
    # x, x e^x and so on from 1: 1, 2.7, 41, 2e19; the exponential of the last one overflows.
    found = first_nonfinite(in_scan, 1000.0)
    assert found is not None and found.inside == ("iteration 4 of scan",)
    carry = 1.0
    for _ in range(3):
        carry *= np.exp(carry)
    np.testing.assert_allclose(found.operands[0], carry, rtol=1e-12)
    # From the back: 4, 3, and then log(2 - 2.5).
    found = first_nonfinite(in_reversed_scan, 1000.0)
    assert found is not None and found.inside == ("iteration 3 of scan",)
    np.testing.assert_array_equal(found.operands, [-0.5])
    found = first_nonfinite(in_branch, 1000.0)
    assert found is not None and found.inside == ("branch 1 of cond",)
    # 1e3, 1e6, ..., 1e192, 1e384.
    found = first_nonfinite(in_while, 1000.0)
    assert found is not None and found.inside == ("iteration 7 of while_loop",)


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda x: jnp.where(x > 0, jnp.log(x), 0.0), -1.0),
        (lambda x: 1 / (1 + jnp.exp(x)), 1000.0),
        (lambda x: jnp.minimum(jnp.inf, x), 1.0),
        (lambda x: jnp.max(jnp.stack([x, 2 * x]), initial=-jnp.inf), 1.0),
        (jax.nn.softplus, -1000.0),
        (jax.nn.sigmoid, -1000.0),
        (lambda x: jax.nn.logsumexp(jnp.stack([x, -x])), 1000.0),
        (lambda x: jnp.clip(jnp.exp(x), 0.0, 7.0), 1000.0),
        (in_condition, 5.0),
        (lambda x: jax.lax.cond(x > 0, jnp.sin, jnp.log, x), 1.0),
        (lambda x: jax.lax.scan(lambda c, v: (c + v, c), x, jnp.zeros(0))[0], 1.0),
        (lambda x: jnp.asarray(x, int) + jnp.arange(3), 2.0),
    ],
)
def test_what_does_not_reach_the_result_is_not_blamed(function, x):
    assert np.all(np.isfinite(function(x)))
    assert first_nonfinite(function, x) is None


def test_a_selection_passes_on_the_blame_of_what_it_took():
    def field(x):
        left = jnp.log(x[0])
        right = jnp.exp(x[1])  # here
        return jnp.where(x[0] > 0, left, right)

    # Both sides are not finite; the right one is taken.
    found = first_nonfinite(field, jnp.array([-1.0, 1000.0]))
    assert found is not None
    assert (found.primitive, found.line) == ("exp", marked(field))


def test_the_first_of_several_counts():
    def field(x):
        first = jnp.log(x - 2)  # here
        second = jnp.exp(x * 1000)
        return jnp.stack([second, first])

    found = first_nonfinite(field, 1.0)
    assert found is not None
    assert (found.primitive, found.line) == ("log", marked(field))


def test_a_constant_that_was_meant_is_told_as_such_and_only_where_nothing_else_failed():
    def guarded(x):
        return jnp.where(x > 0, jnp.nan, x)  # here

    found = first_nonfinite(guarded, 1.0)
    assert found is not None
    assert (found.kind, found.value, found.line) == ("constant", "nan", marked(guarded))
    assert first_nonfinite(guarded, -1.0) is None
    both = first_nonfinite(lambda x: jnp.stack([jnp.where(x > 0, jnp.nan, x), jnp.log(-x)]), 1.0)
    assert both is not None and (both.kind, both.primitive) == ("equation", "log")


def exponential(x):
    return jnp.exp(x * 2)  # here


helper = jax.jit(exponential)


def calls_helper_twice(x):
    return helper(x - x) + helper(x)


def calls_library_twice(x):
    first = jnp.linalg.norm(x)
    return first + jnp.linalg.norm(x * 1e300)  # here


def test_a_function_traced_before_from_another_line_names_the_right_one():
    """JAX keeps the jaxpr of a function, and with it the stack of whoever called it first."""
    calls_helper_twice(1.0)
    found = first_nonfinite(calls_helper_twice, 1000.0)
    assert found is not None and found.line == marked(exponential)
    calls_library_twice(jnp.ones(2))
    found = first_nonfinite(calls_library_twice, jnp.ones(2))
    assert found is not None and found.line == marked(calls_library_twice)


def test_an_argument_is_named_with_the_path_to_its_leaf():
    network = eqx.nn.MLP(2, 1, 8, 2, key=jax.random.key(0))
    broken = eqx.tree_at(lambda m: m.layers[1].bias, network, jnp.full(8, jnp.nan))
    found = first_nonfinite(lambda model, x: model(x), broken, jnp.ones(2))
    assert found == NonFinite("argument", "nan", "model.layers[1].bias", output=found.output if found else np.zeros(0))
    found = first_nonfinite(lambda t, x: t * x, 1.0, -jnp.inf)
    assert found is not None and (found.kind, found.argument, found.value) == ("argument", "x", "-inf")
    # It is not blamed where it does no harm.
    assert first_nonfinite(lambda t, x: jnp.where(t > 0, t, x), 1.0, jnp.inf) is None


def test_layers_of_a_network_are_told_by_the_line_that_calls_it():
    network = eqx.nn.MLP(2, 1, 8, 2, jnp.exp, key=jax.random.key(0))

    def field(model, x):
        scaled = 1e6 * x
        return model(scaled)  # here

    found = first_nonfinite(field, network, jnp.ones(2))
    assert found is not None
    assert (found.primitive, found.file, found.line) == ("exp", __file__, marked(field))
    hidden = network.layers[0](1e6 * jnp.ones(2))
    np.testing.assert_allclose(found.operands[0], hidden)


def test_the_derivative_of_a_finite_function():
    def root(x):
        return jnp.sqrt(x * x)  # here

    assert first_nonfinite(root, 0.0) is None
    # 0/0 in the derivative of the root: an infinity of the root's, times the zero of the square's.
    found = first_nonfinite(jax.grad(root), 0.0)
    assert found is not None and (found.value, found.line) == ("inf", marked(root))
    found = first_nonfinite(jax.jacfwd(root), 0.0)
    assert found is not None and found.line == marked(root)


def test_a_plugin_is_named_by_its_own_line(tmp_path):
    from retrograd.plugins import load_class

    (tmp_path / "plugin.py").write_text(
        "import jax.numpy as jnp\n"
        "from retrograd.api import Model\n"
        "class Fast(Model):\n"
        "    states = {'a': '1', 'b': '1'}\n"
        "    parameters = {'k': '1'}\n"
        "    def vector_field(self, t, x, k):\n"
        "        slow = -x[1]\n"
        "        return jnp.stack([slow, jnp.exp(k['k'] - x[0])])\n"
    )
    cls = load_class(str(tmp_path / "plugin.py"), "Fast")
    at = (cls(), jnp.array(0.0), jnp.array([-800.0, 1.0]), jnp.array([1.0]))
    found = first_nonfinite(vector_field(cls, "stable", None), *at)
    assert found is not None
    assert (found.file, found.line, found.function) == (str(tmp_path / "plugin.py"), 8, "Fast.vector_field")
    assert found.expression == "jnp.exp(k['k'] - x[0])"
    np.testing.assert_array_equal(found.operands, [801.0])
    # With a guard the field sees another x, and fills what is left.
    assert first_nonfinite(vector_field(cls, "stable", {"x_max": 1000.0, "dx_fill": 1e30}), *at) is None


def test_float32_overflows_where_float32_does():
    single = jnp.float32(100.0)
    found = first_nonfinite(jnp.exp, single)
    assert found is not None and found.output.dtype == np.float32
    assert first_nonfinite(jnp.exp, 100.0) is None
