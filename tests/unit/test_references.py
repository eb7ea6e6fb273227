"""What another run is taken from: a results folder, or an archive that is whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from retrograd import archive, references
from retrograd.errors import RetrogradError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "tiny"
    (folder / "own").mkdir(parents=True)
    for name in ("model.nc", "summary.nc", "own/dynamics.nc", "own/gradients.nc"):
        (folder / name).write_text(name)
    return folder


def test_a_results_folder_is_one_with_a_model_and_a_summary(run: Path):
    assert references.results_folder(str(run)) == run
    assert references.variants_of(str(run)) == ["own"]


def test_a_folder_above_it_is_told(run: Path):
    with pytest.raises(RetrogradError, match=f"Did you mean {run.as_posix()}"):
        references.results_folder(str(run.parents[1]))


def test_a_run_that_is_not_finished_is_told(run: Path):
    (run / "summary.nc").unlink()
    with pytest.raises(RetrogradError, match=r"has no summary\.nc, so it is not"):
        references.results_folder(str(run))


def test_nothing_there_is_told(tmp_path: Path):
    with pytest.raises(RetrogradError, match="found nothing at"):
        references.digest_of(str(tmp_path / "nowhere"))


def test_the_digest_follows_the_results_and_nothing_else(run: Path):
    before = references.digest_of(str(run))
    (run / "logs").mkdir()
    (run / "logs" / "report.log").write_text("later")
    assert references.digest_of(str(run)) == before
    (run / "own/gradients.nc").write_text("others")
    assert references.digest_of(str(run)) != before


def packed(tmp_path: Path, files: dict[str, bytes]) -> tuple[str, str]:
    path = tmp_path / "some.zip"
    return str(path), archive.write(path, files)


def test_an_archives_digest_and_variants(tmp_path: Path):
    names = ("results/s/a/gradients.nc", "results/s/b/gradients.nc", "results/s/timings/gradients/c/0.nc", "x.txt")
    path, digest = packed(tmp_path, dict.fromkeys(names, b""))
    assert references.digest_of(path) == digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert references.variants_of(path) == ["a", "b"]


def test_an_archive_that_is_not_whole_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, digest = packed(tmp_path, {"config/config.yaml": b"study: s\n"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RetrogradError, match="is not what was archived, so nothing is made of it"):
        references.unpacked(path, ROOT, digest)
    assert not list(references.UNPACKED.glob("*"))


def test_an_archive_that_changed_since_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, digest = packed(tmp_path, {"x.txt": b"1"})
    packed(tmp_path, {"x.txt": b"2"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RetrogradError, match="has changed since this run was planned"):
        references.unpacked(path, ROOT, digest)


def test_what_is_unpacked_already_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    there = references.UNPACKED / ("a" * 32)
    there.mkdir(parents=True)
    assert references.unpacked("gone.zip", ROOT, "a" * 64) == there


def test_the_umask_is_left_as_it_was():
    before = os.umask(0o027)
    try:
        assert references._umask() == 0o027
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
