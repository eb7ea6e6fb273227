"""Archives as containers: bytes follow from the contents, every change is found, and nothing unsound is unpacked."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from retrograd import archive
from retrograd.archive import MANIFEST, Archive, Finding, bad_name, bad_names, file_facts
from retrograd.errors import RetrogradError
from retrograd.packing import OWN, is_timing, source, step_of
from retrograd.plan import Plan

ROOT = Path(__file__).parents[2]

FILES = {
    "results/s/summary.nc": bytes(range(256)),
    "README.md": b"# A study\n",
    "empty": b"",
    "config/config.yaml": b"study: s\n",
}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "s.zip"
    archive.write(path, FILES)
    return path


def found(path: Path) -> list[str]:
    """Returns what `verify` would say of the container."""
    try:
        with Archive(path) as opened:
            return [str(f) for f in opened.structure or opened.fixity]
    except RetrogradError as error:
        return [str(error)]


def remade(path: Path, target: Path, change) -> Path:
    """Writes an archive anew with Python's own writer, after `change` of its list of (ZipInfo, content)."""
    with zipfile.ZipFile(path) as old:
        members = [(info, old.read(info)) for info in old.infolist()]
    change(members)
    with zipfile.ZipFile(target, "w") as new:
        for info, content in members:
            info.header_offset = 0
            new.writestr(info, content)
    return target


# -- what is written ----------------------------------------------------------------------------------------


def test_an_archive_is_read_by_others(made: Path, tmp_path: Path):
    with zipfile.ZipFile(made) as opened:
        assert opened.testzip() is None
        assert {n: opened.read(n) for n in opened.namelist() if n != MANIFEST} == FILES
        assert all(i.compress_type == zipfile.ZIP_STORED and i.date_time[0] == 1980 for i in opened.infolist())
    if shutil.which("unzip"):
        subprocess.run(["unzip", "-q", made, "-d", tmp_path / "there"], check=True)
        modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "there").rglob("*") if p.is_file()}
        assert modes == {0o644}


def test_the_manifest_is_what_sha256sum_reads(made: Path, tmp_path: Path):
    if not shutil.which("sha256sum"):
        pytest.skip("there is no sha256sum here")
    with Archive(made) as opened:
        opened.unpack(tmp_path / "there")
    check = ["sha256sum", "--check", "--strict", "--quiet", MANIFEST]
    subprocess.run(check, cwd=tmp_path / "there", check=True)
    (tmp_path / "there/empty").write_bytes(b"x")
    assert subprocess.run(check, cwd=tmp_path / "there", capture_output=True).returncode != 0


def test_the_same_contents_give_the_same_bytes(made: Path, tmp_path: Path):
    files = {}
    for i, (name, content) in enumerate(reversed(FILES.items())):
        files[name] = tmp_path / f"other{i}"
        files[name].write_bytes(content)
        files[name].chmod(0o600)
        os.utime(files[name], (10**9 + i, 10**9 + i))
    digest = archive.write(tmp_path / "other.zip", files)
    assert (tmp_path / "other.zip").read_bytes() == made.read_bytes()
    assert digest == hashlib.sha256(made.read_bytes()).hexdigest()


def test_nothing_is_left_of_an_archive_that_could_not_be_written(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        archive.write(tmp_path / "s.zip", {"a": tmp_path / "is not here"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, 1, 10, 300, 700])
def test_large_archives_have_64_bit_fields(limit, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(archive, "_LIMIT", limit)
    path = tmp_path / "s.zip"
    archive.write(path, FILES)
    assert b"PK\6\6" in path.read_bytes()
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
        assert {n: opened.read(n) for n in opened.namelist() if n != MANIFEST} == FILES
    if shutil.which("unzip"):
        assert subprocess.run(["unzip", "-tq", path], capture_output=True).returncode == 0
    assert found(path) == []


def test_many_files(tmp_path: Path):
    path = tmp_path / "s.zip"
    archive.write(path, {f"results/{i:05d}": b"" for i in range(66_000)})
    with zipfile.ZipFile(path) as opened:
        assert len(opened.namelist()) == 66_001


# -- what is found ------------------------------------------------------------------------------------------


def test_a_whole_archive_has_no_findings(made: Path):
    assert found(made) == []


def test_every_flipped_bit_of_every_byte_is_found(made: Path, tmp_path: Path):
    good, path = made.read_bytes(), tmp_path / "flipped.zip"
    missed = []
    for i in range(len(good)):
        bad = bytearray(good)
        bad[i] ^= 1 << (i % 8)
        path.write_bytes(bad)
        if not found(path):
            missed.append(i)
    assert missed == []


def test_every_truncation_is_found(made: Path, tmp_path: Path):
    good, path = made.read_bytes(), tmp_path / "short.zip"
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert found(path), length


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_other_bytes_are_found(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a")
    archive.write(folder / "s.zip", FILES)
    good = (folder / "s.zip").read_bytes()
    at = data.draw(st.integers(0, len(good)))
    cut = data.draw(st.integers(0, 20))
    new = data.draw(st.binary(max_size=20))
    bad = good[:at] + new + good[at + cut :]
    (folder / "s.zip").write_bytes(bad)
    assert bool(found(folder / "s.zip")) == (bad != good)


def test_findings_name_the_file(made: Path, tmp_path: Path):
    def change(members):
        info, content = members[0]
        members[0] = (info, content + b"x")

    name = sorted([*FILES, MANIFEST])[0]
    (only,) = found(remade(made, tmp_path / "b.zip", change))
    assert only.startswith(f"{name}: was changed: its sha256 is ")


def test_missing_added_and_exchanged_files_are_named(made: Path, tmp_path: Path):
    def without(members):
        members[:] = [m for m in members if m[0].filename != "empty"]

    def more(members):
        members.append((zipfile.ZipInfo("zzz", (1980, 1, 1, 0, 0, 0)), b"new"))
        members[-1][0].external_attr = 0o100644 << 16

    def exchanged(members):
        (a, x), (b, y), *rest = members
        members[:] = [(a, y), (b, x), *rest]

    assert found(remade(made, tmp_path / "a.zip", without)) == ["empty: is missing"]
    assert found(remade(made, tmp_path / "b.zip", more)) == ["zzz: was added: the manifest does not name it"]
    names = [f.partition(":")[0] for f in found(remade(made, tmp_path / "c.zip", exchanged))]
    assert names == sorted([*FILES, MANIFEST])[:2]


def test_bytes_outside_the_files_are_found(made: Path, tmp_path: Path):
    good = made.read_bytes()
    path = tmp_path / "b.zip"
    path.write_bytes(good + b"more")
    assert found(path) == [f"there are bytes behind the end of the zip, from byte {len(good)} on"]
    path.write_bytes(b"#!/bin/sh\n" + good)
    assert found(path) == ["byte 0 of the zip, outside its files, was changed"]
    end = good.rindex(b"PK\5\6")
    path.write_bytes(good[: end + 20] + struct.pack("<H", 5) + b"hello")
    (only,) = found(path)
    assert "outside its files" in only


def test_no_zip(tmp_path: Path):
    path = tmp_path / "no.zip"
    path.write_text("not a zip")
    (only,) = found(path)
    assert "is no zip" in only
    assert "cannot be opened" in found(tmp_path / "missing.zip")[0]
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("a.txt", "a")
        out.getinfo("a.txt").external_attr = 0o100644 << 16
    (only,) = found(path)
    assert f"holds no {MANIFEST}" in only


# -- what is not unpacked -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("../out", "/etc/passwd", "a/../../out", "..", ".", "a//b", "a/", "", " ", "a\\..\\out", "C:/out", "C:out"),
        *("nul\0name", "new\nline", "a/./b", "tab\t", "ä", "con:", "a?", "dot.", "blank ", "-/..", "a*b", '"'),
        *("a" * 256, "a/" * 500 + "b"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name, made: Path, tmp_path: Path):
    assert bad_name(name)
    with pytest.raises(RetrogradError, match="cannot be archived"):
        archive.write(tmp_path / "b.zip", {name: b""})


@pytest.mark.parametrize("names", [("a", "A"), ("a", "a/b"), ("A/b/c", "a/B"), (MANIFEST,)])
def test_names_that_cannot_stand_side_by_side_are_refused(names, tmp_path: Path):
    with pytest.raises(RetrogradError, match=r"is there twice, or differs|is the name of a folder too"):
        archive.write(tmp_path / "b.zip", dict.fromkeys(names, b""))


@pytest.mark.parametrize("name", ["a", "results/s/x.nc", ".zenodo.json", "a b/c-d_e+f=g@h,i~(1).txt", "...x"])
def test_plain_names_are_taken(name):
    assert not bad_name(name)


def hostile(info: zipfile.ZipInfo, content: bytes = b"x"):
    return lambda members: members.append((info, content))


def entry(name: str, mode: int = 0o100644, kind: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr, info.compress_type = mode << 16, kind
    return info


@pytest.mark.parametrize(
    ("info", "content", "what"),
    [
        (entry("../../out"), b"x", "leads out of the archive"),
        (entry("/out"), b"x", "is no relative path"),
        (entry("link", stat.S_IFLNK | 0o777), b"/etc/passwd", "is no plain file"),
        (entry("device", stat.S_IFCHR | 0o666), b"", "is no plain file"),
        (entry("folder/", stat.S_IFDIR | 0o755), b"", "leads out of the archive"),
        (entry("setuid", 0o104755), b"x", "is no plain file"),
        (entry("bomb", kind=zipfile.ZIP_DEFLATED), bytes(10**7), "is compressed"),
        (entry("EMPTY"), b"", "is there twice"),
        (entry("empty/file"), b"", "is the name of a folder too"),
        (entry("long/" * 300 + "x"), b"", "is longer than some systems take"),
    ],
    ids=lambda v: v.filename if isinstance(v, zipfile.ZipInfo) else None,
)
def test_hostile_archives_are_found_and_not_unpacked(info, content, what, made: Path, tmp_path: Path):
    path = remade(made, tmp_path / "bad.zip", hostile(info, content))
    findings = found(path)
    assert any(what in f for f in findings), findings
    inside = tmp_path / "deep/er"
    with Archive(path) as opened, pytest.raises(RetrogradError, match="is not unpacked"):
        opened.unpack(inside)
    assert not inside.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"s.zip", "bad.zip"}


def test_one_file_twice(made: Path, tmp_path: Path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = remade(made, tmp_path / "bad.zip", hostile(entry("empty")))
    assert any("is there twice" in f for f in found(path))


def test_unpacked_is_what_was_packed(made: Path, tmp_path: Path):
    with Archive(made) as opened:
        paths = opened.unpack(tmp_path / "there")
    assert {p.relative_to(tmp_path / "there").as_posix() for p in paths} == {*FILES, MANIFEST}
    assert all((tmp_path / "there" / name).read_bytes() == content for name, content in FILES.items())
    with Archive(made) as opened, pytest.raises(FileExistsError):
        opened.unpack(tmp_path / "there")


def test_only_an_archive_that_was_checked_is_unpacked_and_it_is_checked_once(made: Path, tmp_path: Path, monkeypatch):
    good, bad = made.read_bytes(), tmp_path / "bad.zip"
    bad.write_bytes(good.replace(FILES["README.md"], FILES["README.md"].upper()))
    with Archive(bad) as opened, pytest.raises(RetrogradError, match=r"README\.md: was changed"):
        opened.unpack(tmp_path / "bad")
    bad.write_bytes(good + b"more")
    with Archive(bad) as opened, pytest.raises(RetrogradError, match="behind the end"):
        opened.unpack(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    with Archive(made) as opened:
        assert opened.structure == opened.fixity == []
        read, blocks = [], opened.blocks
        monkeypatch.setattr(opened, "blocks", lambda name: read.append(name) or blocks(name))
        opened.unpack(tmp_path / "good")
    assert read == opened.names


def test_file_facts(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert file_facts(path) == file_facts(b"abc") == (3, hashlib.sha256(b"abc").hexdigest())


def test_times_are_told_by_their_place_in_the_study():
    times, result = "results/s/timings/gradients/0123/0.nc", "results/timings/own/dynamics.nc"
    assert (is_timing(times), is_timing(result)) == (True, False)
    assert (step_of(times), step_of(result)) == ("gradients", "dynamics")


def test_findings_are_text_that_a_log_takes():
    assert str(Finding("a\ud800", "\x1b[2Jis\nä")) == r"a\ud800: \x1b[2Jis" + "\nä"


# -- names of what a study is given -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "weights", "scenarios", "names"),
    [
        ("m.py", "w.eqx", "s.tsv", ["m.py", "w.eqx", "s.tsv"]),
        *(("m.py", "w.eqx", own, ["m.py", "w.eqx", f"study/{own}"]) for own in OWN if "/" not in own),
        ("m.py", "w.eqx", "readme.MD", ["m.py", "w.eqx", "study/readme.MD"]),
        ("m.py", "w.eqx", "M.py", ["m.py", "w.eqx", "study/M.py"]),
        ("../x/m.py", "../x/w.eqx", "../x/b/m.py", ["study/m.py", "study/w.eqx", "study/scenarios.tsv"]),
        ("../x/m.py", "../x/w.eqx", "../x/b/W.eqx", ["study/m.py", "study/w.eqx", "study/scenarios.tsv"]),
        ("../x/m.py", "../x/ü.eqx", "../x/s.ü", ["study/m.py", "study/weights.eqx", "study/scenarios.tsv"]),
        ("../x/m.py", "w.eqx", "study", ["study/m.py", "w.eqx", "study/study"]),
    ],
)
def test_what_a_study_is_given_gets_names_of_its_own(plugin, weights, scenarios, names, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8"))
    model = config["model"]
    for file, original in ((plugin, model["plugin"]), (weights, model["weights"]), (scenarios, config["scenarios"])):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / original, file)
    config |= {"model": {**model, "plugin": plugin, "weights": weights}, "scenarios": scenarios}
    assert [name for _, name in Plan(config, ROOT).given().values()] == names
    assert bad_names([*source(ROOT), *OWN, *names]) == []
