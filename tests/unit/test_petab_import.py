"""Problems in PEtab against closed forms at 50 digits: conditions, steady states, observables and noise.

Numbers come from the pipeline's own stages, at the tolerances of the variant `precise`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import yaml

pytest.importorskip("petab", reason="the extra petab is not installed: it needs Python 3.12")

from petab_problems import (
    CONVERSION,
    Evaluated,
    condition,
    evaluate,
    experiment,
    measurement,
    observable,
    parameters,
    sbml,
    table,
    write_problem,
)

from retrograd.errors import RetrogradError
from retrograd.imported import import_model

mp.mp.dps = 50


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def exchange(t: Any, a: Any, b: Any, k1: Any, k2: Any) -> tuple[Any, Any]:
    """Returns A and B of A <=> B after a time, from A = a and B = b."""
    rest = (a + b) * k2 / (k1 + k2)
    at = rest + (a - rest) * mp.exp(-(k1 + k2) * t)
    return at, a + b - at


def normal(m: Any, y: Any, s: Any) -> Any:
    return -mp.log(2 * mp.pi * s**2) / 2 - ((m - y) / s) ** 2 / 2


def laplace(m: Any, y: Any, s: Any) -> Any:
    return -mp.log(2 * s) - abs(m - y) / s


def log_of(density: Callable[..., Any]) -> Callable[..., Any]:
    return lambda m, y, s: density(mp.log(m), mp.log(y), s) - mp.log(m)


def agrees(found: Evaluated, llh: Callable[..., Any], nominal: dict[str, float], rtol: float = 1e-8) -> None:
    """Checks llh and gradient against a function of the parameters, and that the gradient is verified."""
    names = list(nominal)
    at = [mp.mpf(v) for v in nominal.values()]
    assert found.llh == pytest.approx(float(llh(*at)), rel=1e-9)
    assert sorted(found.gradient) == sorted(names)
    size = max(abs(v) for v in found.gradient.values())
    for i, name in enumerate(names):
        order = tuple(int(j == i) for j in range(len(names)))
        assert found.gradient[name] == pytest.approx(
            float(mp.diff(llh, tuple(at), order)), rel=rtol, abs=1e-3 * rtol * size
        )
    assert np.all(found.status == 0)


def test_no_experiment_and_noise_by_an_observable(tmp_path: Path):
    nominal = {"a0": 1.0, "b0": 0.2, "k1": 0.8, "k2": 0.6, "s": 0.3}
    tables = {
        "parameter": parameters(**nominal),
        "observable": [observable("obs_a", "A", "s * obs_a + 0.1"), observable("both", "obs_a + 2 * B", 0.5)],
        "measurement": [
            measurement("obs_a", "", 0, 0.7),
            measurement("both", "", 10, 0.1),
            measurement("obs_a", "", 2.5, 0.1),
        ],
    }
    found = evaluate(write_problem(tmp_path / "p", CONVERSION, tables))

    def llh(a0, b0, k1, k2, s):
        a, b = exchange(10, a0, b0, k1, k2)
        early = exchange(2.5, a0, b0, k1, k2)[0]
        at = lambda y: s * y + mp.mpf("0.1")
        return normal(0.7, a0, at(a0)) + normal(0.1, a + 2 * b, 0.5) + normal(0.1, early, at(early))

    agrees(found, llh, nominal)
    a, b = exchange(10, 1, 0.2, 0.8, 0.6)
    assert np.allclose(found.simulation, [1.0, float(a + 2 * b), float(exchange(2.5, 1, 0.2, 0.8, 0.6)[0])], rtol=1e-9)
    assert found.scenarios == ["default"]


def test_conditions_in_the_course_of_the_dynamics(tmp_path: Path):
    nominal = {"k1": 0.8, "d": 5.0, "q": 0.3}
    model = CONVERSION.replace("k2 = 0\n", "k2 = 0.6\n")
    tables = {
        "parameter": parameters(**nominal),
        "condition": [
            *condition("add", A="A + d * B"),
            *condition("also", B="B + 3"),
            *condition("slow", k2=0.2),
            *condition("wide", c=2),
            *condition("wider", c=4, A="A + c"),
            *condition("rest", k2=0.5),
            *condition("dose", A="A + d"),
            *condition("fast", k2="2 * k2 + q"),
        ],
        "experiment": [
            *experiment("e0", (0, ""), (3, "add"), (3, "also"), (6, "slow"), (8, "dose")),
            *experiment("e1", (2, "wide"), (4, "wider")),
            *experiment("e2", ("-inf", "rest"), (0, "dose"), (1, "fast")),
        ],
        "observable": [observable("obs_a", "A"), observable("obs_b", "B * c"), observable("flux", "k2 * B")],
        "measurement": [
            measurement("obs_a", "e0", 3, 0.7),
            measurement("obs_b", "e0", 7, 0.9),
            measurement("flux", "e0", 8, 0.1),
            measurement("obs_a", "e1", 4, 0.1),
            measurement("obs_b", "e1", 4, 0.2),
            measurement("obs_b", "e1", 5, 0.4),
            measurement("flux", "e2", 1, 0.4),
            measurement("obs_a", "e2", 2, 0.4),
        ],
    }
    found = evaluate(write_problem(tmp_path / "p", model, tables))

    def simulated(k1, d, q):
        k2 = mp.mpf("0.6")
        a, b = exchange(3, 1, 1, k1, k2)
        a, b = a + d * b, b + 3
        first = a
        a, b = exchange(1, *exchange(3, a, b, k1, k2), k1, mp.mpf("0.2"))
        second = b
        a, b = exchange(1, a, b, k1, mp.mpf("0.2"))
        third = b * mp.mpf("0.2")
        a, b = exchange(2, 0.5, 0.5, k1, k2)
        a, b = a + 2, b * 2 / 4
        e1 = [a, 4 * b, 4 * exchange(1, a, b, k1, k2)[1]]
        k2 = mp.mpf("0.5")
        a, b = 2 * k2 / (k1 + k2), 2 * k1 / (k1 + k2)
        a, b = exchange(1, a + d, b, k1, k2)
        return [first, second, third, *e1, (2 * k2 + q) * b, exchange(1, a, b, k1, 2 * k2 + q)[0]]

    measured = [row["measurement"] for row in tables["measurement"]]
    llh = lambda *at: mp.fsum(normal(m, y, 0.5) for m, y in zip(measured, simulated(*at), strict=True))
    right = np.array(simulated(*map(mp.mpf, nominal.values())), float)
    np.testing.assert_allclose(found.simulation, right, rtol=1e-8)
    agrees(found, llh, nominal)


def test_formulas_in_conditions(tmp_path: Path):
    nominal = {"k1": 0.8, "k2": 0.6, "p": 0.5, "q": 9.0}
    tables = {
        "parameter": parameters(**nominal, r=(1.5,)),
        "condition": [*condition("c0", A="p + r", k2="k2_one"), *condition("c1", B="A + q / 3", k2=0.4)],
        "experiment": [*experiment("e0", (0, "c0")), *experiment("e1", (2.0, "c1"))],
        "observable": [observable("obs_a", "A")],
        "measurement": [
            measurement("obs_a", "e1", 3, 0.7),
            measurement("obs_a", "e0", 1, 0.1),
            measurement("obs_a", "e1", 2, 0.3),
        ],
    }
    del tables["parameter"][1]
    tables["parameter"] += parameters(k2_one=0.6)
    del nominal["k2"]
    nominal["k2_one"] = 0.6
    found = evaluate(write_problem(tmp_path / "p", CONVERSION, tables))

    def llh(k1, p, q, k2):
        first = exchange(1, p + mp.mpf(1.5), 1, k1, k2)[0]
        second = exchange(1, 1, 1 + q / 3, k1, mp.mpf("0.4"))[0]
        return normal(0.1, first, 0.5) + normal(0.7, second, 0.5) + normal(0.3, 1, 0.5)

    agrees(found, llh, nominal)
    # In the order in which they are measured.
    assert found.scenarios == ["e1", "e0"]


def test_a_start_does_not_follow_a_condition(tmp_path: Path):
    # PEtab 2.0: a condition changes what the model started with, and A started with a0 as the model has it.
    tables = {
        "parameter": parameters(k1=0.8, k2=0.6),
        "condition": condition("c0", a0=5.0),
        "experiment": experiment("e0", (0, "c0")),
        "observable": [observable("obs_a", "A + a0")],
        "measurement": [measurement("obs_a", "e0", 1, 0.1)],
    }
    found = evaluate(write_problem(tmp_path / "p", CONVERSION, tables))
    llh = lambda k1, k2: normal(0.1, exchange(1, 1, 1, k1, k2)[0] + 5, 0.5)
    agrees(found, llh, {"k1": 0.8, "k2": 0.6})


def test_a_steady_state_first_and_states_set_after_it(tmp_path: Path):
    nominal = {"k2": 0.6, "p": 0.4}
    tables = {
        "parameter": parameters(**nominal),
        "condition": [
            *condition("before", k1=0.3, B=2.0, A="p"),
            # By what was before: k1 is 0.3 still.
            *condition("after", k1=0.8, A="B / 2 + 10 * k1 * p"),
        ],
        "experiment": experiment("e0", ("-inf", "before"), (10, "after")),
        "observable": [observable("obs_a", "A + 0.1 * time"), observable("obs_b", "B", 0.2)],
        "measurement": [
            measurement("obs_a", "e0", 10, 0.1),
            measurement("obs_a", "e0", 11, 0.7),
            measurement("obs_b", "e0", 12.5, 0.1),
        ],
    }
    found = evaluate(write_problem(tmp_path / "p", CONVERSION, tables))

    def llh(k2, p):
        total, k1 = 2 + p, mp.mpf("0.3")
        b = total * k1 / (k1 + k2)
        a = b / 2 + 10 * k1 * p
        at = lambda t: exchange(t, a, b, mp.mpf("0.8"), k2)
        early = normal(0.1, a + 1, 0.5) + normal(0.7, at(1)[0] + mp.mpf("1.1"), 0.5)
        return early + normal(0.1, at(2.5)[1], 0.2)

    agrees(found, llh, nominal)


def test_experiments_with_and_without_a_steady_state(tmp_path: Path):
    nominal = {"k2": 0.6, "k1": 0.3}
    tables = {
        "parameter": parameters(**nominal),
        "condition": [*condition("before", a0=1, A=3.0), *condition("after", A=1.0), *condition("only", B=0.25)],
        "experiment": [
            *experiment("rested", ("-inf", "before"), (0, "after")),
            *experiment("plain", (0, "only")),
        ],
        "observable": [observable("obs_a", "A"), observable("obs_b", "B", 0.1)],
        "measurement": [
            measurement("obs_a", "rested", 1, 0.1),
            measurement("obs_b", "plain", 2, 0.7),
            measurement("obs_a", "", 2, 0.7),
        ],
    }
    found = evaluate(write_problem(tmp_path / "p", CONVERSION, tables))

    def llh(k2, k1):
        b = 4 * k1 / (k1 + k2)
        rested = exchange(1, 1, b, k1, k2)[0]
        plain, none = exchange(2, 1, mp.mpf("0.25"), k1, k2)[1], exchange(2, 1, 1, k1, k2)[0]
        return normal(0.1, rested, 0.5) + normal(0.7, plain, 0.1) + normal(0.7, none, 0.5)

    agrees(found, llh, nominal)
    assert found.scenarios == ["rested", "plain", "default"]


def test_a_measurement_at_rest(tmp_path: Path):
    nominal = {"a0": 1.0, "k1": 0.8, "k2": 0.6}
    tables = {
        "parameter": parameters(**nominal),
        "observable": [observable("obs_a", "A")],
        "measurement": [measurement("obs_a", "", 1, 0.7), measurement("obs_a", "", "inf", 0.5)],
    }
    found = evaluate(write_problem(tmp_path / "p", CONVERSION, tables))

    def llh(a0, k1, k2):
        rest = (a0 + 1) * k2 / (k1 + k2)
        return normal(0.7, exchange(1, a0, 1, k1, k2)[0], 0.5) + normal(0.5, rest, 0.5)

    agrees(found, llh, nominal)
    assert found.scenarios == ["default", "default_inf"]


def test_amounts_stay_where_a_compartment_changes_its_size(tmp_path: Path):
    model = """model sizes
      compartment c = 2
      species A in c, B in c
      substanceOnly species a in c
      J0: A -> B; c*k1*A
      J1: B -> A; c*k1*B
      J2: a -> ; k2*a
      J3: -> a; kin
      A = 2; B = 1; a = 4; k1 = 1; k2 = 1; kin = 1
    end
    """
    nominal = {"k1": 0.7, "k2": 0.4}
    tables = {
        "parameter": parameters(**nominal),
        "condition": [*condition("first", c=4), *condition("second", c=8, A=5), *condition("alone", c=0.5)],
        "experiment": [*experiment("e0", ("-inf", "first"), (0, "second")), *experiment("e1", (0, "alone"))],
        "observable": [observable(f"obs_{n}", n) for n in ("A", "B", "a")],
        "measurement": [measurement(f"obs_{n}", e, 0.5, 0.3) for e in ("e0", "e1") for n in ("A", "B", "a")],
    }
    found = evaluate(write_problem(tmp_path / "p", model, tables))

    def llh(k1, k2):
        # From 2 and 1 in a size of 2 to half of that in 4, at rest 0.75 each; B halves as the size doubles.
        a, b = exchange(0.5, 5, mp.mpf("0.375"), k1, k1)
        out = normal(0.3, a, 0.5) + normal(0.3, b, 0.5) + normal(0.3, 1 / k2, 0.5)
        a, b = exchange(0.5, 8, 4, k1, k1)
        own = 1 / k2 + (4 - 1 / k2) * mp.exp(-k2 / 2)
        return out + normal(0.3, a, 0.5) + normal(0.3, b, 0.5) + normal(0.3, own, 0.5)

    agrees(found, llh, nominal)


def test_noise_distributions_and_placeholders(tmp_path: Path):
    nominal = {"k1": 0.8, "k2": 0.6, "sd": 0.2, "scale": 3.0}
    told = {"observablePlaceholders": "factor;offset", "noisePlaceholders": "sigma"}
    tables = {
        "parameter": parameters(**nominal),
        "observable": [
            observable("norm", "factor * A + offset", "sigma", **told),
            observable("lognorm", "A", "noiseParameter1_lognorm", noiseDistribution="log-normal"),
            observable("lap", "B", 0.4, noiseDistribution="laplace"),
            observable("loglap", "observableParameter1_loglap * B", 0.3, noiseDistribution="log-laplace"),
        ],
        "measurement": [
            measurement("norm", "", 1, 0.7, observableParameters="scale;0.5", noiseParameters="sd"),
            measurement("norm", "", 2, 1.7, observableParameters="2;sd", noiseParameters="0.7"),
            measurement("lognorm", "", 2, 0.3, noiseParameters="sd"),
            measurement("lap", "", 2, 0.3),
            measurement("loglap", "", 1, 0.3, observableParameters="scale"),
        ],
    }
    found = evaluate(write_problem(tmp_path / "p", CONVERSION, tables))

    def llh(k1, k2, sd, scale):
        (a1, b1), (a2, b2) = (exchange(t, 1, 1, k1, k2) for t in (1, 2))
        out = normal(0.7, scale * a1 + 0.5, sd) + normal(1.7, 2 * a2 + sd, 0.7)
        out += log_of(normal)(0.3, a2, sd) + laplace(0.3, b2, 0.4)
        return out + log_of(laplace)(0.3, scale * b1, 0.3)

    agrees(found, llh, nominal)
    assert np.allclose(found.noise, [0.2, 0.7, 0.2, 0.4, 0.3])


def test_samples_of_parameters(tmp_path: Path):
    tables = {
        "parameter": parameters(k1=0.8, k2=0.6),
        "condition": [*condition("c0", A=1.0), *condition("c1", A=2.0)],
        "experiment": [*experiment("e0", (0, "c0")), *experiment("e1", (0, "c1"))],
        "observable": [observable("obs_a", "A")],
        "measurement": [measurement("obs_a", e, 1, 0.7) for e in ("e0", "e1")],
    }
    (tmp_path / "samples.tsv").write_text("scenario\tk1\none\t0.5\ntwo\t5\n")
    found = evaluate(write_problem(tmp_path / "p", CONVERSION, tables), scenarios="samples.tsv")
    llh = sum(normal(0.7, exchange(1, a, 1, k1, 0.6)[0], 0.5) for k1 in (0.5, 5) for a in (1, 2))
    assert found.llh == pytest.approx(float(llh), rel=1e-9)
    assert found.scenarios == ["one:e0", "one:e1", "two:e0", "two:e1"]


def test_two_imports_write_the_same(tmp_path: Path):
    tables = {
        "parameter": parameters(k1=0.8, k2=0.6),
        "observable": [observable("obs_a", "A")],
        "measurement": [measurement("obs_a", "", 1, 0.7)],
    }
    path = write_problem(tmp_path / "p", CONVERSION, tables)
    one, two = (import_model("petab", path, tmp_path / name) for name in ("one", "two"))
    assert one.plugin.read_bytes() == two.plugin.read_bytes()
    before = one.plugin.stat().st_mtime_ns
    import_model("petab", path, tmp_path / "one")
    assert one.plugin.stat().st_mtime_ns == before
    # A file that the problem names counts as well.
    (tmp_path / "p" / "measurements.tsv").write_text(
        (tmp_path / "p" / "measurements.tsv").read_text().replace("0.7", "0.8")
    )
    assert "0.8" in import_model("petab", path, tmp_path / "one").plugin.read_text()


def refusal(path: Path) -> str:
    with pytest.raises(RetrogradError) as caught:
        import_model("petab", path, path.parent / "out")
    return str(caught.value)


def test_what_is_not_supported_is_told_in_one_list(tmp_path: Path):
    tables = {
        "parameter": parameters(k1=0.8, A=1.0),
        "condition": [*condition("c0", nothing=1.0, k1=2.0, k2="unknown"), *condition("c1", A=2.0)],
        "experiment": [*experiment("e0", (0, "c0"), (5, "c1")), *experiment("e1", ("-inf", "c1"))],
        "observable": [observable("obs_a", "A + Z")],
        "measurement": [
            measurement("obs_a", "e0", 1, 0.7),
            measurement("obs_a", "e1", 1, 0.7),
            measurement("obs_a", "e2", 1, 0.7),
        ],
    }
    told = refusal(write_problem(tmp_path / "p", CONVERSION, tables))
    for line in (
        "parameter A: is a state in the model, wanted a constant",
        "experiment e1: has a steady state alone",
        "experiment e2: is measured, but not in the table of experiments",
        "condition of e0: sets nothing, which is not in the model",
        "condition of e0: sets k1, which is estimated",
        "condition of e0: found unknown in the formula of k2",
    ):
        assert line in told, told
    assert not (tmp_path / "p" / "out").exists()


def test_constants_set_by_their_old_value_after_a_steady_state(tmp_path: Path):
    tables = {
        "parameter": parameters(k1=0.8),
        "condition": [*condition("c", k2=0.5), *condition("d", k2="k2 * k1", A="A + k2")],
        "experiment": experiment("e0", ("-inf", "c"), (0, "d")),
        "observable": [observable("obs_a", "A")],
        "measurement": [measurement("obs_a", "e0", 1, 0.7)],
    }
    model = CONVERSION.replace("k2 = 0\n", "k2 = 3 * a0\n")
    found = evaluate(write_problem(tmp_path / "p", model, tables))

    def llh(k1):
        a = 1 / (k1 + mp.mpf("0.5"))
        return normal(0.7, exchange(1, a + 0.5, 2 - a, k1, k1 / 2)[0], 0.5)

    agrees(found, llh, {"k1": 0.8})


def test_a_mapping_to_nothing_is_refused(tmp_path: Path):
    tables = {
        "parameter": parameters(kf=0.8),
        "mapping": [{"petabEntityId": "kf", "modelEntityId": "nowhere.k"}],
        "observable": [observable("obs_a", "A")],
        "measurement": [measurement("obs_a", "", 1, 0.7)],
    }
    told = refusal(write_problem(tmp_path / "p", CONVERSION, tables))
    assert "parameter kf: is mapped to nowhere_k, which is not in the model" in told


def test_twins_are_refused(tmp_path: Path):
    tables = {
        "parameter": [*parameters(k1=0.8), *parameters(k1=0.9)],
        "observable": [observable("obs_a", "A"), observable("obs_a", "B")],
        "measurement": [measurement("obs_a", "", 1, 0.7)],
    }
    told = refusal(write_problem(tmp_path / "p", CONVERSION, tables))
    assert "parameter k1: is in its table twice" in told and "observable obs_a: is in its table twice" in told


def test_what_measurements_cannot_name(tmp_path: Path):
    tables = {
        "parameter": parameters(k1=0.8),
        "observable": [observable("obs_a", "A + Z", "s", noisePlaceholders="s")],
        "measurement": [
            measurement("obs_a", "", -1, 0.7, noiseParameters="sd"),
            measurement("obs_a", "", 1, 0.7),
            measurement("obs_b", "", 1, 0.7),
        ],
    }
    told = refusal(write_problem(tmp_path / "p", CONVERSION, tables))
    for line in (
        "observable obs_a: found Z in its formulas, which is not known",
        "measurement 1: found the parameter sd, which is not known",
        "measurement 1: found the time -1, before the start at 0",
        "measurement 2: found 0 observable and noise parameters, wanted 1: s",
        "measurement 3: found the observable obs_b, which is in no table",
    ):
        assert line in told, told


def test_a_steady_state_of_rates_that_depend_on_time(tmp_path: Path):
    model = CONVERSION.replace("c*k1*A", "c*k1*A*(1 + sin(time))")
    tables = {
        "parameter": parameters(k1=0.8),
        "condition": condition("c0", A=1),
        "experiment": experiment("e0", ("-inf", "c0"), (0, "c0")),
        "observable": [observable("obs_a", "A")],
        "measurement": [measurement("obs_a", "e0", 1, 0.7)],
    }
    assert "found rates that depend on time" in refusal(write_problem(tmp_path / "p", model, tables))


def test_a_stimulus_from_a_time_on_whose_dose_is_0_in_the_steady_state(tmp_path: Path):
    """As in Brannmark_JBC2010, Weber_BMC2015 and Isensee_JCB2018."""
    nominal = {"k1": 0.8, "k2": 0.6}
    law = "c*k1*A*(1 + dose*piecewise(0, time < on, 1))"
    model = CONVERSION.replace("c*k1*A", law).replace("k2 = 0\n", "k2 = 0; dose = 0; on = 0\n")
    tables = {
        "parameter": parameters(**nominal),
        "condition": [*condition("off", dose=0.0, on=0), *condition("late", dose=2, on=3)],
        "experiment": experiment("e0", ("-inf", "off"), (0, "late")),
        "observable": [observable("obs_a", "A")],
        "measurement": [measurement("obs_a", "e0", t, 0.7) for t in (1, 3, 5)],
    }
    found = evaluate(write_problem(tmp_path / "p", model, tables))

    def llh(k1, k2):
        rest = 2 * k2 / (k1 + k2)
        at = [rest, rest, exchange(2, rest, 2 - rest, 3 * k1, k2)[0]]
        return sum(normal(0.7, y, 0.5) for y in at)

    agrees(found, llh, nominal)
    tables["condition"] = [*condition("off", dose=1, on=3), *condition("late", dose=2, on=3)]
    told = refusal(write_problem(tmp_path / "q", model, tables))
    assert "experiment e0: found rates that depend on time" in told, told


def test_files_that_cannot_be_read(tmp_path: Path):
    path = tmp_path / "problem.yaml"
    path.write_text("format_version: 2.0.0\nmodel_files: {m: {location: none.xml, language: sbml}}\n")
    assert "found no file" in refusal(path)
    path.write_text("format_version: 3.0.0\n")
    assert "found PEtab version 3.0.0, wanted 1 or 2" in refusal(path)
    path.write_text("study: turnover\n")
    assert "wanted the file of a PEtab problem" in refusal(path)
    path.write_text("format_version: 2.0.0\nmodel_files: {}\n")
    assert "found 0 models, wanted one" in refusal(path)
    path.write_text("format_version: 2.0.0\nmodel_files: {m: model.xml}\n")
    assert "found another structure than that of a PEtab problem" in refusal(path)
    (tmp_path / "p.tsv").write_text("parameterId\tnominalValue\testimate\nk1\t1\tmaybe\n")
    (tmp_path / "m.xml").write_text("")
    path.write_text(
        "format_version: 2.0.0\nmodel_files: {m: {location: m.xml, language: sbml}}\nparameter_files: [p.tsv]\n"
    )
    assert "p.tsv: cannot be read" in refusal(path) and "maybe" in refusal(path)


def test_version_1(tmp_path: Path):
    # Starts follow conditions there, and measurements may be compared by their logarithms.
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "model.xml").write_text(sbml(CONVERSION))
    files = {
        "condition": [{"conditionId": "c0", "a0": 0.8, "k1": 0.3}, {"conditionId": "c1", "a0": "start", "k1": 0.9}],
        "observable": [
            observable("obs_a", "A", "noiseParameter1_obs_a", observableTransformation="log10"),
            observable("obs_b", "B", 0.3, observableTransformation="lin", noiseDistribution="laplace"),
        ],
        "measurement": [
            {
                "observableId": o,
                "simulationConditionId": c,
                "preequilibrationConditionId": p,
                "time": 2,
                "measurement": 0.7,
            }
            | ({"noiseParameters": "sd"} if o == "obs_a" else {})
            for o, c, p in (("obs_a", "c0", ""), ("obs_b", "c1", ""), ("obs_a", "c1", "c0"), ("obs_b", "c1", "c0"))
        ],
    }
    nominal = {"k2": 0.6, "start": 1.5, "sd": 0.2}
    scales = ("log10", "lin", "log")
    files["parameter"] = [
        row | {"parameterScale": scale, "estimate": 1, "lowerBound": 1e-5}
        for row, scale in zip(parameters(**nominal), scales, strict=True)
    ]
    # Beside the problem, below it and above it.
    (folder / "data").mkdir()
    places = {"condition": "data/", "observable": "../", "measurement": "", "parameter": ""}
    for name, content in files.items():
        (folder / f"{places[name]}{name}s.tsv").write_text(table(content))
    problem = {f"{name}_files": [f"{places[name]}{name}s.tsv"] for name in ("condition", "observable", "measurement")}
    problem["sbml_files"] = ["model.xml"]
    path = folder / "old.yaml"
    path.write_text(yaml.safe_dump({"format_version": 1, "parameter_file": "parameters.tsv", "problems": [problem]}))
    found = evaluate(path)

    def llh(k2, start, sd):
        k1 = mp.mpf("0.3"), mp.mpf("0.9")
        first = exchange(2, mp.mpf("0.8"), 1, k1[0], k2)[0]
        second = exchange(2, start, 1, k1[1], k2)[1]
        a = mp.mpf("1.8") * k2 / (k1[0] + k2)
        third = exchange(2, a, mp.mpf("1.8") - a, k1[1], k2)
        by_log10 = lambda m, y, s: normal(mp.log10(m), mp.log10(y), s) - mp.log(m * mp.log(10))
        out = by_log10(0.7, first, sd) + laplace(0.7, second, 0.3)
        return out + by_log10(0.7, third[0], sd) + laplace(0.7, third[1], 0.3)

    agrees(found, llh, nominal)


def test_constants_alone_and_what_only_observables_know(tmp_path: Path):
    tables = {
        "parameter": parameters(p=2.0, q=3.0),
        "condition": [*condition("c0", offset="2 * q"), *condition("c1", offset=0.25)],
        "experiment": [*experiment("e0", (0, "c0")), *experiment("e1", (0, "c1"))],
        "observable": [observable("obs_p", "p + offset")],
        "measurement": [measurement("obs_p", "e0", 0, 7.5), measurement("obs_p", "e1", 3, 2.0)],
    }
    found = evaluate(write_problem(tmp_path / "p", "model constants\n  p = 1\nend\n", tables))
    agrees(found, lambda p, q: normal(7.5, p + 2 * q, 0.5) + normal(2, p + mp.mpf("0.25"), 0.5), {"p": 2.0, "q": 3.0})


def test_time_in_a_condition_is_that_of_its_period(tmp_path: Path):
    tables = {
        "parameter": parameters(k2=0.6),
        "condition": [
            *condition("c0", A="time / 2", k1="0.1 * time"),
            *condition("rest", A=3),
            *condition("c1", A="time"),
        ],
        "experiment": [*experiment("NA", (5, "c0")), *experiment("e1", ("-inf", "rest"), (2, "c1"))],
        "observable": [observable("obs_a", "A"), observable("unused", "observableParameter1_unused * A")],
        "measurement": [measurement("obs_a", "NA", 6, 0.7), measurement("obs_a", "e1", 3, 0.7)],
    }
    found = evaluate(write_problem(tmp_path / "p", CONVERSION.replace("k1 = 0;", "k1 = 1;"), tables))
    rested = lambda k2: exchange(1, 2, 4 / (1 + k2), 1, k2)[0]
    llh = lambda k2: normal(0.7, exchange(1, 2.5, 1, 0.5, k2)[0], 0.5) + normal(0.7, rested(k2), 0.5)
    agrees(found, llh, {"k2": 0.6})
    # An id that looks like a gap is one all the same.
    assert found.scenarios == ["NA", "e1"]


def test_values_that_have_no_likelihood(tmp_path: Path):
    tables = {
        "parameter": parameters(k1=0.8),
        "observable": [
            observable("lognorm", "A", 0.5, noiseDistribution="log-normal"),
            observable("timed", "A + time", 0.5),
            observable("exact", "A", 0),
        ],
        "measurement": [
            measurement("lognorm", "", 1, 0),
            measurement("timed", "", "inf", 0.7),
            measurement("timed", "", 1, "inf"),
            measurement("exact", "", 1, 1),
        ],
    }
    told = refusal(write_problem(tmp_path / "p", CONVERSION, tables))
    for line in (
        "measurement 1: found 0, wanted a positive number",
        "measurement 2: is at rest, and timed depends on time",
        "measurement 3: found inf, wanted a finite number",
        "observable exact: found the noise 0.0, wanted a positive number",
    ):
        assert line in told, told
    tables["observable"] = [observable("obs_a", "A / 0")]
    tables["measurement"] = [measurement("obs_a", "", 1, 0.7)]
    assert "observable obs_a: found the constant" in refusal(write_problem(tmp_path / "q", CONVERSION, tables))


def test_names_that_are_made_do_not_meet_those_that_are_there(tmp_path: Path):
    tables = {
        "parameter": parameters(k1=0.8, k2=0.6),
        "condition": [*condition("c0", A=1.0)],
        "experiment": [row for name in ("e0", "e0_inf", "default") for row in experiment(name, (0, "c0"))],
        "observable": [observable("obs_a", "A")],
        "measurement": [
            measurement("obs_a", e, t, 0.7)
            for e, t in (("e0", 1), ("e0", "inf"), ("e0_inf", 1), ("default", 1), ("", 1))
        ],
    }
    path = write_problem(tmp_path / "p", CONVERSION, tables)
    problem = import_model("petab", path, tmp_path / "out").problem
    assert problem is not None
    assert problem.experiments == ("e0", "e0_inf_", "e0_inf", "default", "default_")
