"""Whether an archive is whole: bytes, names, and what each result says it was computed from. No model is loaded."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from retrograd.archive import CONFIG, MANIFEST, METADATA, Archive, Finding
from retrograd.errors import RetrogradError
from retrograd.packing import OWN, attributes, beside, broken_links, is_source, other_source, step_of
from retrograd.references import config_of, given_files

# What each check is called in the report, in order; a later one needs the ones before it.
CHECKS = ("names", "bytes", "metadata", "results", "code", "config", "summary")


@dataclass
class Inspected:
    """What was found in an archive.

    - `passed`: names of the checks that found nothing, and how many files they looked at.
    - `skipped`: names of checks that could not be made, and why.
    - `foreign`: files of the workflow's source that are not those of the present one.
    """

    findings: list[Finding] = field(default_factory=list)
    passed: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)


def inspect(path: str | os.PathLike[str], root: Path) -> Inspected:
    """Returns what is wrong with an archive; raises RetrogradError where it is no archive at all.

    - `root`: folder of the present workflow: where its code is the archive's, the settings of each result are
      derived anew from the archive's config.

    Each check trusts what the ones before it have shown, so the first that finds something is the last. What somebody
    else wrote can fail to be read in more ways than can be listed: `except Exception` makes each of them a finding.
    """
    out = Inspected()
    with Archive(path) as archive:
        if not _passed(out, "names", archive.structure, len(archive.names)):
            return out
        if not _passed(out, "bytes", archive.fixity, len(archive.names)):
            return out
        manifest = archive.manifest()
        if not _passed(out, "metadata", _metadata(archive, manifest), len(manifest)):
            return out
        with tempfile.TemporaryDirectory(prefix="retrograd-") as folder:
            archive.unpack(folder)
            there = Path(folder)
            _look_inside(out, there, manifest, root)
    return out


def _passed(out: Inspected, name: str, findings: list[Finding], count: int) -> bool:
    out.findings += findings
    if not findings:
        out.passed[name] = count
    return not findings


def _metadata(archive: Archive, manifest: dict[str, str]) -> list[Finding]:
    try:
        graph = json.loads(archive.read(METADATA))["@graph"]
        said = {e["@id"]: e.get("sha256") for e in graph if "File" in _types(e)}
    except Exception as error:
        return [Finding(METADATA, f"is no RO-Crate metadata ({type(error).__name__}: {error})")]
    out = [Finding(name, f"is not described in {METADATA}") for name in manifest if name not in {*said, METADATA}]
    for name, digest in said.items():
        if name in (METADATA, MANIFEST):
            continue
        if name not in manifest:
            out.append(Finding(name, f"is described in {METADATA}, but is not here"))
        elif digest != manifest[name]:
            out.append(Finding(name, f"has sha256 {manifest[name]}, but {METADATA} says {digest}"))
    return out


def _types(entity: dict[str, Any]) -> list[str]:
    types = entity["@type"]
    return types if isinstance(types, list) else [types]


def _look_inside(out: Inspected, there: Path, manifest: dict[str, str], root: Path) -> None:
    from retrograd.plan import SCRIPTS
    from retrograd.provenance import code_digest
    from retrograd.store import content_digest_of

    try:
        given = given_files(config_of(there), there)
    except RetrogradError as error:
        out.findings.append(Finding(CONFIG, str(error).removeprefix(f"{CONFIG}: ")))
        return
    except Exception as error:
        out.findings.append(Finding(CONFIG, f"is no config of a study ({type(error).__name__}: {error})"))
        return
    said, findings = dict[str, dict[str, Any]](), list[Finding]()
    for name in manifest:
        if name.startswith("results/") and name.endswith(".nc"):
            try:
                said[name] = attributes(there / name)
                content = content_digest_of(there / name)
            except Exception as error:
                findings.append(Finding(name, f"cannot be read as a result ({error})"))
                continue
            if content != said[name]["content_sha256"]:
                findings.append(Finding(name, f"holds other values than were computed: its content has {content}"))
    findings += [Finding(file, what) for file, what in broken_links(manifest, said, given)]
    if not _passed(out, "results", findings, len(said)):
        return
    code, findings = dict[str, str](), list[Finding]()
    for name, about in said.items():
        rule = step_of(name)
        try:
            code[rule] = code.get(rule) or code_digest(there / "scripts" / SCRIPTS[rule])
        except Exception as error:
            what = f"has no rule here, or none whose code can be read ({type(error).__name__}: {error})"
            findings.append(Finding(name, what))
            continue
        if about["code_digest"] != code[rule]:
            findings.append(Finding(name, f"was computed by code of digest {about['code_digest']}, not {code[rule]}"))
    if not _passed(out, "code", findings, len(said)):
        return
    out.foreign = other_source(there, root)
    if _settings(out, there, manifest, said, root):
        _derived(out, there, said, root)


def _same_code(there: Path, root: Path, name: str) -> bool:
    # Of a module or script with all that it uses: what was added beside them changes nothing.
    from retrograd.provenance import code_digest

    return code_digest(there / "scripts" / name) == code_digest(root / "scripts" / name)


def _derived(out: Inspected, there: Path, said: dict[str, dict[str, Any]], root: Path) -> None:
    """Checks that outcomes and tables of simulations are what follows from other files: nothing is computed from them,
    so nothing else would show a change."""
    from retrograd import store
    from retrograd.plan import SCRIPTS
    from retrograd.summary import summarize

    (name,) = (name for name in said if name.endswith("/summary.nc"))
    if not _same_code(there, root, SCRIPTS["summary"]):
        out.skipped["summary"] = "outcomes follow from results only by the archive's own code, which is not the present"
        return
    try:
        written = store.read(there / name, "summary")
        again = summarize(str((there / name).parent), store.config_of(written))
        apart = [str(n) for n in again.variables if not again[n].variable.equals(written[n].variable)]
    except Exception as error:
        out.findings.append(Finding(name, f"cannot be derived anew ({type(error).__name__}: {error})"))
        return
    findings = [Finding(name, f"says another {n} than the stages' files") for n in apart]
    tables = [(file, table) for file in said for table in beside(file)]
    findings += [Finding(t, f"says something else than {f}") for f, t in tables if not _same_table(there, root, f, t)]
    _passed(out, "summary", findings, 1 + len(tables))


def _same_table(there: Path, root: Path, file: str, table: str) -> bool:
    from retrograd.simulations import simulation_lines
    from retrograd.store import read

    if not _same_code(there, root, "retrograd/simulations.py"):
        # By other code another text may follow: the manifest alone holds it then.
        return True
    try:
        lines = simulation_lines(read(there / file, "fit"))
        with open(there / table, "rb") as written:
            return all(a == b for a, b in zip_longest(written, (line.encode() for line in lines)))
    except Exception:
        return False


def _settings(
    out: Inspected, there: Path, manifest: dict[str, str], said: dict[str, dict[str, Any]], root: Path
) -> bool:
    """Checks that each result has the settings that the archive's config gives it, and that nothing was added."""
    from retrograd.plan import Plan

    if not _same_code(there, root, "retrograd/plan.py"):
        for check in ("config", "summary"):
            out.skipped[check] = "it follows from others only by the archive's own code, which is not the present"
        return False
    try:
        with _inside(there):
            plan = Plan(yaml.safe_load(Path(CONFIG).read_text(encoding="utf-8")), Path())
            # Times have no settings of their own.
            wanted = dict.fromkeys(plan.result_files()) | plan.settings_of_results()
            given, page = plan.user_files().values(), f"{plan.results}/report/index.html"
            tables = plan.tables()
    except Exception as error:
        out.findings.append(Finding(CONFIG, f"does not describe a study that runs: {error}"))
        return False
    known = {*OWN, *given}
    unknown = [n for n in manifest if n not in known and not n.startswith(f"{plan.results}/") and not is_source(n)]
    findings = [Finding(name, "is neither the study's nor the workflow's: it was added") for name in unknown]
    findings += [] if page in manifest else [Finding(page, "is the study's report, but is not here")]
    findings += [Finding(name, "is a result of the config, but is not here") for name in wanted if name not in said]
    findings += [Finding(t, "is a result of the config, but is not here") for t in tables if t not in manifest]
    for name, about in said.items():
        if name not in wanted:
            findings.append(Finding(name, f"is no result of {CONFIG}"))
        elif (settings := wanted[name]) is not None and about["config"] != json.loads(settings):
            findings.append(Finding(name, f"was computed with other settings than {CONFIG} gives"))
    return _passed(out, "config", findings, len(said))


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
