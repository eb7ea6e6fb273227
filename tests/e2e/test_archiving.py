"""`snakemake archive` and `verify`: a crate that its judge takes, the same bytes anywhere, tampering that is named."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import netCDF4
import pipeline
import pytest
import requests
import yaml
from requests_cache import CachedSession
from requests_cache.models import CachedResponse
from sealing import seal_again
from urllib3 import HTTPResponse

from retrograd import archive, packing
from retrograd.archive import CONFIG, MANIFEST, METADATA, Archive
from retrograd.errors import RetrogradError
from retrograd.inspection import CHECKS, inspect
from retrograd.packing import other_source
from retrograd.plan import Plan

pytestmark = pytest.mark.e2e

CONTEXT = "https://w3id.org/ro/crate/1.1/context"
PUBLICATION = """\
publication:
  title: Heat that flows in
  authors: [{name: "Carberry, Josiah", orcid: 0000-0002-1825-0097}]
  license: CC-BY-4.0
  date: 2026-11-23
"""


def archive_of(repository: Path) -> Path:
    return repository / "results/archives/tiny.zip"


@pytest.fixture(scope="session")
def archived(finished_run, tmp_path_factory) -> Path:
    """A copy of the finished run with its archive."""
    folder = tmp_path_factory.mktemp("archived") / "copy"
    shutil.copytree(finished_run, folder, symlinks=True)
    with open(folder / "tiny.yaml", "a") as file:
        file.write(PUBLICATION)
    run = pipeline.snakemake(folder, "archive", "--configfile", "tiny.yaml")
    assert run.returncode == 0, run.stdout
    # What the study says of itself changes none of its results.
    assert "rule dynamics" not in run.stdout
    assert "rule report" not in run.stdout
    return folder


@pytest.fixture(scope="session")
def unpacked(archived, tmp_path_factory) -> Path:
    """The archive's files. Read-only."""
    folder = tmp_path_factory.mktemp("unpacked") / "there"
    with Archive(archive_of(archived)) as opened:
        opened.unpack(folder)
    return folder


def test_the_archive_holds_what_a_run_takes(archived, unpacked):
    files = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    results = {p.relative_to(archived).as_posix() for p in (archived / "results/tiny").rglob("*.nc")}
    results = {name for name in results if "/chunks/" not in name}
    assert len(results) == 5
    pages = {p.relative_to(archived).as_posix() for p in (archived / "results/tiny/report").iterdir()}
    assert files >= results | pages | {
        "models/tiny.py",
        "models/tiny.safetensors",
        "tiny.tsv",
        CONFIG,
        METADATA,
        MANIFEST,
    }
    assert files >= {"Snakefile", "Makefile", "envs/requirements.txt", "envs/requirements-cuda12.txt", "LICENSE"}
    assert not {name for name in files if ".snakemake" in name or "/logs/" in name or name.endswith(".pyc")}
    for name in [*results, *pages, "models/tiny.py", "tiny.tsv", "Snakefile"]:
        assert (unpacked / name).read_bytes() == (archived / name).read_bytes()
    cited = yaml.safe_load((unpacked / "CITATION.cff").read_text())
    assert (cited["type"], cited["title"], cited["license"]) == ("dataset", "Heat that flows in", "CC-BY-4.0")
    assert cited["authors"] == [{"name": "Carberry, Josiah", "orcid": "https://orcid.org/0000-0002-1825-0097"}]
    told = json.loads((unpacked / ".zenodo.json").read_text())
    assert told["creators"] == [{"name": "Carberry, Josiah", "orcid": "0000-0002-1825-0097"}]
    assert told["publication_date"] == "2026-11-23"


def test_its_judge_takes_the_archive_without_network(unpacked, tmp_path):
    shipped = find_spec("rocrate")
    assert shipped is not None and shipped.origin is not None
    body = (Path(shipped.origin).parent / "data/ro-crate.jsonld").read_bytes()
    response = requests.Response()
    response.status_code, response.url, response._content = 200, CONTEXT, body
    response.headers["Content-Type"] = "application/ld+json"
    response.request = requests.Request("GET", CONTEXT).prepare()
    response.raw = HTTPResponse(body=io.BytesIO(body), headers=response.headers, status=200, preload_content=False)
    with CachedSession(str(tmp_path / "cache"), backend="sqlite", expire_after=-1) as session:
        session.cache.save_response(CachedResponse.from_response(response))
    judge = [str(Path(sys.executable).with_name("rocrate-validator")), "-y", "--disable-color", "validate"]
    options = ["--offline", "--cache-path", str(tmp_path / "cache"), "-l", "REQUIRED"]

    def judged(folder: Path) -> subprocess.CompletedProcess[str]:
        command = [*judge, *options, "-p", "provenance-run-crate-0.5", str(folder)]
        return subprocess.run(command, capture_output=True, text=True)

    run = judged(unpacked)
    assert run.returncode == 0, run.stdout
    # It can say no.
    broken = tmp_path / "broken"
    shutil.copytree(unpacked, broken)
    crate = json.loads((broken / METADATA).read_text())
    crate["@graph"] = [e for e in crate["@graph"] if e["@type"] != "HowToStep"]
    (broken / METADATA).write_text(json.dumps(crate))
    assert judged(broken).returncode == 1


@pytest.mark.exhaustive
def test_the_same_bytes_in_another_folder_by_another_user_on_another_day(archived, tmp_path):
    other = tmp_path / "some where else" / "ü"
    shutil.copytree(archived, other, symlinks=True)
    made = archive_of(other)
    first = made.read_bytes()
    made.unlink()
    for path in other.rglob("*"):
        if path.is_file():
            os.utime(path, (1.7e9, 1.7e9))
    somebody = pipeline.somebody(tmp_path)
    run = pipeline.snakemake(other, "archive", "--configfile", "tiny.yaml", surroundings=somebody, umask=0o077)
    assert run.returncode == 0, run.stdout
    assert made.read_bytes() == first


def test_verify_says_that_the_archive_is_whole(archived):
    made = archive_of(archived)
    run = pipeline.snakemake(archived, "verify", "--configfile", "tiny.yaml", "--config", f"archive={made}")
    assert run.returncode == 0, run.stdout
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    assert f"{made} is whole: sha256 {digest}" in run.stdout
    assert all(f"{check}: " in run.stdout for check in CHECKS)
    assert "not checked" not in run.stdout


def test_verify_names_what_was_changed(archived, tmp_path):
    bad = bytearray(archive_of(archived).read_bytes())
    at = bad.index(b"mild\t2.0")
    bad[at + 5] = ord("3")
    path = tmp_path / "bad.zip"
    path.write_bytes(bad)
    run = pipeline.snakemake(archived, "verify", "--configfile", "tiny.yaml", "--config", f"archive={path}")
    assert run.returncode != 0
    assert f"{path} is not what was archived:" in run.stdout
    assert "tiny.tsv: was changed" in run.stdout
    assert "Traceback" not in run.stdout


def test_verify_without_an_archive_says_what_it_wants(archived):
    run = pipeline.snakemake(archived, "verify", "--configfile", "tiny.yaml")
    assert run.returncode != 0
    assert "archive: found nothing, wanted the path of an archive" in run.stdout
    assert "snakemake verify --config archive=results/archives/tiny.zip" in run.stdout
    assert "Traceback" not in run.stdout


def test_verify_does_not_wait_for_a_pipe(archived, tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(RetrogradError, match="is no regular file, wanted a zip that `snakemake archive` made"):
        inspect(tmp_path / "pipe.zip", pipeline.ROOT)


def test_another_workflow_in_an_archive_is_told(unpacked, tmp_path):
    folder = shutil.copytree(unpacked, tmp_path / "there")
    (folder / "Snakefile").write_text((folder / "Snakefile").read_text() + "\n# changed\n")
    (folder / "workflow/rules/local.smk").unlink()
    assert other_source(folder, unpacked) == ["Snakefile", "workflow/rules/local.smk"]
    assert other_source(unpacked, pipeline.ROOT) == []


# -- somebody who repairs manifest and metadata behind a change -----------------------------------------------


def set_value(path: Path) -> None:
    with netCDF4.Dataset(path, "r+") as ds:
        ds["x"][0, 0, 0] = ds["x"][0, 0, 0] * (1 + 1e-9)


def set_value_and_digest(path: Path) -> None:
    from retrograd.store import content_digest_of

    set_value(path)
    with netCDF4.Dataset(path, "r+") as ds:
        ds.setncattr("retrograd_content_sha256", content_digest_of(path))


def claim_success(path: Path) -> None:
    from retrograd.store import content_digest_of

    with netCDF4.Dataset(path, "r+") as ds:
        ds["num_accepted"][:] = ds["num_accepted"][:] + 1
    with netCDF4.Dataset(path, "r+") as ds:
        ds.setncattr("retrograd_content_sha256", content_digest_of(path))
    seal_again(path)


def other_config_beside_new_script(path: Path) -> None:
    replace("1.0e-06", "1.0e-05")(path)
    (path.parents[1] / "scripts/added.py").write_text("")


def replace(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def plugin_that_runs(path: Path) -> None:
    path.write_text(path.read_text() + f"\nopen({str(path.parent / 'it ran')!r}, 'w')\n")


def say(attribute: str, text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with netCDF4.Dataset(path, "r+") as ds:
            ds.setncattr(f"retrograd_{attribute}", text)

    return change


def copy_of(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(folder for folder in path.parents if (folder / MANIFEST).exists()) / name, path)

    return change


DYNAMICS, GRADIENTS, STEADY = (f"results/tiny/own/{stage}.nc" for stage in ("dynamics", "gradients", "steady_state"))
TIMES = "results/tiny/timings/gradients/0/0.nc"


@pytest.mark.parametrize(
    ("file", "change", "check", "named"),
    [
        (DYNAMICS, set_value, "results", {DYNAMICS, GRADIENTS, "results/tiny/summary.nc"}),
        (DYNAMICS, set_value_and_digest, "results", {GRADIENTS, "results/tiny/summary.nc"}),
        ("results/tiny/summary.nc", lambda p: p.unlink(), "metadata", {"results/tiny/summary.nc"}),
        (STEADY, lambda p: p.write_bytes(b"no netCDF"), "results", {STEADY, DYNAMICS}),
        ("models/tiny.py", plugin_that_runs, "results", {"results/tiny/model.nc", DYNAMICS, GRADIENTS}),
        (
            "models/tiny.safetensors",
            lambda p: pipeline.write_weights(p, 0.010000001),
            "results",
            {"results/tiny/model.nc"},
        ),
        ("tiny.tsv", replace("mild", "wild"), "results", {STEADY, DYNAMICS, GRADIENTS}),
        ("scripts/retrograd/replay.py", replace("import", "import "), "code", {GRADIENTS}),
        (CONFIG, replace("1.0e-06", "1.0e-05"), "config", {DYNAMICS, GRADIENTS}),
        (CONFIG, lambda p: p.write_text("[1, 2"), "results", {CONFIG}),
        (METADATA, lambda p: p.write_text("{}"), "metadata", {METADATA}),
        # What nobody's workflow writes.
        *(
            (CONFIG, replace(old, new), "results", {CONFIG})
            for old in ("models/tiny.py", "models/tiny.safetensors", " tiny.tsv")
            for new in (" [1]", " {a: 1}", " 7")
        ),
        (CONFIG, lambda p: p.write_text("[" * 10_000), "results", {CONFIG}),
        (CONFIG, replace("directions: 1", "directions: &a [*a]"), "results", {CONFIG}),
        (METADATA, lambda p: p.write_text("[" * 200_000), "metadata", {METADATA}),
        *((GRADIENTS, say(name, "[1]"), "results", {GRADIENTS}) for name in ("inputs", "environment", "config")),
        ("results/x.nc", copy_of("results/tiny/model.nc"), "code", {"results/x.nc"}),
        ("results/tiny/own/foo.nc", copy_of(GRADIENTS), "code", {"results/tiny/own/foo.nc"}),
        ("results/tiny/timings/x.nc", copy_of(GRADIENTS), "code", {"results/tiny/timings/x.nc"}),
        (TIMES, copy_of(GRADIENTS), "config", {TIMES}),
        ("scripts/retrograd/replay.py", lambda p: p.write_text("("), "code", {GRADIENTS}),
        (CONFIG, other_config_beside_new_script, "config", {DYNAMICS, GRADIENTS}),
        ("added.txt", lambda p: p.write_text(""), "config", {"added.txt"}),
        # Nothing follows from the summary but the page.
        ("results/tiny/summary.nc", claim_success, "summary", {"results/tiny/summary.nc"}),
    ],
)
def test_a_change_that_manifest_and_metadata_follow_breaks_the_chain(file, change, check, named, unpacked, tmp_path):
    folder = tmp_path / "there"
    shutil.copytree(unpacked, folder)
    change(folder / file)
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    files = {name: folder / name for name in names if name not in (MANIFEST, "models/it ran")}
    if file != METADATA:
        crate = json.loads((folder / METADATA).read_text())
        told = {entity["@id"] for entity in crate["@graph"]}
        crate["@graph"] += [{"@id": name, "@type": "File", "sha256": ""} for name in files if name not in told]
        for entity in crate["@graph"]:
            if "sha256" in entity and entity["@id"] in files:
                entity["sha256"] = archive.file_facts(files[entity["@id"]])[1]
        (folder / METADATA).write_text(json.dumps(crate))
    archive.write(tmp_path / "bad.zip", files)
    found = inspect(tmp_path / "bad.zip", pipeline.ROOT)
    assert list(found.passed) == list(CHECKS[: CHECKS.index(check)])
    assert {f.file for f in found.findings} >= named
    assert not list(tmp_path.rglob("it ran"))


def test_results_of_two_runs_are_not_archived_together(archived, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(archived, other, symlinks=True)
    set_value(other / DYNAMICS)
    archive_of(other).unlink()
    command = ("archive", "--configfile", "tiny.yaml", "--rerun-triggers", "params", "--allowed-rules", "archive")
    run = pipeline.snakemake(other, *command)
    assert run.returncode != 0
    assert f"1 of the results are not as they were written, such as {DYNAMICS}. Rule dynamics makes it" in run.stdout
    seal_again(other / DYNAMICS)
    run = pipeline.snakemake(other, *command)
    assert run.returncode != 0
    assert "These results are not of one run" in run.stdout
    assert f"{GRADIENTS} was computed from a dynamics of sha256" in run.stdout


def test_the_unpacked_archive_packs_itself_again(archived, unpacked, tmp_path, monkeypatch):
    monkeypatch.chdir(unpacked)
    # What is read does not depend on the locale.
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: read_text(path, encoding))
    plan = Plan(yaml.safe_load(Path(CONFIG).read_text(encoding="utf-8")), Path())
    pages = [path.as_posix() for path in Path(plan.results, "report").iterdir()]
    files = packing.pack(Path(), json.loads(plan.archive_settings()), plan.result_files(), pages)
    assert {name for name, content in files.items() if isinstance(content, bytes)} == {*packing.OWN} - {MANIFEST}
    archive.write(tmp_path / "again.zip", files)
    assert (tmp_path / "again.zip").read_bytes() == archive_of(archived).read_bytes()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_unpacked_archive_computes_itself_again(archived, unpacked, tmp_path):
    folder = tmp_path / "there"
    shutil.copytree(unpacked, folder)
    shutil.rmtree(folder / "results")
    run = pipeline.snakemake(folder, "archive")
    assert run.returncode == 0, run.stdout
    made = {p.relative_to(folder): p for p in (folder / "results/tiny").rglob("*.nc") if "chunks" not in p.parts}
    assert len(made) == 5
    assert all(path.read_bytes() == (unpacked / name).read_bytes() for name, path in made.items())
    assert archive_of(folder).read_bytes() == archive_of(archived).read_bytes()
