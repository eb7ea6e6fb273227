"""What an archive of a study holds, and how the files in it depend on each other.

Parsed with the Snakefile: nothing heavy may be imported at the top.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from retrograd import __version__
from retrograd.archive import CONFIG, MANIFEST, METADATA, file_facts
from retrograd.errors import RetrogradError
from retrograd.schema import STAGES
from retrograd.whole import seal_holds, to_rebuild

# All of the workflow that a run takes, and what explains it.
SOURCE = (
    *("Snakefile", "Makefile", "LICENSE", "pyproject.toml", "README.md", "CITATION.cff"),
    *("config/*.md", "config/variants.yaml", "envs/*", "scripts/*.py", "scripts/retrograd/*.py"),
    *("scripts/retrograd/*.j2", "workflow/*.md", "workflow/CITATION.cff"),
    *("workflow/rules/*", "workflow/report/*", "workflow/profiles/*/*"),
)
# The study has files of these names, which come first. In an unpacked archive they are the study's, and the workflow's
# own stand where they were moved.
_MOVED = {"README.md": "workflow/README.md", "CITATION.cff": "workflow/CITATION.cff"}
# What an archive holds that is made for it, under fixed names.
OWN = (CONFIG, "README.md", "CITATION.cff", ".zenodo.json", METADATA, MANIFEST)
# Values [bytes] that are read whatever the size of their file, and how far zlib can compress others (1,032).
SMALL, MOST_RATIO = 2**30, 1032
_JSON, _TEXTS = ("inputs", "environment", "config"), ("code_digest", "content_sha256")


def source(root: Path) -> dict[str, Path]:
    """Returns the workflow's own files, by their names in an archive."""
    paths = sorted(path for pattern in SOURCE for path in root.glob(pattern) if path.is_file())
    found = {path.relative_to(root).as_posix(): path for path in paths}
    return {_MOVED.get(name, name): path for name, path in found.items() if _MOVED.get(name) not in found}


def other_source(a: Path, b: Path) -> list[str]:
    """Returns the workflow's files that two folders do not have alike, sorted; texts, which run nothing, left out."""
    runs = lambda root: {n: path for n, path in source(root).items() if not n.endswith((".md", ".rst"))}
    one, other = ({name: file_facts(path) for name, path in runs(root).items()} for root in (a, b))
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def is_source(name: str) -> bool:
    """Returns whether a file of an archive has the name of one of the workflow's own."""
    path = PurePosixPath(name)
    return any(len(path.parts) == pattern.count("/") + 1 and path.match(pattern) for pattern in SOURCE)


def is_timing(file: str) -> bool:
    """Returns whether a result file holds the times that a job took: `results/STUDY/timings/STAGE/WORK/CHUNK.nc`."""
    return file.split("/")[2:3] == ["timings"]


def step_of(file: str) -> str:
    """Returns the rule that makes a result file, by its name in an archive: `results/STUDY/VARIANT/dynamics.nc`."""
    parts = file.split("/")
    if is_timing(file):
        return parts[3]
    stem = parts[-1].removesuffix(".nc")
    return "export" if stem == "model" else stem


def beside(file: str) -> list[str]:
    """Returns the tables that are written with a result file, by its name in an archive."""
    return [f"{file.rpartition('/')[0]}/simulations.tsv"] if step_of(file) == "fit" else []


def input_of(file: str, name: str, given: Mapping[str, str]) -> str | None:
    """Returns the file that a result file names as an input; None where archives do not hold it.

    - `given`: role -> name in the archive, of what the study was given.
    """
    if name in given:
        return given[name]
    folder, study = file.rpartition("/")[0], "/".join(file.split("/")[:2])
    if is_timing(file):
        # They are of chunks, and so are their other inputs.
        return f"{study}/model.nc" if name == "model" else None
    return f"{folder}/{name}.nc" if name in STAGES else f"{study}/{name}.nc"


def attributes(path: str | Path) -> dict[str, Any]:
    """Returns what a result file says of its origin: inputs, environment, config, code_digest, content_sha256."""
    import xarray as xr

    size = Path(path).stat().st_size
    with xr.open_datatree(path, engine="netcdf4", decode_times=False) as tree:
        there = dict(tree.attrs)
        # Nothing is read so far: what is declared and cannot be there would take all memory.
        declared = sum(var.nbytes for node in tree.subtree for var in node.variables.values())
    if declared > max(SMALL, MOST_RATIO * size):
        raise RetrogradError(f"{path} is said to hold {declared} bytes of values, which its {size} bytes cannot.")
    if missing := [name for name in (*_JSON, *_TEXTS) if f"retrograd_{name}" not in there]:
        raise RetrogradError(f"{path} has no attribute retrograd_{missing[0]}: it is no result of Retrograd.")
    said = {name: str(there[f"retrograd_{name}"]) for name in (*_JSON, *_TEXTS)}
    out = {name: json.loads(text) if name in _JSON else text for name, text in said.items()}
    if wrong := [name for name in _JSON if not isinstance(out[name], dict)]:
        raise RetrogradError(f"{path} has an attribute retrograd_{wrong[0]} that is no mapping.")
    return out


def broken_links(
    digests: Mapping[str, str], said: Mapping[str, Mapping[str, Any]], given: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Returns result files and what is wrong with them: computed from other files than those that are here.

    - `digests`: file -> sha256.
    - `said`: result file -> `attributes`.
    """
    out = []
    for file, about in said.items():
        for name, digest in sorted(about["inputs"].items()):
            source = input_of(file, name, given)
            if source is not None and digests.get(source) != digest:
                found = f"is {digests[source]} here" if source in digests else "is not here"
                out.append((file, f"was computed from a {name} of sha256 {digest}, but {source} {found}"))
    return out


def pack(root: Path, settings: Mapping[str, Any], results: Iterable[str], pages: Iterable[str]) -> dict[str, Any]:
    """Returns the files of an archive: name -> content, or where it is; raises RetrogradError where results differ.

    - `root`: the workflow's folder.
    - `settings`: as `Plan.archive_settings` gives them.
    - `results`, `pages`: netCDF files and those of the report, relative to the working directory.
    """
    from retrograd import crate

    study = yaml.safe_load(settings["config"])
    files = source(root)
    given = {role: name for role, (_, name) in settings["given"].items()}
    files |= {name: Path(file) for file, name in settings["given"].values()}
    results, pages = list(results), list(pages)
    files |= {name: Path(name) for name in (*results, *(t for n in results for t in beside(n)), *pages)}
    facts = {name: file_facts(path) for name, path in files.items()}
    if changed := [name for name in results if not seal_holds(files[name])]:
        first = changed[0]
        raise RetrogradError(
            f"{len(changed)} of the results are not as they were written, such as {first}. "
            f"{to_rebuild(step_of(first), first)}"
        )
    said = {name: attributes(files[name]) for name in results}
    if broken := broken_links({name: digest for name, (_, digest) in facts.items()}, said, given):
        lines = [f"{file} {what}" for file, what in broken[:10]]
        raise RetrogradError("\n  ".join(["These results are not of one run: rerun the study.", *lines]))
    head = f"# The study of this archive, with every default written out. Made by Retrograd {__version__}.\n"
    cited = yaml.safe_load(files[_MOVED["CITATION.cff"]].read_text(encoding="utf-8"))
    lock = (root / "envs/requirements.txt").read_text(encoding="utf-8")
    (snakemake,) = re.findall(r"^snakemake(?:\[\w+\])?==(\S+)", lock, re.M)
    software = {"version": __version__, "released": str(cited["date-released"]), "snakemake": snakemake}
    first = next(name for name in results if step_of(name) == "dynamics")
    environment = {k: v for k, v in said[first]["environment"].items() if k != "precision"}
    made = {
        CONFIG: (head + settings["config"]).encode(),
        "README.md": crate.readme(study, environment, software),
        "CITATION.cff": crate.citation(study, software),
        ".zenodo.json": crate.zenodo(study),
    }
    facts |= {name: file_facts(content) for name, content in made.items()}
    jobs = [
        (step_of(name), _job(name), _read(name, said[name]["inputs"], given), [name, *beside(name)])
        for name in sorted(results, key=lambda n: list(crate.STEPS).index(step_of(n)))
    ]
    shown = [n for n in results if not is_timing(n)]
    jobs.append(("report", "report", sorted({*shown, given["scenarios"]}), sorted(pages)))
    roles = {"config": CONFIG, **given}
    made[METADATA] = crate.metadata(study, roles, jobs, environment, facts, software)
    return files | made


def _job(file: str) -> str:
    return "/".join(file.removesuffix(".nc").split("/")[2:])


def _read(file: str, inputs: Iterable[str], given: Mapping[str, str]) -> list[str]:
    return sorted(source for name in inputs if (source := input_of(file, name, given)) is not None)
