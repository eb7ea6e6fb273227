"""Problems with networks against SciPy: in the right-hand side, before the simulation, in observables, and stiff.

The reference solves the same equations, written down anew with numpy, by Radau at a relative tolerance of 1e-12, and
takes its derivatives by central differences of fourth order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.integrate import solve_ivp
from scipy.optimize import root

pytest.importorskip("petab", reason="the extra petab is not installed: it needs Python 3.12")

import h5py
from petab_problems import (
    CONVERSION,
    Evaluated,
    condition,
    evaluate,
    experiment,
    measurement,
    observable,
    parameters,
    write_problem,
)

from retrograd.errors import RetrogradError
from retrograd.imported import import_model


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def network(inputs: int, outputs: int, width: int = 4, arguments: int = 1) -> dict[str, Any]:
    """Returns a network of one hidden layer with tanh; its arguments are put together."""
    node = lambda name, op, target, *args: {"name": name, "op": op, "target": target, "args": list(args), "kwargs": {}}
    names = [f"in{i}" for i in range(arguments)]
    forward = [node(n, "placeholder", n) for n in names]
    first = names[0]
    if arguments > 1:
        forward.append({**node("cat", "call_function", "cat", names), "kwargs": {"dim": 0}})
        first = "cat"
    forward += [
        node("layer1", "call_module", "layer1", first),
        node("tanh", "call_method", "tanh", "layer1"),
        node("layer2", "call_module", "layer2", "tanh"),
        node("output", "output", "output", "layer2"),
    ]
    linear = lambda a, b: {"in_features": a, "out_features": b, "bias": True}
    return {
        "nn_model_id": "net",
        "inputs": [{"input_id": n} for n in names],
        "layers": [
            {"layer_id": "layer1", "layer_type": "Linear", "args": linear(inputs, width)},
            {"layer_id": "layer2", "layer_type": "Linear", "args": linear(width, outputs)},
        ],
        "forward": forward,
    }


def arrays(inputs: int, outputs: int, width: int = 4, seed: int = 0, size: float = 0.3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"layer1/weight": (width, inputs), "layer1/bias": (width,), "layer2/weight": (outputs, width)}
    shapes["layer2/bias"] = (outputs,)
    return {name: size * rng.standard_normal(shape) for name, shape in shapes.items()}


def applied(w: Mapping[str, np.ndarray], x: Any) -> np.ndarray:
    return w["layer2/weight"] @ np.tanh(w["layer1/weight"] @ np.asarray(x) + w["layer1/bias"]) + w["layer2/bias"]


def write(
    folder: Path,
    model: str,
    tables: dict[str, Any],
    net: dict[str, Any],
    w: Mapping[str, np.ndarray],
    mapping: Mapping[str, str],
    hybridization: Mapping[str, Any],
    *,
    static: bool = False,
    inputs: Mapping[str, np.ndarray] | None = None,
    frozen: Mapping[str, bool] | None = None,
) -> Path:
    folder.mkdir(parents=True)
    (folder / "net.yaml").write_text(yaml.safe_dump(net))
    with h5py.File(folder / "arrays.hdf5", "w") as file:
        file["metadata/perm"] = "row"
        for name, array in w.items():
            file[f"parameters/net/{name}"] = array
        for name, array in (inputs or {}).items():
            file[f"inputs/{name}"] = array
    ids = {"net_ps": "net.parameters", **mapping}
    tables["mapping"] = [{"petabEntityId": a, "modelEntityId": b} for a, b in ids.items()]
    told = {"net_ps": True, **(frozen or {})}
    tables["parameter"] += [
        {"parameterId": name, "nominalValue": "array", "estimate": str(estimated).lower()}
        for name, estimated in told.items()
    ]
    rows = "".join(f"{target}\t{value}\n" for target, value in hybridization.items())
    (folder / "hybridization.tsv").write_text(f"targetId\ttargetValue\n{rows}")
    extension = {
        "array_files": ["arrays.hdf5"],
        "hybridization_files": ["hybridization.tsv"],
        "neural_networks": {"net": {"location": "net.yaml", "format": "YAML", "pre_initialization": static}},
    }
    return write_problem(folder, model, tables, extension)


def normal(m: float, y: float, s: float) -> float:
    return -0.5 * np.log(2 * np.pi * s**2) - 0.5 * ((m - y) / s) ** 2


def solved(rhs: Callable[..., Any], x: Any, times: Any) -> np.ndarray:
    found = solve_ivp(rhs, (0, max(times)), x, "Radau", t_eval=times, rtol=1e-12, atol=1e-14)
    return found.y.T


def differentiated(f: Callable[[float], float], at: float, h: float) -> float:
    return (8 * (f(at + h) - f(at - h)) - (f(at + 2 * h) - f(at - 2 * h))) / (12 * h)


def agrees(
    found: Evaluated,
    llh: Callable[[dict[str, float], dict[str, np.ndarray]], float],
    nominal: dict[str, float],
    w: dict[str, np.ndarray],
    rtol: float = 1e-6,
    frozen: tuple[str, ...] = (),
) -> None:
    assert found.llh == pytest.approx(llh(nominal, w), rel=1e-8)
    assert sorted(found.gradient) == sorted(nominal)
    for name, value in nominal.items():
        slope = differentiated(lambda v, name=name: llh({**nominal, name: v}, w), value, 2e-3 * value)
        assert found.gradient[name] == pytest.approx(slope, rel=rtol)
    # In the order of the model's fields: layer by layer, weight before bias. A few of each array.
    start = 0
    for layer in ("layer1", "layer2"):
        for own in ("weight", "bias"):
            key = f"{layer}/{own}"
            if key in frozen:
                continue
            for i in {0, w[key].size - 1}:

                def moved(v: float, key: str = key, i: int = i) -> float:
                    changed = w[key].copy()
                    changed.flat[i] = v
                    return llh(nominal, {**w, key: changed})

                slope = differentiated(moved, w[key].flat[i], 2e-3)
                assert found.network[start + i] == pytest.approx(
                    slope, rel=rtol, abs=1e-7 * np.abs(found.network).max()
                )
            start += w[key].size
    assert start == len(found.network)
    assert np.all(found.status == 0)


# Robertson's reactions in a vessel with inflow and outflow, and a catalyst that is held in two forms: a total.
CHEMOSTAT = """model chemostat
  compartment v = 1
  species A in v, B in v, C in v, E in v, F in v
  R1: A -> B; v*k1*A
  R2: B + B -> C + B; v*k2*B*B
  R3: B + C -> A + C; v*k3*B*C
  bind: E -> F; v*(kon + push)*E*A
  free: F -> E; v*koff*F
  inA: -> A; v*d*feed
  outA: A -> ; v*d*A
  outB: B -> ; v*d*B
  outC: C -> ; v*d*C
  A = 1; B = 0; C = 0; E = 0.7; F = 0.1
  k1 = 0.04; k2 = 3e4; k3 = 1e4; d = 0.5; feed = 1; kon = 2; koff = 1; push = 0
end
"""


def chemostat(p: Mapping[str, float], feed: float, w: Mapping[str, np.ndarray]) -> Callable[..., Any]:
    def rhs(t: float, x: Any) -> np.ndarray:
        a, b, c, e, f = x
        r1, r2, r3 = p["k1"] * a, 3e4 * b * b, 1e4 * b * c
        bound = (p["kon"] + applied(w, [a, f])[0]) * e * a - f
        d = 0.5
        return np.array(
            [-r1 + r3 + d * (feed - a), r1 - r2 - r3 - d * b, r2 - d * c, -bound, bound],
        )

    return rhs


@pytest.mark.slow
def test_a_stiff_vessel_with_a_network_a_total_and_a_steady_state(tmp_path: Path):
    nominal, w = {"k1": 0.04, "kon": 2.0}, arrays(2, 1)
    tables = {
        "parameter": parameters(**nominal),
        "condition": [*condition("before", feed=1.0, E=0.9), *condition("after", feed=3.0, C="C + 0.1 * kon")],
        "experiment": experiment("e0", ("-inf", "before"), (0, "after")),
        "observable": [
            observable("obs_f", "F", 0.05),
            observable("obs_c", "C", 0.01),
            observable("obs_b", "1e5*B", 0.2),
        ],
        "measurement": [
            *(measurement("obs_f", "e0", t, 0.6) for t in (0, 0.5, 2)),
            *(measurement("obs_c", "e0", t, 0.2) for t in (0.5, 4)),
            *(measurement("obs_b", "e0", t, 2.1) for t in (0.001, 4)),
        ],
    }
    ids = {"in1": "net.inputs[0][0]", "in2": "net.inputs[0][1]", "out1": "net.outputs[0][0]"}
    path = write(tmp_path / "p", CHEMOSTAT, tables, network(2, 1), w, ids, {"in1": "A", "in2": "F", "push": "out1"})
    found = evaluate(path)

    def llh(p: dict[str, float], w: dict[str, np.ndarray]) -> float:
        rhs = chemostat(p, 1.0, w)
        # The catalyst's total in the place of one of its rates.
        at_rest = lambda x: np.array([*rhs(0, x)[:4], x[3] + x[4] - 1.0])
        guess = solve_ivp(rhs, (0, 200), [1, 0, 0, 0.9, 0.1], "Radau", rtol=1e-10, atol=1e-12).y[:, -1]
        x = root(at_rest, guess, tol=1e-15).x
        x = x - np.linalg.solve(_slope(at_rest, x), at_rest(x))
        x[2] += 0.1 * p["kon"]
        times = np.array([0, 0.001, 0.5, 2, 4])
        y = solved(chemostat(p, 3.0, w), x, times)
        out = sum(normal(0.6, y[i, 4], 0.05) for i in (0, 2, 3)) + sum(normal(0.2, y[i, 2], 0.01) for i in (2, 4))
        return out + sum(normal(2.1, 1e5 * y[i, 1], 0.2) for i in (1, 4))

    agrees(found, llh, nominal, w, rtol=1e-5)


def _slope(f: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    h = 1e-7
    return np.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))], axis=1)


def conversion(k1: float, k2: float) -> Callable[..., Any]:
    return lambda t, x: np.array([k2 * x[1] - k1 * x[0], k1 * x[0] - k2 * x[1]])


@pytest.mark.slow
def test_before_the_simulation_with_inputs_by_condition_and_by_array(tmp_path: Path):
    # The network sets a rate and a start; one input is a number of the conditions, three are an array for each.
    nominal, w = {"k2": 0.6, "p": 0.3}, arrays(4, 2, seed=1)
    given = {"array/c0": np.array([0.1, -0.2, 0.3]), "array/c1;c2": np.array([1.0, 0.5, -0.5])}
    tables = {
        "parameter": parameters(**nominal),
        "condition": [*condition("c0", in1=0.5), *condition("c1", in1="p"), *condition("c2", in1=-0.4, b0=0.5)],
        "experiment": [*(experiment(f"e{i}", (0, f"c{i}")) for i in range(3))],
        "observable": [observable("obs_a", "A + 0.1 * out2")],
        "measurement": [measurement("obs_a", f"e{i}", t, 0.5) for i in range(3) for t in (0, 1.5)],
    }
    tables["experiment"] = [row for rows in tables["experiment"] for row in rows]
    ids = {"in1": "net.inputs[0][0]", "array": "net.inputs[1]"}
    ids |= {"out1": "net.outputs[0][0]", "out2": "net.outputs[0][1]"}
    ids["l1"] = "net.parameters[layer1]"
    path = write(
        tmp_path / "q",
        CONVERSION,
        tables,
        network(4, 2, arguments=2),
        w,
        ids,
        {"array": "array", "k1": "out1", "A": "out2"},
        static=True,
        inputs=given,
        frozen={"l1": False},
    )
    found = evaluate(path)

    def llh(p: dict[str, float], w: dict[str, np.ndarray]) -> float:
        out = 0.0
        for first, rest in ((0.5, given["array/c0"]), (p["p"], given["array/c1;c2"]), (-0.4, given["array/c1;c2"])):
            k1, a = applied(w, [first, *rest])
            y = solved(conversion(k1, p["k2"]), [a, 1.0], np.array([0, 1.5]))
            out += sum(normal(0.5, y[i, 0] + 0.1 * a, 0.5) for i in (0, 1))
        return out

    agrees(found, llh, nominal, w, frozen=("layer1/weight", "layer1/bias"))


@pytest.mark.slow
def test_in_an_observable_and_its_noise(tmp_path: Path):
    nominal, w = {"k1": 0.8, "k2": 0.6}, arrays(2, 2, seed=2)
    tables = {
        "parameter": parameters(**nominal),
        "observable": [observable("obs_a", "A + out1", "0.3 + out2 * out2")],
        "measurement": [measurement("obs_a", "", t, 0.5) for t in (0.5, 1.5)],
    }
    ids = {"in1": "net.inputs[0][0]", "in2": "net.inputs[0][1]"}
    ids |= {"out1": "net.outputs[0][0]", "out2": "net.outputs[0][1]"}
    path = write(tmp_path / "p", CONVERSION, tables, network(2, 2), w, ids, {"in1": "A", "in2": "time"})
    found = evaluate(path)

    def llh(p: dict[str, float], w: dict[str, np.ndarray]) -> float:
        times = np.array([0.5, 1.5])
        y = solved(conversion(p["k1"], p["k2"]), [1.0, 1.0], times)[:, 0]
        nets = [applied(w, [a, t]) for a, t in zip(y, times, strict=True)]
        return sum(normal(0.5, a + n[0], 0.3 + n[1] ** 2) for a, n in zip(y, nets, strict=True))

    agrees(found, llh, nominal, w)


def test_what_is_missing_of_a_network(tmp_path: Path):
    w = arrays(2, 1)
    tables = {
        "parameter": parameters(k1=0.8),
        "observable": [observable("obs_a", "A")],
        "measurement": [measurement("obs_a", "", 1, 0.5)],
    }
    net = network(2, 1)
    net["layers"][1]["layer_type"] = "Transformer"
    ids = {"in2": "net.inputs[0][1]", "out1": "net.outputs[0][0]", "odd": "net.weights"}
    path = write(tmp_path / "p", CONVERSION, tables, net, w, ids, {"in2": "A", "k2": "out1"})
    with pytest.raises(RetrogradError, match="network net: layer layer2: the type 'Transformer' is not supported"):
        import_model("petab", path, tmp_path / "out")
    path.parent.joinpath("net.yaml").write_text(yaml.safe_dump(network(2, 1)))
    with pytest.raises(RetrogradError) as caught:
        import_model("petab", path, tmp_path / "out")
    assert "not all of its input 0 is mapped" in str(caught.value)
    assert "mapping of odd: found 'net.weights'" in str(caught.value)


def test_what_does_not_fit_a_network_is_told(tmp_path: Path):
    w = arrays(3, 1)
    ids = {"in1": "net.inputs[0][0]", "array": "net.inputs[1]"}
    ids |= {"out1": "net.outputs[0][0]", "out2": "net.outputs[1][0]", "l9": "net.parameters[layer9]"}

    def told(static: bool, given: dict[str, np.ndarray], hybridization: dict[str, str], folder: str) -> str:
        tables = {
            "parameter": parameters(k1=0.8),
            "condition": [*condition("c0", a0=1.0), *condition("c1", a0=2.0)],
            "experiment": [*experiment("e0", (0, "c0")), *experiment("e1", (0, "c1"))],
            "observable": [observable("obs_a", "A")],
            "measurement": [measurement("obs_a", e, 1, 0.5) for e in ("e0", "e1")],
        }
        path = write(
            tmp_path / folder,
            CONVERSION,
            tables,
            network(3, 1, arguments=2),
            w,
            ids,
            hybridization,
            static=static,
            inputs=given,
            frozen={"l9": False},
        )
        with pytest.raises(RetrogradError) as caught:
            import_model("petab", path, tmp_path / "out")
        return str(caught.value)

    one = {"array/c0": np.zeros(2)}
    first = told(True, one, {"array": "array", "in1": "A", "k2": "out1"}, "a")
    assert "mapping of out2: found 'net.outputs[1][0]', more than the network has" in first
    assert "parameters of net: found no array of layer9" in first
    ids.pop("out2"), ids.pop("l9")
    w["layer9/weight"] = np.zeros(1)
    ids["l9"] = "net.parameters[layer9]"
    second = told(True, one, {"array": "array", "in1": "A", "k2": "out1", "k1": "out1"}, "b")
    assert "hybridization of in1: found A, which changes in time" in second
    assert "hybridization of k1: sets what the table of parameters estimates" in second
    assert "experiment e1: found no array array for its first condition" in second
    third = told(False, one | {"array/c1": np.zeros(4)}, {"array": "array", "in1": "A", "k2": "out1"}, "c")
    assert "array array: found the shapes (2,), (4,), wanted one for all conditions" in third


def test_names_of_a_class_of_models_are_taken():
    from retrograd.api import Model
    from retrograd.petab_source import MEMBERS

    assert set(MEMBERS) == {name for name in dir(Model) if not name.startswith("_")}
