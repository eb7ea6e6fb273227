"""Plug-ins: loaded by path and content, refused with what is wrong, and what variants make of their vector field."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from retrograd.api import Model
from retrograd.errors import RetrogradError
from retrograd.plugins import build_structure, load_class, member, parameter_dict, vector_field

ROOT = Path(__file__).parents[2]
FREE = """
from retrograd.api import Model


class Free(Model):
    states = {"a": "1", "b": "kg"}
    parameters = {"k1": "s-1", "k2": "1"}

    def vector_field(self, t, x, k):
        return -k["k1"] * x + k["k2"] * t
"""


def written(text: str, tmp_path: Path, name: str = "plugin.py") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def load(text: str, tmp_path: Path, class_name: str = "Free") -> type[Model]:
    return load_class(written(text, tmp_path), class_name)


def refusal(text: str, tmp_path: Path, class_name: str = "Free") -> str:
    path = written(text, tmp_path)
    with pytest.raises(RetrogradError) as caught:
        load_class(path, class_name)
    assert path in str(caught.value)
    return str(caught.value)


# -- loading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "models").glob("*.py")), ids=lambda p: p.stem)
def test_plugins_in_the_repository(path: Path):
    cls = load_class(str(path), path.stem.title().replace("_", ""))
    model = build_structure(cls)
    rate = model.vector_field(jnp.zeros(()), jnp.zeros(len(cls.states)), dict.fromkeys(cls.parameters, jnp.ones(())))
    assert rate.shape == (len(cls.states),)


def test_the_same_file_gives_the_same_class(tmp_path: Path):
    path = written(FREE, tmp_path)
    cls = load_class(path, "Free")
    assert load_class(path, "Free") is cls
    os.utime(path, (1, 1))
    assert load_class(path, "Free") is cls


def test_a_copy_gives_the_same_class(tmp_path: Path):
    """By content: a study unpacked elsewhere is the same study."""
    assert load_class(written(FREE, tmp_path, "a.py"), "Free") is load_class(written(FREE, tmp_path, "b.py"), "Free")


def test_an_edited_file_gives_another_class(tmp_path: Path):
    first = load(FREE, tmp_path)
    second = load(FREE.replace('"kg"', '"mol"'), tmp_path)
    assert second is not first
    assert (first.states["b"], second.states["b"]) == ("kg", "mol")
    assert load(FREE, tmp_path) is first


def test_stale_bytecode_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Python tells bytecode apart by size and seconds: an edit of one digit, or files unpacked with one fixed time."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    found = []
    for unit in ("m", "s"):
        path = written(FREE.replace('"kg"', f'"{unit}"'), tmp_path)
        os.utime(path, (10**9, 10**9))
        found.append(load_class(path, "Free").states["b"])
    assert found == ["m", "s"]
    assert [p.name for p in tmp_path.iterdir()] == ["plugin.py"]


def test_two_classes_of_one_file(tmp_path: Path):
    text = FREE + "\n\nclass Other(Free):\n    states = {'z': '1'}\n"
    path = written(text, tmp_path)
    free, other = load_class(path, "Free"), load_class(path, "Other")
    assert issubclass(other, free)
    assert list(other.states) == ["z"]


def test_the_path_of_imports_stays(tmp_path: Path):
    before = list(sys.path)
    (tmp_path / "helper_beside_the_plugin.py").write_text("x = 1\n")
    load(FREE, tmp_path)
    text = refusal("import helper_beside_the_plugin\n" + FREE, tmp_path)
    assert "ModuleNotFoundError: No module named 'helper_beside_the_plugin'" in text
    assert sys.path == before
    assert "helper_beside_the_plugin" not in sys.modules


def test_postponed_annotations(tmp_path: Path):
    """Dataclasses look their module up by name: it must be known while the class is made."""
    text = "from __future__ import annotations\nfrom typing import ClassVar\nimport equinox as eqx\nimport jax\n" + FREE
    text = text.replace("states =", "states: ClassVar[dict[str, str]] =")
    text += "\n    network: eqx.nn.Linear\n    later: Later\n"
    text += "\n    @classmethod\n    def build(cls, key: jax.Array) -> Free:\n"
    text += "        return cls(eqx.nn.Linear(1, 1, key=key), Later())\n\n\nclass Later(eqx.Module):\n    pass\n"
    cls = load(text, tmp_path)
    assert [f.name for f in dataclasses.fields(cls)] == ["network", "later"]
    assert cls.__annotations__["later"] == "Later"
    assert isinstance(build_structure(cls), cls)


def test_annotations_are_not_postponed_for_others(tmp_path: Path):
    cls = load(FREE + "\n    x: int = len('abc')\n", tmp_path)
    assert cls.__annotations__ == {"x": int}


def test_a_traceback_shows_the_plugins_lines(tmp_path: Path):
    cls = load(FREE.replace("return", "raise ArithmeticError  # here\n        return"), tmp_path)
    with pytest.raises(ArithmeticError) as caught:
        cls().vector_field(0, 0, {})
    assert str(caught.traceback[-1].path) == str(tmp_path / "plugin.py")
    assert "# here" in str(caught.traceback[-1].statement)


def test_a_syntax_error(tmp_path: Path):
    text = refusal(FREE + "\ndef broken(:\n", tmp_path)
    assert "stopped while it was loaded: SyntaxError" in text
    assert "(plugin.py, line 12)" in text


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("open('/no/such/file')", "FileNotFoundError"),
        ("raise RuntimeError('odd')", "RuntimeError: odd"),
    ],
)
def test_an_error_while_it_is_loaded(line: str, wanted: str, tmp_path: Path):
    text = refusal(FREE + f"\n{line}\n", tmp_path)
    assert f"stopped while it was loaded: {wanted}" in text
    # It is not half there the next time.
    assert wanted in refusal(FREE + f"\n{line}\n", tmp_path)
    assert not [n for n, m in sys.modules.items() if getattr(m, "__file__", None) == str(tmp_path / "plugin.py")]


def test_a_missing_class(tmp_path: Path):
    text = refusal(FREE, tmp_path, "Fre")
    assert "has no model class 'Fre' (a subclass of retrograd.api.Model); it defines: Free." in text
    assert "it defines: none." in refusal("x = 1\n", tmp_path)


@pytest.mark.parametrize(
    "line", ["class Free: pass", "Free = 3", "def Free(): pass", "from pathlib import Path as Free"]
)
def test_a_class_that_is_no_model(line: str, tmp_path: Path):
    assert "has no model class 'Free'" in refusal(line + "\n", tmp_path)


def test_a_file_that_is_no_python(tmp_path: Path):
    with pytest.raises(RetrogradError, match=r"model\.txt is no Python file: a plug-in's name ends in \.py"):
        load_class(written(FREE + "# as text\n", tmp_path, "model.txt"), "Free")
    assert "stopped while it was loaded: " in refusal("\0", tmp_path)
    path = tmp_path / "latin.py"
    path.write_bytes(FREE.encode() + "name = 'é'\n".encode("latin-1"))
    with pytest.raises(RetrogradError, match=r"latin\.py stopped while it was loaded: SyntaxError"):
        load_class(str(path), "Free")


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ('{"a": "1", "b": "kg"}', '["a", "b"]', "states is ['a', 'b'], wanted a dict of text to text"),
        ('{"a": "1", "b": "kg"}', '{"a", "b"}', "wanted a dict of text to text"),
        ('{"a": "1", "b": "kg"}', '{"a": 1}', "states is {'a': 1}, wanted a dict of text to text"),
        ('{"a": "1", "b": "kg"}', '{1: "a"}', "states is {1: 'a'}, wanted a dict of text to text"),
        ('{"a": "1", "b": "kg"}', "None", "states is None, wanted a dict of text to text"),
        ('{"a": "1", "b": "kg"}', "{}", "states is empty, wanted at least one state"),
        ('{"k1": "s-1", "k2": "1"}', '("k1", "k2")', "parameters is ('k1', 'k2'), wanted a dict of text to text"),
        ('"k2": "1"}', '"k2": "1"}\n    time_unit = 60', "time_unit is 60, wanted text such as 's'"),
        ('"k2": "1"}', '"k2": "1"}\n    formulations = "stable"', "formulations is 'stable', wanted a dict"),
        (
            '"k2": "1"}',
            '"k2": "1"}\n    formulations = {"stable": "vector_field", "naive": "plain"}',
            "formulations names the method 'plain', which the class does not have",
        ),
        (
            '"k2": "1"}',
            '"k2": "1"}\n    formulations = {"stable": "parameters"}',
            "formulations names the method 'parameters', which the class does not have",
        ),
    ],
)
def test_declarations(old: str, new: str, wanted: str, tmp_path: Path):
    text = FREE.replace(old, new)
    assert text != FREE
    found = refusal(text, tmp_path)
    assert "plugin.py, class Free: " in found
    assert wanted in found


def test_every_problem_is_told_at_once(tmp_path: Path):
    text = FREE.replace('{"a": "1", "b": "kg"}', "3").replace('"k2": "1"}', '"k2": 1}\n    time_unit = None')
    found = refusal(text, tmp_path)
    assert "states is 3" in found and "parameters is" in found and "time_unit is None" in found


def test_states_left_out(tmp_path: Path):
    assert "states is empty" in refusal("from retrograd.api import Model\nclass Free(Model): pass\n", tmp_path)


def test_errors_of_build(tmp_path: Path):
    build = "\n    @classmethod\n    def build(cls, key):\n        "
    cls = load(FREE + build + "return [][1]\n", tmp_path)
    with pytest.raises(RetrogradError, match=r"Free\.build\(key\) stopped: IndexError: list index out of range"):
        build_structure(cls)
    cls = load(FREE + build + "return 3\n", tmp_path)
    with pytest.raises(RetrogradError, match=r"Free\.build\(key\) returned int, wanted Free"):
        build_structure(cls)
    cls = load(FREE + build + "pass\n", tmp_path)
    with pytest.raises(RetrogradError, match=r"Free\.build\(key\) returned NoneType, wanted Free"):
        build_structure(cls)


# -- the vector field of a variant --------------------------------------------------------------------

T = jnp.zeros(())
K = jnp.array([2.0, 1.0])


def field(text: str, tmp_path: Path, guard: dict[str, float] | None = None, formulation: str = "stable"):
    cls = load(text, tmp_path)
    f, model = vector_field(cls, formulation, guard), cls()
    return lambda x, t=0.0: f(model, jnp.asarray(t), jnp.asarray(x), K)


def test_without_a_guard(tmp_path: Path):
    assert field(FREE, tmp_path)([1.0, -3.0], 5.0).tolist() == [3.0, 11.0]
    assert field(FREE, tmp_path)([1e300, -np.inf]).tolist() == [-2e300, np.inf]


def test_formulations(tmp_path: Path):
    text = FREE + "\n    def plain(self, t, x, k):\n        return x * 10\n"
    text = text.replace('"k2": "1"}', '"k2": "1"}\n    formulations = {"stable": "vector_field", "naive": "plain"}')
    assert field(text, tmp_path, formulation="naive")([1.0, 2.0]).tolist() == [10.0, 20.0]
    assert field(text, tmp_path)([1.0, 2.0]).tolist() == [-2.0, -4.0]
    with pytest.raises(RetrogradError, match=r"Free has no formulation 'best'; it has: stable, naive\."):
        field(text, tmp_path, formulation="best")


def test_the_guard_bounds_what_the_field_sees(tmp_path: Path):
    f = field(FREE, tmp_path, {"x_max": 100.0, "dx_fill": 1e30})
    assert f([1e6, -1e6]).tolist() == [-200.0, 200.0]
    assert f([100.0, -99.0]).tolist() == [-200.0, 198.0]
    assert f([np.inf, -np.inf]).tolist() == [-200.0, 200.0]


LOG = FREE.replace('-k["k1"] * x + k["k2"] * t', "jnp.log(x)").replace(
    "from retro", "import jax.numpy as jnp\nfrom retro"
)


def test_the_guard_replaces_rates_that_are_not_finite(tmp_path: Path):
    f = field(LOG, tmp_path, {"x_max": 100.0, "dx_fill": 1e30})
    assert f([-1.0, 1.0]).tolist() == [1e30, 0.0]  # NaN
    assert f([0.0, 100.0]).tolist() == [1e30, float(jnp.log(100.0))]  # -inf
    assert f([np.nan, 1.0]).tolist() == [1e30, 0.0]
    inverse = field(LOG.replace("jnp.log(x)", "1 / x"), tmp_path, {"x_max": 100.0, "dx_fill": -7.0})
    assert inverse([0.0, 2.0]).tolist() == [-7.0, 0.5]  # +inf
    bare = field(LOG, tmp_path)
    assert np.isnan(bare([-1.0, 1.0])[0]) and bare([0.0, 1.0])[0] == -np.inf


def test_the_guard_in_float32(tmp_path: Path):
    cls = load(LOG, tmp_path)
    f = vector_field(cls, "stable", {"x_max": 100.0, "dx_fill": 1e30})
    x = jnp.array([-1.0, 1e6], jnp.float32)
    rate = f(cls(), jnp.zeros((), jnp.float32), x, K.astype(jnp.float32))
    assert rate.dtype == jnp.float32
    assert np.allclose(rate, [1e30, np.log(100.0)], rtol=1e-6)


def test_the_rate_has_the_states_type(tmp_path: Path):
    f = field(FREE.replace('-k["k1"] * x + k["k2"] * t', "[1, 2]"), tmp_path)
    assert f(jnp.zeros(2)).dtype == jnp.float64
    assert f(jnp.zeros(2, jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("guard", [None, {"x_max": 100.0, "dx_fill": 1e30}], ids=["bare", "guarded"])
@pytest.mark.parametrize(
    ("rate", "shape"), [("x[0]", "()"), ("x[:1]", "(1,)"), ("x[:, None]", "(2, 1)"), ("(1.0, 2.0, 3.0)", "(3,)")]
)
def test_a_rate_of_another_shape(rate: str, shape: str, guard: dict[str, float] | None, tmp_path: Path):
    f = field(FREE.replace('-k["k1"] * x + k["k2"] * t', rate), tmp_path, guard)
    with pytest.raises(RetrogradError) as caught:
        f([1.0, 2.0])
    assert str(caught.value) == f"Free.vector_field returned shape {shape}, wanted (2,), one rate a state."


def test_a_shape_is_checked_under_transformations(tmp_path: Path):
    cls = load(FREE.replace('-k["k1"] * x + k["k2"] * t', "x[:1]"), tmp_path)
    f = vector_field(cls, "stable", None)
    with pytest.raises(RetrogradError, match=r"returned shape \(1,\), wanted \(2,\)"):
        jax.jit(jax.vmap(lambda x: f(cls(), T, x, K)))(jnp.zeros((4, 2)))


def test_estimated_parameters(tmp_path: Path):
    declared = lambda value: FREE.replace("    states", f"    estimated = {value}\n    states")
    assert load(FREE, tmp_path).estimated is None
    assert load(declared('("k2",)'), tmp_path).estimated == ("k2",)
    assert "estimated names 'k_1', wanted a parameter: one of k1, k2; did you mean 'k1'?" in refusal(
        declared('("k2", "k_1")'), tmp_path
    )
    # A lone text would be a list of letters.
    for value in ('"k1"', '["k1"]', "(1,)"):
        assert "wanted None or a tuple of parameters such as ('k1',)" in refusal(declared(value), tmp_path)


def test_the_order_of_parameters(tmp_path: Path):
    cls = load(FREE, tmp_path)
    assert {name: float(v) for name, v in parameter_dict(cls, K).items()} == {"k1": 2.0, "k2": 1.0}


def test_members(tmp_path: Path):
    text = FREE + "\n    def initial_state(self, k):\n        return [k['k1'], 3]\n"
    text += "\n    def loss(self, times, x, k):\n        return x[0] + times[-1]\n"
    cls = load(text, tmp_path)
    found = member(cls, "initial_state", (2,))(cls(), K)
    assert found.tolist() == [2.0, 3.0] and found.dtype == jnp.float64
    with pytest.raises(RetrogradError, match=r"Free\.initial_state returned shape \(2,\), wanted \(3,\)"):
        member(cls, "initial_state", (3,))(cls(), K)
    with pytest.raises(RetrogradError, match=r"Free\.loss returned shape \(2,\), wanted \(\)"):
        member(cls, "loss", ())(cls(), jnp.zeros(3), jnp.zeros((3, 2)), K)


@pytest.mark.parametrize(("kept", "count"), [("x[0] + x[1]", 1), ("x[:0]", 0), ("x", 2), ("[x[0], x[1]]", 2)])
def test_a_vector_of_any_length(kept: str, count: int, tmp_path: Path):
    cls = load(FREE + f"\n    def invariants(self, x, k):\n        return {kept}\n", tmp_path)
    assert member(cls, "invariants", None)(cls(), jnp.zeros(2), K).shape == (count,)


def test_invariants_of_another_shape(tmp_path: Path):
    cls = load(FREE + "\n    def invariants(self, x, k):\n        return [x, x]\n", tmp_path)
    with pytest.raises(
        RetrogradError, match=r"Free\.invariants returned shape \(2, 2\), wanted a vector, of any length"
    ):
        member(cls, "invariants", None)(cls(), jnp.zeros(2), K)


def test_defaults_of_the_contract(tmp_path: Path):
    cls = load(FREE, tmp_path)
    model, k = cls(), parameter_dict(cls, K)
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    assert cls.formulations == {"stable": "vector_field"}
    assert cls.time_unit == "s"
    assert model.initial_guess(k).tolist() == [0.0, 0.0]
    assert model.residual_scale(k).tolist() == [1.0, 1.0]
    assert model.invariants(x[0], k).shape == (0,)
    assert model.loss(jnp.arange(2.0), x, k) == 30.0
    assert model.exact(T, x[0], k) is None
    assert model.start_of_dynamics(x, k) is x
    with pytest.raises(NotImplementedError, match=r"Free has no initial_state\(self, k\)"):
        model.initial_state(k)
