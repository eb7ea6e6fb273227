"""Files that somebody broke, and what reading them must come to: a study, or one message for its user.

`FUZZERS` are functions of a folder, a count and a seed: `tests/unit/test_hostile_input.py` runs some cases of each, and
whoever wants more calls them with a larger count. Each returns how many files were taken and refused, and raises
AssertionError, with the bytes, for one that ended in anything else.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import yaml

from retrograd.api import Model
from retrograd.errors import RetrogradError
from retrograd.loading import load_study
from retrograd.messages import ConfigError
from retrograd.scenarios import read_scenarios
from retrograd.weights import array_leaves, load_into

BUILT_IN = Path(__file__).parents[1] / "config" / "variants.yaml"
# Longer ones are no message any more.
LONGEST_LINE, LONGEST = 1500, 12_000

PLUGIN = """\
from retrograd.api import Model

class Decay(Model):
    states = {"x": "1", "y": "1"}
    parameters = {"k1": "s-1", "k2": "s-1"}
    formulations = {"stable": "vector_field", "naive": "plain"}

    def vector_field(self, t, x, k): ...
    def plain(self, t, x, k): ...
    def initial_state(self, k): ...
"""
TABLE = 'scenario\tk1\tk2@steady\tk2@dynamic\tx0:y\n# a comment\ns01\t1\t2\t3\t0.5\n\n"s02"\t-1e-3\t.5\t4.\t0\n'
CONFIG = """\
study: decay
model: {plugin: model.py, class: Decay, weights: w.safetensors}
scenarios: s.tsv
save_times: {start: 0.0, stop: 10.0, num: 21}
variants: [naive, recommended, mine]
define_variants:
  mine:
    guard: {x_max: 10.0, dx_fill: 0.0}
    segments: [{until: 1.0, dtmax: 0.1}, {until: 5}]
    controller: {rtol: 1.0e-4}
    rescue: [more_steps, {name: own, max_steps: 7}]
factors: {base: naive, levels: {solver: [Tsit5, Kvaerno5]}}
gradient: {methods: [replay, checkpoint], directions: 2}
publication: {authors: [{name: "Carberry, Josiah"}], date: 2026-11-23}
"""
SBML = """\
<?xml version="1.0" encoding="UTF-8"?>
<sbml xmlns="http://www.sbml.org/sbml/level3/version1/core" level="3" version="1"><model id="m">
<listOfFunctionDefinitions><functionDefinition id="f"><math xmlns="http://www.w3.org/1998/Math/MathML"><lambda>
<bvar><ci>a</ci></bvar><apply><power/><ci>a</ci><cn type="integer">2</cn></apply></lambda></math></functionDefinition>
</listOfFunctionDefinitions><listOfCompartments><compartment id="c" size="1" constant="true"/></listOfCompartments>
<listOfSpecies><species id="S" compartment="c" initialConcentration="2" hasOnlySubstanceUnits="false"
boundaryCondition="false" constant="false"/></listOfSpecies>
<listOfParameters><parameter id="p" value="2" constant="true"/><parameter id="x" value="1" constant="false"/>
</listOfParameters><listOfRules><rateRule variable="x"><math xmlns="http://www.w3.org/1998/Math/MathML">
<apply><times/><ci>p</ci><apply><ci>f</ci><ci>x</ci></apply></apply></math></rateRule></listOfRules>
<listOfReactions><reaction id="J" reversible="false" fast="false"><listOfReactants><speciesReference species="S"
stoichiometry="1" constant="true"/></listOfReactants><kineticLaw><math xmlns="http://www.w3.org/1998/Math/MathML">
<apply><times/><ci>p</ci><ci>S</ci></apply></math></kineticLaw></reaction></listOfReactions></model></sbml>
"""
ANTIMONY = """\
function f(a, b)
  a*b/(a + b)
end
model m
  compartment c = 1;
  species A in c, B in c;
  A = 1; B = 0; k1 = 0.5; k2 = 0.1;
  J0: A -> B; f(k1, A);
  J1: B -> A; k2*B;
  x' = -x*k1; x = 3;
end
"""
_RUNS = '__import__("os").system("touch it_ran")'
# What is put into files of text, most of it of some meaning to the one or the other reader.
_TEXTS = [
    *(
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        '"',
        "'",
        "<",
        ">",
        "/>",
        "&",
        "&lt;",
        ": ",
        "- ",
        "|",
        "#",
        "\t",
        "\n",
        ";",
        "=",
        "->",
    ),
    *("\0", "\x1b[31m", "\r", "\u202e", "\ufeff", "é", "\U0001f9ea", "null", "true", "~", "nan", ".inf", "-1", "0x10"),
    *("9" * 30, "9" * 5000, "1e999", "9^9^9^9", "2001-01-01", "&a [*a]", "*a", "<<: ", "!!binary aaaa", "? a"),
    *("!!python/object/apply:os.system [touch it_ran]", _RUNS, "../../../", "/etc/passwd", "con", "x" * 300),
    *("<apply><power/>", "</math>", "<cn>", "<!--", "<![CDATA[", '<!DOCTYPE a [<!ENTITY b "c">]>', 'import "x"', "end"),
]


def broken_text(text: str, rng: random.Random) -> bytes:
    out = list(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, how = rng.randrange(len(out) + 1), rng.random()
        if how < 0.25:
            del out[at : at + rng.choice((1, 2, 8, 40))]
        elif how < 0.75:
            out[at:at] = rng.choice(_TEXTS)
        elif how < 0.9 and out:
            there = rng.randrange(len(out))
            out[at:at] = out[there : there + rng.randint(1, 60)]
        else:
            out[at : at + 1] = chr(rng.choice((rng.randrange(128), rng.randrange(0xD7FF))))
    data = "".join(out).encode()
    return data if rng.random() > 0.05 else data[: len(data) // 2] + b"\xff" + data[len(data) // 2 :]


def broken_bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        # Most of what can be wrong stands at the beginning.
        at, how = rng.randrange(min(len(out), 400) if rng.random() < 0.6 else len(out)) if out else 0, rng.random()
        if how < 0.4 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif how < 0.5:
            del out[at : at + rng.choice((1, 4, 8, 100))]
        elif how < 0.65:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 8)))
        elif how < 0.75:
            del out[at:]
        elif how < 0.9:
            out[at : at + 8] = rng.choice((b"\xff" * 8, bytes(8), (2**62).to_bytes(8, "little"), b"[" * 8))
        else:
            out[at:at] = rng.choice(
                (b"9" * 30, b'"', b"}", b"-1,", b"BF16", b"F8_E4M3", b"|O", b"<U9", b"(1000000000000,)")
            )
    return bytes(out)


def _told(error: RetrogradError, data: bytes) -> None:
    text = str(error)
    assert text.strip() and len(text) < LONGEST, (text[:500], data)
    assert all(len(line) < LONGEST_LINE for line in text.splitlines()), (text[:2000], data)
    if isinstance(error, ConfigError):
        assert all(c.isprintable() or c == "\n" for c in text), (text, data)


def _all(
    base: bytes | str, count: int, seed: int, folder: Path, name: str, read: Callable[[Path], Any]
) -> Counter[str]:
    rng, path, out = random.Random(seed), folder / name, Counter[str]()
    path.write_bytes(base.encode() if isinstance(base, str) else base)
    read(path)
    for _ in range(count):
        data = broken_text(base, rng) if isinstance(base, str) else broken_bytes(base, rng)
        path.write_bytes(data)
        try:
            read(path)
            out["taken"] += 1
        except RetrogradError as error:
            _told(error, data)
            out["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}: {data!r}") from error
    assert not list(folder.rglob("it_ran"))
    return out


def _study(folder: Path) -> dict[str, Any]:
    (folder / "model.py").write_text(PLUGIN)
    (folder / "s.tsv").write_text(TABLE)
    (folder / "w.safetensors").write_bytes(b"")
    return yaml.safe_load(CONFIG)


def fuzz_configs(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Configs: their text is broken; what YAML does not read Snakemake refuses itself."""
    _study(folder)

    def read(path: Path) -> None:
        try:
            config = yaml.safe_load(path.read_bytes())
        except (yaml.YAMLError, ValueError, RecursionError):
            raise RetrogradError("no YAML") from None
        if isinstance(config, dict):
            load_study(config, BUILT_IN)

    return _all(CONFIG, count, seed, folder, "config.yaml", read)


def fuzz_plugins(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Plug-ins, as the parse sees them: it runs none."""
    config = _study(folder)
    return _all(PLUGIN, count, seed, folder, "model.py", lambda path: load_study(config, BUILT_IN))


def fuzz_scenarios(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Tables of scenarios."""
    known = {"parameters": ("k1", "k2"), "states": ("x", "y"), "start": "steady_state"}
    return _all(TABLE, count, seed, folder, "s.tsv", lambda path: read_scenarios(path, **known))


class Net(Model):
    """A network of three layers."""

    network: eqx.nn.MLP


def _weights(suffix: str, write: Callable[[Path, dict[str, np.ndarray]], None]) -> Callable[..., Counter[str]]:
    def fuzz(folder: Path, count: int, seed: int = 0) -> Counter[str]:
        """Files of weights: what is taken has the arrays of the model, all finite."""
        model = Net(eqx.nn.MLP(2, 1, 4, 2, key=jax.random.PRNGKey(0)))
        leaves = {name.lstrip(".").replace("[", ".").replace("]", ""): np.asarray(v) for name, v in array_leaves(model)}
        path = folder / f"whole{suffix}"
        if suffix == ".eqx":
            eqx.tree_serialise_leaves(path, model)
        else:
            write(path, leaves)

        def read(path: Path) -> None:
            found = load_into(model, str(path))
            for (_, a), (_, b) in zip(array_leaves(found), array_leaves(model), strict=True):
                assert a.shape == b.shape and a.dtype == b.dtype and np.all(np.isfinite(a))

        return _all(path.read_bytes(), count, seed, folder, f"w{suffix}", read)

    return fuzz


def _write_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path)


def _write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[f"parameters/{name.replace('.', '/')}"] = array


def _write_onnx(path: Path, arrays: dict[str, np.ndarray]) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    layers = sorted({name.rpartition(".")[0] for name in arrays})
    held, nodes, last = [], [], "in"
    for i, layer in enumerate(layers):
        held += [numpy_helper.from_array(arrays[f"{layer}.{role}"], f"{role}{i}") for role in ("weight", "bias")]
        nodes.append(helper.make_node("Gemm", [last, f"weight{i}", f"bias{i}"], [f"h{i}"], transB=1))
        nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"]))
        last = f"r{i}"
    ends = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [1, size]) for n, size in (("in", 2), (last, 1))]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], held)), path)


def _models(kind: str, suffix: str, base: str) -> Callable[..., Counter[str]]:
    def fuzz(folder: Path, count: int, seed: int = 0) -> Counter[str]:
        """Models in other formats, read as a study reads them."""
        config = {"study": "m", "start": "initial_state", "save_times": [1.0], "variants": ["recommended"]}
        read = lambda path: load_study(config | {"model": {kind: str(path)}}, BUILT_IN)
        return _all(base, count, seed, folder, f"m{suffix}", read)

    return fuzz


def fuzz_problems(folder: Path, count: int, seed: int = 0) -> Counter[str]:
    """Problems in PEtab: of each case one of the files is broken."""
    from petab_problems import CONVERSION, condition, experiment, measurement, observable, parameters, write_problem

    tables = {
        "parameter": parameters(k1=0.8, k2=0.6),
        "condition": condition("c0", A="k1 + 2"),
        "experiment": experiment("e0", (0, "c0")),
        "observable": [observable("obs_a", "A", "0.1 * obs_a + 1")],
        "measurement": [measurement("obs_a", "e0", 1, 0.7), measurement("obs_a", "e0", 2.5, 0.1)],
    }
    problem = write_problem(folder / "p", CONVERSION, tables)
    read = lambda _: load_study({"study": "p", "model": {"petab": str(problem)}}, BUILT_IN)
    files: Sequence[Path] = sorted(file for file in problem.parent.iterdir() if file.is_file())
    out = Counter[str]()
    for i, file in enumerate(files):
        share = count // len(files) + (i < count % len(files))
        whole = file.read_text(encoding="utf-8")
        out += _all(whole, share, seed, file.parent, file.name, read)
        file.write_text(whole, encoding="utf-8")
    return out


FUZZERS: dict[str, Callable[..., Counter[str]]] = {
    "config": fuzz_configs,
    "scenarios": fuzz_scenarios,
    "plug-in, parsed": fuzz_plugins,
    "weights .eqx": _weights(".eqx", lambda path, arrays: None),
    "weights .safetensors": _weights(".safetensors", _write_safetensors),
    "weights .hdf5": _weights(".hdf5", _write_hdf5),
    "weights .onnx": _weights(".onnx", _write_onnx),
    "SBML": _models("sbml", ".xml", SBML),
    "Antimony": _models("antimony", ".ant", ANTIMONY),
    "PEtab": fuzz_problems,
}
