"""`snakemake compare` and `reproduce`: no false alarm, and every planted difference found and named."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import xarray as xr
from pipeline import CONFIG, SCENARIOS, WEIGHT, copy_repository, snakemake, write_weights

import retrograd
from retrograd import results
from retrograd.schema import AGREEMENT

COMPARE = ("--config", "reference=results/tiny")


@pytest.fixture(scope="module")
def repository(finished_run: Path, tmp_path_factory) -> Path:
    """The finished study's working copy, in which others are compared with it."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("comparing") / "copy", symlinks=True)


def compare(repository: Path, study: str, config: str, **surroundings: str) -> subprocess.CompletedProcess[str]:
    """Runs a study with a name of its own and compares it with the finished one."""
    (repository / f"{study}.yaml").write_text(config.replace("study: tiny", f"study: {study}"))
    return snakemake(
        repository, "compare", "--configfile", f"{study}.yaml", *COMPARE, surroundings=surroundings or None
    )


def found(repository: Path, study: str) -> xr.Dataset:
    return retrograd.open_results(repository / f"results/{study}/comparison/comparison.nc")


def verdicts(ds: xr.Dataset) -> dict[tuple[str, str], str]:
    table = ds["verdict"].isel(variant=0)
    return {
        (str(kind), str(q)): AGREEMENT[int(table.sel(kind=kind, quantity=q))]
        for kind in table["kind"].values
        for q in table["quantity"].values
    }


def test_a_run_is_identical_to_itself(repository: Path):
    run = snakemake(repository, "compare", "--configfile", "tiny.yaml", *COMPARE)
    assert run.returncode == 0, run.stdout
    assert "verdict: identical to the bit" in run.stdout
    ds = found(repository, "tiny")
    free = {v for (kind, _), v in verdicts(ds).items() if kind == "free"}
    assert free <= {"identical", "not_compared"}
    assert verdicts(ds)["replayed", "dynamics.step_x"] == "identical"
    assert int(ds["n_replayed"][0]) == 3
    # How small a change would have been seen: on the same steps, a few thousand units in the last place.
    assert float(ds["detection_limit"].sel(kind="replayed", quantity="dynamics.x")[0]) < 1e-12
    page = (repository / "results/tiny/comparison/index.html").read_text()
    assert "identical to the bit" in page
    assert "Environment, config, inputs and code are the same." in page
    assert not re.search(r"(?:src|href)=.https?:", page)


@pytest.mark.slow
def test_the_next_report_tells_of_it(repository: Path):
    page = repository / "results/tiny/report/index.html"
    snakemake(repository, "compare", "--configfile", "tiny.yaml", *COMPARE)
    assert "Identical to the bit." not in page.read_text()
    run = snakemake(repository, "--configfile", "tiny.yaml")
    assert run.returncode == 0, run.stdout
    assert set(re.findall(r"^(?:local)?rule (\w+):", run.stdout, re.MULTILINE)) <= {"report", "all"}
    assert "Identical to the bit." in page.read_text()
    again = snakemake(repository, "--configfile", "tiny.yaml")
    assert "Nothing to be done" in again.stdout
    # Of other files than these it says nothing.
    made = repository / "results/tiny/comparison/comparison.nc"
    assert results._compared(str(made), {"own/gradients": "0" * 64}) is None


@pytest.mark.slow
def test_another_instruction_set_is_no_difference(repository: Path):
    """SSE4.2 has no fused multiply-add: it stands in for another platform, and does change bits."""
    run = compare(repository, "platform", CONFIG, XLA_FLAGS="--xla_cpu_max_isa=SSE4_2")
    assert run.returncode == 0, run.stdout
    assert "xla_flags is --xla_cpu_max_isa=SSE4_2" in run.stdout
    ds = found(repository, "platform")
    assert "different" not in verdicts(ds).values()
    assert AGREEMENT[int(ds["variant_verdict"][0])].startswith("equivalent")
    assert "rounding: the environment (xla_flags)" in str(ds["reason"].values[0])


@pytest.mark.slow
def test_a_weight_changed_by_1e_9_is_found_and_named(repository: Path):
    write_weights(repository / "models/others.safetensors", WEIGHT * (1 + 1e-9))
    run = compare(repository, "weights", CONFIG.replace("tiny.safetensors", "others.safetensors"))
    assert run.returncode != 0
    ds = found(repository, "weights")
    assert verdicts(ds)["free", "model.weights"] == "different"
    assert verdicts(ds)["replayed", "dynamics.x"] == "different"
    assert str(ds["first_stage"].values[0]) == "model"
    reason = str(ds["reason"].values[0])
    assert "the network's weights differ" in reason
    assert "with the reference's weights the replay differs by rounding only" in reason
    assert "inputs: weights is" in run.stdout


@pytest.mark.slow
@pytest.mark.exhaustive
def test_exchanged_scenarios_are_found_and_named(repository: Path):
    lines = SCENARIOS.splitlines()
    (a, *first), (b, *second) = (line.split("\t") for line in lines[2:4])
    lines[2:4] = ["\t".join([a, *second]), "\t".join([b, *first])]
    (repository / "exchanged.tsv").write_text("\n".join(lines) + "\n")
    run = compare(repository, "exchanged", CONFIG.replace("tiny.tsv", "exchanged.tsv"))
    assert run.returncode != 0
    assert "scenarios mild and stiff are exchanged" in run.stdout
    assert "with the reference's parameters the replay differs by rounding only" in run.stdout
    ds = found(repository, "exchanged")
    by_scenario = ds["scenario_verdict"].sel(kind="free", quantity="dynamics.x").isel(variant=0)
    assert [AGREEMENT[int(v)] for v in by_scenario] == ["different", "different", "identical"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_another_tolerance_is_found_and_named(repository: Path):
    run = compare(repository, "rtol", CONFIG.replace("rtol: 1.0e-6", "rtol: 1.0e-5"))
    assert run.returncode != 0
    assert "config: controller.rtol is 1e-05 here, 1e-06 there" in run.stdout
    ds = found(repository, "rtol")
    assert verdicts(ds)["free", "dynamics.settings"] == "different"
    # The values are within the solver's error, and say so.
    assert verdicts(ds)["free", "dynamics.x"] == "equivalent_solver_error"
    assert "settings that choose them differ: controller.rtol" in str(ds["reason"].values[0])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_changed_line_of_the_vector_field_is_found_and_named(repository: Path):
    plugin = (repository / "models/tiny.py").read_text()
    changed = plugin.replace("(level - x[0]),", "(level - x[0]) * (1 + 1e-9),")
    assert changed != plugin
    (repository / "models/changed.py").write_text(changed)
    run = compare(repository, "field", CONFIG.replace("models/tiny.py", "models/changed.py"))
    assert run.returncode != 0
    assert "inputs: plugin is" in run.stdout
    ds = found(repository, "field")
    assert "the plug-in (its vector field" in str(ds["reason"].values[0])
    assert verdicts(ds)["replayed", "dynamics.step_x"] == "different"
    where = str(ds["where"].sel(kind="replayed", quantity="dynamics.step_x").values[0])
    assert re.search(r"step \d+, a$", where)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "old", "new", "first", "reason"),
    [
        ("unit", '"T": "K"}', '"T": "degC"}', "study", "units differ (state T: degC here, K there)"),
        pytest.param(
            "guess",
            "jnp.array([1.0, 300.0])",
            "jnp.array([1.001, 300.0])",
            "steady_state",
            "first guesses of the steady state differ (mild, a): the plug-in's initial_guess",
            marks=pytest.mark.exhaustive,
        ),
    ],
)
@pytest.mark.exhaustive
def test_what_only_the_plugin_says_is_found_and_named(repository: Path, study, old, new, first, reason):
    plugin = (repository / "models/tiny.py").read_text()
    assert old in plugin
    (repository / f"models/{study}.py").write_text(plugin.replace(old, new))
    run = compare(repository, study, CONFIG.replace("models/tiny.py", f"models/{study}.py"))
    assert run.returncode != 0
    ds = found(repository, study)
    assert str(ds["first_stage"].values[0]) == first
    assert reason in str(ds["reason"].values[0])
    assert "choice of steps" not in str(ds["reason"].values[0])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_another_formulation_and_other_directions_are_named(repository: Path):
    plugin = (repository / "models/tiny.py").read_text()
    other = (
        '    formulations = {"stable": "vector_field", "other": "other_field"}\n\n'
        "    def other_field(self, t, x, k):\n"
        "        level = self.network(x[1:])[0]\n"
        '        first = k["fast"] * level - k["fast"] * x[0]\n'
        '        return jnp.stack([first, k["slow"] * k["inflow"] - k["slow"] * x[1]])\n\n'
    )
    (repository / "models/formulation.py").write_text(plugin.replace("    @classmethod", f"{other}    @classmethod"))
    config = CONFIG.replace("models/tiny.py", "models/formulation.py").replace(
        "formulation: stable", "formulation: other"
    )
    run = compare(repository, "formulation", config.replace("seed: 0", "seed: 1"))
    assert run.returncode != 0
    reason = str(found(repository, "formulation")["reason"].values[0])
    assert "formulation" in reason
    assert "other results were asked for: gradient.seed" in reason


@pytest.mark.slow
def test_a_damaged_reference_is_told(repository: Path):
    shutil.copytree(repository / "results/tiny", repository / "results/damaged")
    path = repository / "results/damaged/own/dynamics.nc"
    path.write_bytes(path.read_bytes()[:9000])
    run = snakemake(repository, "compare", "--configfile", "tiny.yaml", "--config", "reference=results/damaged")
    assert run.returncode != 0
    assert "dynamics.nc cannot be read as a result" in run.stdout and "Traceback" not in run.stdout
    (repository / "results/damaged/own/gradients.nc").unlink()
    run = snakemake(repository, "compare", "--configfile", "tiny.yaml", "--config", "reference=results/damaged")
    assert "results/damaged has no gradients.nc of any variant" in run.stdout and "Traceback" not in run.stdout


@pytest.mark.slow
def test_a_changed_value_in_a_file_is_found_and_named(repository: Path):
    shutil.copytree(repository / "results/tiny", repository / "results/copied")
    path = repository / "results/copied/own/dynamics.nc"
    with xr.open_dataset(path, decode_times=False) as ds:
        ds = ds.load()
    ds["x"][1, 2, 0] *= 1 + 1e-11
    ds.to_netcdf(path)
    run = snakemake(repository, "compare", "--configfile", "tiny.yaml", "--config", "reference=results/copied")
    assert run.returncode != 0
    assert "integrity: dynamics.nc is as written here, changed there" in run.stdout
    assert "files and what they say of themselves differ (dynamics.nc in the reference)" in run.stdout


def test_a_reference_that_is_none_is_told_before_anything_runs(repository: Path):
    for given, message in (
        ("reference=results", "results has no summary.nc and no model.nc"),
        ("reference=nowhere.zip", "found nothing at nowhere.zip"),
        ("scenario=x", "reference: found nothing, wanted the path of another run's results folder"),
    ):
        run = snakemake(repository, "compare", "--configfile", "tiny.yaml", "--config", given)
        assert run.returncode != 0
        assert message in run.stdout
        assert "Traceback" not in run.stdout


@pytest.mark.slow
def test_an_archive_is_computed_anew_in_a_bare_copy(repository: Path, tmp_path: Path):
    packed = snakemake(repository, "archive", "--configfile", "tiny.yaml")
    assert packed.returncode == 0, packed.stdout
    archive = shutil.copy(repository / "results/archives/tiny.zip", tmp_path / "downloaded.zip")
    bare = copy_repository(tmp_path / "bare")
    run = snakemake(bare, "reproduce", "--config", f"archive={archive}", "trust_plugin=true")
    assert run.returncode == 0, run.stdout
    told = run.stdout.index("environment and code are those of the archive")
    assert told < run.stdout.index("computing study tiny anew") < run.stdout.index("rule gradients_chunk")
    assert "tiny came out again" in run.stdout
    assert (bare / "results/tiny/comparison/index.html").is_file()
    ds = found(bare, "tiny")
    assert AGREEMENT[int(ds["variant_verdict"][0])] == "identical"
    # A changed archive is not computed.
    data = bytearray(Path(archive).read_bytes())
    data[len(data) // 2] ^= 1
    Path(archive).write_bytes(data)
    run = snakemake(bare, "reproduce", "--config", f"archive={archive}", "trust_plugin=true")
    assert run.returncode != 0
    assert "is not what was archived, so nothing is made of it" in run.stdout
    assert "rule gradients_chunk" not in run.stdout
