"""Models in SBML and Antimony, as studies like any other: from the file to an archive."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pipeline
import pytest
import yaml

import retrograd
from retrograd.loading import load_study
from retrograd.messages import ConfigError

antimony = pytest.importorskip("antimony", reason="the extra petab is not installed: no Antimony")

VARIANTS = Path(__file__).parents[2] / "config" / "variants.yaml"
# An exchange with a conserved total, and what is made and used up beside it.
MODEL = """model exchange
  J0: A -> B; k1*A
  J1: B -> A; k2*B
  J2: -> E; kin
  J3: E -> ; kout*E*A
  A = 1; B = 0; E = 0.1
  k1 = 0.3; k2 = 2.0; kin = 1; kout = 0.5
end
"""
TABLE = "scenario\tk1\tk2@dynamic\na\t0.5\t1\nb\t5\t30\n"


def sbml(text: str) -> str:
    antimony.clearPreviousLoads()
    assert antimony.loadAntimonyString(text) >= 0, antimony.getLastError()
    return antimony.getSBMLString(antimony.getMainModuleName())


def study(model: dict[str, Any], scenarios: str | None = "mine.tsv", **more: Any) -> dict[str, Any]:
    given = {} if scenarios is None else {"scenarios": scenarios}
    times = {"start": 0.0, "stop": 4.0, "num": 5}
    return {"study": "mine", "model": model, "save_times": times, "variants": ["recommended"], **given, **more}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.tsv").write_text(TABLE)
    (tmp_path / "mine.ant").write_text(MODEL)
    (tmp_path / "mine.xml").write_text(sbml(MODEL))
    return tmp_path


def problems(config: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_study(config, VARIANTS)
    return str(caught.value)


def test_both_formats_give_the_same_study(folder: Path):
    studies = [
        load_study(study({kind: f"mine.{end}"}), VARIANTS) for kind, end in (("antimony", "ant"), ("sbml", "xml"))
    ]
    tables = [s.table for s in studies]
    assert tables[0].columns == tables[1].columns and tables[0].rows == tables[1].rows
    assert dict(zip(tables[0].columns, tables[0].rows[1], strict=True)) == {
        "k1": 5.0,
        "k2@dynamic": 30.0,
        "k2": 2.0,
        "kin": 1.0,
        "kout": 0.5,
        "default_compartment": 1.0,
    }
    # But for the names of the files and their digests.
    sources = [Path(s.model.plugin).read_text().partition("class ")[2] for s in studies]
    assert sources[0] == sources[1]
    # Made once, and found again.
    before = Path(studies[0].model.plugin).stat().st_mtime_ns
    assert load_study(study({"antimony": "mine.ant"}), VARIANTS).model.plugin == studies[0].model.plugin
    assert Path(studies[0].model.plugin).stat().st_mtime_ns == before


def test_without_a_table_the_file_is_the_scenario(folder: Path):
    table = load_study(study({"sbml": "mine.xml"}, None), VARIANTS).table
    assert table.ids == ("default",)
    assert dict(zip(table.columns, table.rows[0], strict=True))["k1"] == 0.3


def test_what_is_wrong_is_told_before_any_rule_runs(folder: Path):
    assert "found plugin beside sbml, wanted sbml alone" in problems(study({"sbml": "mine.xml", "plugin": "x.py"}))
    assert "model.sbml: found no file 'none.xml'" in problems(study({"sbml": "none.xml"}))
    assert "a name that ends in .xml or .sbml" in problems(study({"sbml": "mine.ant"}))
    (folder / "bad.ant").write_text("model bad\n A -> B; k*A; k = 1; A = 1; B = 0\n E1: at A < 0.5: B = 0\nend\n")
    assert "bad.ant: cannot be imported:\n    event E1" in problems(study({"antimony": "bad.ant"}))
    (folder / "mine.tsv").write_text("scenario\tk3\na\t1\n")
    assert "found no parameter 'k3' in the model, wanted one of k1, k2, kin" in problems(study({"sbml": "mine.xml"}))


@pytest.mark.e2e
# test_petab_cases has such an archive of a problem in PEtab.
@pytest.mark.slow
@pytest.mark.exhaustive
def test_from_the_file_to_an_archive(tmp_path_factory: pytest.TempPathFactory):
    repository = pipeline.copy_repository(tmp_path_factory.mktemp("imported"))
    (repository / "mine.tsv").write_text(TABLE)
    (repository / "mine.xml").write_text(sbml(MODEL))
    (repository / "mine.yaml").write_text(yaml.safe_dump(study({"sbml": "mine.xml"})))
    run = pipeline.snakemake(repository, "archive", "--configfile", "mine.yaml")
    assert run.returncode == 0, run.stdout
    there = repository / "results/mine/recommended"
    steady = retrograd.open_results(there / "steady_state.nc")
    # A + B = 1 stays, and E comes to rest where kin = kout E A.
    for scenario, k1 in (("a", 0.5), ("b", 5.0)):
        a = 2.0 / (k1 + 2.0)
        found = steady["x"].sel({"scenario": scenario}).values
        np.testing.assert_allclose(found, [a, 1 - a, 1 / (0.5 * a)], rtol=1e-9)
    gradients = retrograd.open_results(there / "gradients.nc")
    assert np.all(gradients["status"].values == 0)
    # The slow rate k1 + k2 of the exchange, after k2 was changed at the start of the dynamics.
    dynamics = retrograd.open_results(there / "dynamics.nc").sel({"scenario": "a"})
    a0, rest, rate = 2.0 / 2.5, 1.0 / 1.5, 1.5
    wanted = rest + (a0 - rest) * np.exp(-rate * dynamics["model_time"].values)
    np.testing.assert_allclose(dynamics["x"].sel({"state": "A"}).values, wanted, rtol=1e-5)
    archive = repository / "results/archives/mine.zip"
    with zipfile.ZipFile(archive) as held:
        names = {name.partition("/")[2] if name.startswith("mine/") else name for name in held.namelist()}
        assert {"mine.xml", "study/model.py", "study/scenarios.tsv"} <= names
        config = next(n for n in held.namelist() if n.endswith("config/config.yaml"))
        model = yaml.safe_load(held.read(config))["model"]
        graph = json.loads(held.read(next(n for n in held.namelist() if n.endswith("ro-crate-metadata.json"))))
    assert model["plugin"] == "study/model.py" and model["sbml"] == "mine.xml"
    assert any(entry["@id"] == "mine.xml" for entry in graph["@graph"])
    verified = pipeline.snakemake(repository, "verify", "--configfile", "mine.yaml", "--config", f"archive={archive}")
    assert verified.returncode == 0, verified.stdout
