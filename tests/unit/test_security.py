"""What nobody gets in by: each test plants what an attacker would, and says what has to come of it."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

from retrograd import archive, packing
from retrograd.archive import CONFIG, Archive
from retrograd.errors import RetrogradError
from retrograd.loading import load_study
from retrograd.messages import ConfigError, overgrown, printable, show
from retrograd.plan import Plan
from retrograd.plugins import build_structure, load_class, member, vector_field
from retrograd.references import config_of
from retrograd.reproduction import prepared, run
from retrograd.settings import check_study_name, is_name
from retrograd.weights import evaluate

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
BUILT_IN = ROOT / "config" / "variants.yaml"

PLUGIN = """\
import jax.numpy as jnp
from retrograd.api import Model

class M(Model):
    states = {"x": "1"}
    parameters = {"k": "1"}
    def vector_field(self, t, x, k):
        return -k["k"] * x
    def initial_state(self, k):
        return jnp.ones(1)
"""
STUDY = {
    "study": "m",
    "model": {"plugin": "m.py", "class": "M"},
    "scenarios": "m.tsv",
    "start": "initial_state",
    "save_times": [1.0],
    "variants": ["recommended"],
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(PLUGIN)
    (tmp_path / "m.tsv").write_text("scenario\tk\na\t1\n")
    return tmp_path


def problems(**changes) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_study(STUDY | changes, BUILT_IN)
    return caught.value.problems


# -- the sources ----------------------------------------------------------------------------------------------


def test_no_pickle_no_shell_no_unsafe_yaml_and_no_eval_in_the_sources():
    banned = ("pickle", "shelve", "marshal", "dill")
    never = ("eval", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load")
    # With an argument that makes it safe.
    safe = {"yaml.load": ("SafeLoader", "BaseLoader"), "torch.load": ("weights_only=True",)}
    safe |= dict.fromkeys(("np.load", "np.lib.format.read_array"), ("allow_pickle=False",))
    found = []
    for path in SCRIPTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [*(alias.name for alias in node.names), getattr(node, "module", None) or ""]
                found += [f"{path.name}: {name}" for name in names if name.split(".")[0] in banned]
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""
                wrong = name in never or (name == "exec" and path.name != "plugins.py")
                wrong |= any(word.arg == "shell" for word in node.keywords)
                wrong |= name in safe and not any(text in ast.unparse(node) for text in safe[name])
                found += [f"{path.name}, line {node.lineno}: {name}"] if wrong else []
    assert not found


def test_no_rule_has_a_shell_command():
    rules = [ROOT / "Snakefile", *(ROOT / "workflow/rules").iterdir()]
    assert not [path.name for path in rules if "shell:" in path.read_text() or "run:" in path.read_text()]


def test_templates_escape_all_but_our_own_figures():
    for path in (ROOT / "scripts/retrograd").glob("*.j2"):
        assert "|safe" not in path.read_text().replace(" ", ""), path.name
    assert [p.name for p in SCRIPTS if "Markup(" in p.read_text()] == ["report.py"]


# -- configs --------------------------------------------------------------------------------------------------


def test_a_few_lines_that_stand_for_a_billion_values(study: Path):
    bomb = yaml.safe_load("a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    ))  # fmt: skip
    loop = yaml.safe_load("&a [*a]")
    begun = time.perf_counter()
    for junk, keys in ((bomb["a11"], ("factors",)), (loop, ("study", "save_times", "define_variants", "unknown"))):
        for key in keys:
            (line,) = problems(**{key: junk})
            assert line.startswith("the config: found more than 500000 values, or lists and mappings more than 20 deep")
    (study / "variants.yaml").write_text("a: &a [*a]\n")
    with pytest.raises(ConfigError, match="lists and mappings more than 20 deep"):
        load_study(STUDY, study / "variants.yaml")
    assert time.perf_counter() - begun < 10
    assert not overgrown({"save_times": [float(i) for i in range(100_000)]})


def test_what_is_shown_is_short_and_steers_no_terminal(study: Path):
    (line,) = problems(study=10**5000)
    assert "found a number of thousands of digits, wanted a name" in line
    (line,) = problems(**{"\x1b[31m" + "x" * 10_000: 1})
    assert len(line) < 600 and "\x1b" not in line
    assert printable("a\x1b\u202e\n\ud800b") == "a\\x1b\\u202e\n\\ud800b"
    assert len(show("x" * 1000)) == 80


@pytest.mark.parametrize(
    "name", ["-rf", "a.", "con", "NUL.txt", "Com1", "a/b", "..", "a\nb", "ä", "a b", "x" * 201, ""]
)
def test_names_of_folders(name: str, study: Path):
    assert not is_name(name)
    assert problems(study=name)[0].startswith("study: found")
    assert any("define_variants" in line for line in problems(define_variants={name: {}}))


def test_a_study_is_not_called_like_a_folder_beside_it(study: Path):
    assert problems(study="Archives")[0].endswith("results/Archives is taken (as are archives, reproductions)")
    assert check_study_name("turnover-1_a.b") == "turnover-1_a.b"


@pytest.mark.parametrize("mark", ["\u202e", "\u2066", "\u200b", "\ufeff", "\x1b", "\u2028", "\u00ad"])
def test_names_show_all_that_they_are(mark: str, study: Path):
    (study / "m.tsv").write_text(f"scenario\tk\na{mark}b\t1\n", encoding="utf-8")
    assert problems()[0].endswith("wanted an id without control characters and invisible marks")
    (study / "m.tsv").write_text(
        "scenario\tk\n<script>alert(1)</script>\t1\nن\u200cم \U0001f469\u200d\U0001f52c\t1\n", encoding="utf-8"
    )
    (study / "m.py").write_text(PLUGIN.replace('"x"', f'"a{mark}b"'), encoding="utf-8")
    (line,) = problems()
    assert "found the state" in line and line.endswith("wanted a name without control characters and invisible marks")
    (study / "m.py").write_text(PLUGIN.replace('{"x": "1"}', f"dict([('a{mark}b', '1')])"), encoding="utf-8")
    with pytest.raises(RetrogradError, match="wanted one without control characters"):
        load_class("m.py", "M")


# -- numbers at the edge --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "variants", "told"),
    [
        # diffrax steps over a time that is one ulp behind the end of a step: its row would be empty.
        ([1.0, float(np.nextafter(1.0, 2.0)), 2.0], ["recommended"], "neighbours in float64, wanted times"),
        ([1.0, 1.0 + 2**-23, 2.0], ["naive32"], "wanted save times apart in float32 too"),
        ([5e-324], ["recommended"], "found 5e-324 as the last one, wanted a last one from 1e-200 to 1e+200"),
        ([1e300], ["recommended"], "found 1e+300 as the last one"),
        ([1e-30], ["naive32"], "with precision float32"),
    ],
)
def test_times_that_the_solver_cannot_hold(times: list[float], variants: list[str], told: str, study: Path):
    (line,) = problems(save_times=times, variants=variants)
    assert told in line


@pytest.mark.parametrize(
    "times", [[1.0, 1.0 + 2**-51, 2.0], [1e12], [0.0, 1e12], {"start": 0.0, "stop": 10.0, "num": 10_000}]
)
def test_times_that_it_holds(times, study: Path):
    assert load_study(STUDY | {"save_times": times}, BUILT_IN).times()


def test_no_scenario_is_refused(study: Path):
    (study / "m.tsv").write_text("scenario\tk\n")
    assert problems() == ("m.tsv: found no scenario, wanted at least one row below the header",)


# -- models in other formats ----------------------------------------------------------------------------------


def sbml_problem(study: Path, text: str) -> str:
    pytest.importorskip("libsbml", reason="the extra petab is not installed: no SBML")
    (study / "m.xml").write_text(text, encoding="utf-8")
    return "\n".join(problems(model={"sbml": "m.xml"}))


def sbml(math: str = "<ci>x</ci>", head: str = "", notes: str = "", functions: str = "") -> str:
    space = 'xmlns="http://www.w3.org/1998/Math/MathML"'
    level = 'xmlns="http://www.sbml.org/sbml/level3/version1/core" level="3" version="1"'
    parameters = '<listOfParameters><parameter id="x" value="1" constant="false"/></listOfParameters>'
    rule = f'<listOfRules><rateRule variable="x"><math {space}>{math}</math></rateRule></listOfRules>'
    inside = f"{notes}{functions.replace('<math>', f'<math {space}>')}{parameters}{rule}"
    return f'{head}<sbml {level}><model id="m">{inside}</model></sbml>'


def test_entities_are_not_looked_at(study: Path):
    notes = '<notes><p xmlns="http://www.w3.org/1999/xhtml">&a9;</p></notes>'
    laughs = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    for inside in (f"[{laughs}]", '[<!ENTITY a9 SYSTEM "file:///etc/passwd">]', 'SYSTEM "http://127.0.0.1:9/x.dtd"'):
        assert "found a document type" in sbml_problem(study, sbml(head=f"<!DOCTYPE sbml {inside}>", notes=notes))


def test_nothing_nests_without_end(study: Path):
    # libsbml walks by recursion: at this depth the process would end without a word.
    deep = 100_000
    for text in (
        sbml("<apply><minus/>" * deep + "<ci>x</ci>" + "</apply>" * deep),
        sbml(notes="<notes>" + '<p xmlns="http://www.w3.org/1999/xhtml">' * deep + "</p>" * deep + "</notes>"),
    ):
        assert "found elements nested more than 1000 deep" in sbml_problem(study, text)
    told = sbml_problem(study, sbml("<apply><minus/>" * 900 + "<ci>x</ci>" + "</apply>" * 900))
    assert "too deeply" in told or "RecursionError" in told


def test_no_power_and_no_function_grows_without_end(study: Path):
    nine = '<cn type="integer">9</cn>'
    power = lambda a, b: f"<apply><power/>{a}{b}</apply>"
    assert "too large" in sbml_problem(study, sbml(power(nine, power(nine, power(nine, nine)))))
    tall = power(
        power(power(nine, '<cn type="integer">999</cn>'), '<cn type="integer">999</cn>'),
        '<cn type="integer">999</cn>',
    )
    assert "no real number that float64 can hold" in sbml_problem(study, sbml(tall))
    call = lambda i: f"<apply><ci>f{i}</ci><ci>a</ci></apply>"
    bodies = ["<ci>a</ci>", *(f"<apply><plus/>{call(i - 1)}{call(i - 1)}</apply>" for i in range(1, 30))]
    definitions = "".join(
        f'<functionDefinition id="f{i}"><math><lambda><bvar><ci>a</ci></bvar>{body}</lambda></math>'
        "</functionDefinition>"
        for i, body in enumerate(bodies)
    )
    functions = f"<listOfFunctionDefinitions>{definitions}</listOfFunctionDefinitions>"
    told = sbml_problem(study, sbml("<apply><ci>f29</ci><ci>x</ci></apply>", functions=functions))
    assert "has more than 200000 parts with the functions that it calls put in" in told


def test_whatever_a_reader_stumbles_over_is_one_message(study: Path, monkeypatch: pytest.MonkeyPatch):
    def stumble(*_):
        raise ZeroDivisionError("deep\x1b down")

    monkeypatch.setattr("retrograd.loading.import_model", stumble)
    (line,) = [sbml_problem(study, sbml())]
    assert line.startswith(
        r"model.sbml: m.xml cannot be imported: ZeroDivisionError: deep\x1b down (test_security.py, line"
    )


@pytest.mark.parametrize("name", ["/etc/passwd", "../" * 7 + "x.tsv"])
def test_files_of_a_problem_lie_around_it(name: str, study: Path):
    pytest.importorskip("petab", reason="the extra petab is not installed: it needs Python 3.12")
    (study / "p.yaml").write_text(yaml.safe_dump({"format_version": 1, "parameter_file": name, "problems": []}))
    (line,) = problems(model={"petab": "p.yaml"})
    assert "wanted a path relative to this file, 6 folders above it at most" in line


# -- weights --------------------------------------------------------------------------------------------------


def test_arrays_of_weights_are_in_their_file(study: Path):
    h5py = pytest.importorskip("h5py", reason="h5py, of the extra petab, is not installed")
    from fuzzing import Net, eqx, jax, load_into

    model = Net(eqx.nn.MLP(2, 1, 4, 0, key=jax.random.PRNGKey(0)))
    cases = {
        "is said to have": lambda f: f.create_dataset("parameters/w", (10**12,), "f8"),
        "is stored in another file": lambda f: f.create_dataset(
            "parameters/w", (8,), "f8", external=[("/etc/passwd", 0, 64)]
        ),
    }
    for told, make in cases.items():
        with h5py.File("w.hdf5", "w") as file:
            make(file)
        with pytest.raises(RetrogradError, match=told):
            load_into(model, "w.hdf5")
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    tensor = onnx.numpy_helper.from_array(np.zeros((4, 4)), "w")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    onnx.save(onnx.helper.make_model(graph), "w.onnx", save_as_external_data=True, location="x", size_threshold=0)
    with pytest.raises(RetrogradError, match="has w in another file"):
        load_into(model, "w.onnx")


# -- plug-ins -------------------------------------------------------------------------------------------------


def test_what_a_function_raises_is_told_with_its_line(study: Path):
    text = (
        PLUGIN
        + "    def loss(self, times, x, k):\n        return k['none']\n"
        + "    def initial_guess(self, k):\n        return 1j * x\n"
    )
    (study / "m.py").write_text(text.replace("-k", "1j * k"))
    cls = load_class("m.py", "M")
    model, x = build_structure(cls), np.ones(1)
    with pytest.raises(RetrogradError, match=r"^M\.loss stopped: \S*m\.py, line 12: KeyError: 'none'$"):
        member(cls, "loss", ())(model, x, x[None], x)
    with pytest.raises(RetrogradError, match=r"^M\.initial_guess stopped: .*line 14: NameError"):
        member(cls, "initial_guess", (1,))(model, x)
    with pytest.raises(RetrogradError, match=r"^M\.vector_field returned complex128, wanted real numbers"):
        vector_field(cls, "stable", None)(model, 0.0, x, x)
    (study / "m.py").write_text(PLUGIN.replace('return -k["k"] * x', "return {}"))
    with pytest.raises(RetrogradError, match=r"^M\.vector_field returned dict, wanted an array"):
        evaluate(build_structure(load_class("m.py", "M")), x[None], x[None])
    (study / "m.py").write_text(PLUGIN + "raise SystemExit(0)\n")
    with pytest.raises(RetrogradError, match=r"m\.py stopped while it was loaded: SystemExit"):
        load_class("m.py", "M")


HANGS = {
    "Loading m.py": PLUGIN + "import time\ntime.sleep(1000)\n",
    "M.build(key)": PLUGIN + "    @classmethod\n    def build(cls, key):\n        9 ** 9 ** 9 ** 9\n",
    "Evaluating M.vector_field at the self-test's points": PLUGIN.replace(
        "        return -k", "        while True: pass\n        return -k"
    ),
    "Evaluating M.vector_field at the self-test's points (compiled)": PLUGIN.replace(
        "        return -k",
        "        import jax\n        x = jax.lax.while_loop(lambda x: x[0] < 9.0, lambda x: -x, x)\n        return -k",
    ),
}


@pytest.mark.parametrize(
    "what",
    [pytest.param(what, marks=[] if "compiled" in what or "Loading" in what else pytest.mark.slow) for what in HANGS],
)
def test_a_plugin_that_hangs_is_ended(what: str, study: Path):
    (study / "m.py").write_text(HANGS[what])
    code = (
        "from retrograd.job import _log_to, prepare_jax; prepare_jax('float64'); _log_to('job.log')\n"
        "from retrograd.plugins import build_structure, load_class\nfrom retrograd.weights import evaluate\n"
        "import numpy as np\nevaluate(build_structure(load_class('m.py', 'M')), np.ones((1, 1)), np.ones((1, 1)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts"), "RETROGRAD_PATIENCE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=study, capture_output=True, text=True, timeout=100
    )
    told = f"{what.removesuffix(' (compiled)')} has taken more than 1 s and was ended."
    assert done.returncode == -9
    assert told in done.stderr and told in (study / "job.log").read_text()


# -- archives -------------------------------------------------------------------------------------------------


def archived(folder: Path, config: str | None = None, **files: bytes) -> Path:
    """Returns an archive whose manifest is right, whatever is in it."""
    text = yaml.safe_dump(STUDY) if config is None else config
    contents = {CONFIG: text.encode(), "m.py": PLUGIN.encode(), "m.tsv": b"scenario\tk\na\t1\n"}
    archive.write(folder / "a.zip", contents | files)
    return folder / "a.zip"


def test_files_that_share_their_bytes_are_found(study: Path):
    # Each member is fine by itself: a zip of ten that declares as much as twenty.
    made = archived(study, big=bytes(10**6))
    data = made.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        info = opened.getinfo("big")
    entry = data[data.rindex(b"PK\1\2", 0, data.rindex(b"big") + 1) : data.rindex(b"big") + 3]
    assert info.header_offset == int.from_bytes(entry[42:46], "little")
    end = data.rindex(b"PK\5\6")
    twice = entry[:-3] + b"bih"
    out = bytearray(data[:end] + twice + data[end:])
    at = out.rindex(b"PK\5\6")
    for place, width, more in ((8, 2, 1), (10, 2, 1), (12, 4, len(twice))):
        here = slice(at + place, at + place + width)
        out[here] = (int.from_bytes(out[here], "little") + more).to_bytes(width, "little")
    made.write_bytes(out)
    with Archive(made) as opened:
        assert any("bytes, and the zip has" in str(finding) for finding in opened.structure)


def test_more_files_than_any_study_has(study: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archive, "MOST_FILES", 2)
    with Archive(archived(study)) as opened:
        assert "wanted at most 2" in str(opened.structure[-1])


def test_a_result_that_declares_more_than_it_holds(study: Path):
    import netCDF4

    with netCDF4.Dataset("x.nc", "w") as ds:
        ds.createDimension("a", 10**12)
        ds.createVariable("x", "f8", ("a",), zlib=True)
    assert Path("x.nc").stat().st_size < 10**6
    with pytest.raises(RetrogradError, match="is said to hold 8000000000000 bytes"):
        packing.attributes("x.nc")
    xr.Dataset({"x": ("a", np.zeros(10**6))}).to_netcdf("y.nc", encoding={"x": {"zlib": True}})
    with pytest.raises(RetrogradError, match="has no attribute"):
        packing.attributes("y.nc")


@pytest.mark.parametrize(
    "changes",
    [
        {"study": "../../../home/somebody"},
        {"study": "a/b"},
        {"scenarios": "../m.tsv"},
        {"scenarios": "/etc/passwd"},
        {"scenarios": "results/m/model.nc"},
        {"scenarios": "none.tsv"},
        {"model": {"plugin": "a/../../m.py", "class": "M"}},
        {"model": {"plugin": ".snakemake/retrograd/x.py", "class": "M"}},
        {"model": {"plugin": "m.py", "class": "M", "weights": "~/../x.eqx"}},
        {"define_variants": yaml.safe_load("&a [*a]")},
    ],
    ids=str,
)
def test_what_a_config_in_an_archive_names_is_in_the_archive(changes, study: Path):
    folder = study / "there"
    for name, text in (
        ("m.py", PLUGIN),
        ("m.tsv", "x"),
        ("results/m/model.nc", "x"),
        (".snakemake/retrograd/x.py", ""),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (study / "m.tsv").write_text("scenario\tk\na\t1\n")
    (folder / CONFIG).parent.mkdir()
    (folder / CONFIG).write_text(yaml.safe_dump(STUDY))
    assert config_of(folder) == STUDY
    (folder / CONFIG).write_text(yaml.safe_dump(STUDY | changes))
    with pytest.raises(RetrogradError, match=rf"^{CONFIG}: found"):
        config_of(folder)
    with pytest.raises(RetrogradError, match=rf"^{CONFIG}: found"):
        prepared(folder, study / "m.tsv", "0" * 64)
    assert not Path("results").exists()


def test_a_config_in_an_archive_is_read_as_data(study: Path):
    # Snakemake itself runs this, in any config that it is given.
    trap = "__use_yte__: true\ntrap: ?open('it ran', 'w').close()\n"
    folder = study / "there"
    with Archive(archived(study, trap + yaml.safe_dump(STUDY))) as opened:
        opened.unpack(folder)
    made = prepared(folder, study / "a.zip", "0" * 64)
    from snakemake.common.configfile import load_configfile

    found = load_configfile(str(made / CONFIG))
    assert found["study"] == "m" and "__use_yte__" in found
    assert not Path("it ran").exists()
    load_configfile(str(folder / CONFIG))
    assert Path("it ran").exists()


def test_no_file_of_a_study_is_a_module_of_the_run(study: Path, monkeypatch: pytest.MonkeyPatch):
    (study / "yaml.py").write_text("open('it ran', 'w').close()\n")
    commands = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: commands.append(command) or subprocess.CompletedProcess([], 0)
    )
    run(study, ROOT, 1, {})
    monkeypatch.undo()
    begin = commands[0][: commands[0].index("snakemake") + 1]
    assert subprocess.run([*begin, "--version"], cwd=study, capture_output=True).returncode == 0
    assert not (study / "it ran").exists()


@pytest.mark.parametrize("given", [{}, {"trust_plugin": False}, {"trust_plugin": "yes"}, {"trust_plugin": 1}])
def test_reproduce_asks_before_it_runs_a_plugin(given, study: Path):
    made = archived(study)
    with pytest.raises(RetrogradError, match=r"trust_plugin: found .*, wanted true: .* 'm\.py', which is Python code"):
        Plan(STUDY | {"archive": str(made)} | given, ROOT).archived()
    for yes in (True, "true"):
        assert Plan(STUDY | {"archive": str(made), "trust_plugin": yes}, ROOT).archived()[0] == str(made)
