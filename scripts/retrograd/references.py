"""The run that another one is compared with: a results folder, or an archive, which is checked and unpacked.

Nothing in it is trusted: no code of it runs, and of its numbers only shapes and names are relied on once they were
compared. Parsed with the Snakefile: nothing heavy may be imported at the top.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from retrograd.archive import CONFIG, Archive, bad_name
from retrograd.errors import RetrogradError
from retrograd.imported import source_files
from retrograd.messages import overgrown, show, stumbled
from retrograd.provenance import canonical, file_digest, text_digest
from retrograd.settings import is_name
from retrograd.study import IMPORTED

STAGE_FILES = ("steady_state.nc", "dynamics.nc", "gradients.nc")
# Where archives are unpacked, each under its sha256.
UNPACKED = Path(".snakemake", "retrograd", "archives")


def digest_of(path: str) -> str:
    """Returns a sha256 of a reference: of an archive that of the file, of a folder one over its result files.

    Raises RetrogradError where it is neither.
    """
    if Path(path).is_file():
        return file_digest(path)
    folder = results_folder(path)
    files = sorted(
        [folder / "model.nc", folder / "summary.nc", *(f for n in STAGE_FILES for f in folder.glob(f"*/{n}"))]
    )
    return text_digest(canonical({f.relative_to(folder).as_posix(): file_digest(f) for f in files}))


def results_folder(path: str) -> Path:
    """Returns the folder that holds `summary.nc` and `model.nc`; raises RetrogradError where there is none."""
    folder = Path(path)
    if not folder.exists():
        raise RetrogradError(
            f"reference: found nothing at {path}, wanted the results folder of a run (results/STUDY) or an archive."
        )
    missing = [name for name in ("summary.nc", "model.nc") if not (folder / name).is_file()]
    if not missing:
        return folder
    inside = sorted(p.parent.as_posix() for p in folder.glob("results/*/summary.nc"))
    inside += sorted(p.parent.as_posix() for p in folder.glob("*/summary.nc"))
    hint = f" Did you mean {inside[0]}?" if inside else ""
    raise RetrogradError(
        f"reference: {path} has no {' and no '.join(missing)}, so it is not the results folder of a finished run, "
        f"wanted one (results/STUDY) or an archive.{hint}"
    )


def plugin_of(path: str) -> str:
    """Returns the name of the plug-in in an archive that nobody has checked yet."""
    with Archive(path) as archive:
        if wrong := archive.structure:
            raise RetrogradError(f"{path}: {wrong[0]}. `snakemake verify` says all of it.")
        try:
            return show(yaml.safe_load(archive.read(CONFIG))["model"]["plugin"])
        except Exception as error:
            raise RetrogradError(f"{path}: {CONFIG} is no config of a study ({stumbled(error)}).") from error


def variants_of(path: str) -> list[str]:
    """Returns the variants that a reference has results of, sorted."""
    if Path(path).is_file():
        with Archive(path) as archive:
            found = [name.split("/") for name in archive.names if name.startswith("results/")]
        return sorted({parts[2] for parts in found if len(parts) == 4 and parts[3] == "gradients.nc"})
    found = sorted(file.parent.name for file in results_folder(path).glob("*/gradients.nc"))
    if not found:
        raise RetrogradError(
            f"reference: {path} has no gradients.nc of any variant: the run is not finished, or cut short."
        )
    return found


def unpacked(path: str, root: Path, digest: str) -> Path:
    """Returns the folder that an archive was unpacked into; raises RetrogradError where the archive is not whole.

    - `root`: the present workflow's folder.
    - `digest`: sha256 of the archive when the run was planned.
    """
    folder = UNPACKED / digest[:32]
    if folder.is_dir():
        return folder
    from retrograd.inspection import inspect

    if (now := file_digest(path)) != digest:
        raise RetrogradError(f"{path} has changed since this run was planned: its sha256 is {now}. Run it again.")
    if found := inspect(path, root).findings:
        lines = [str(f) for f in found[:20]] + ([f"and {len(found) - 20} more"] if len(found) > 20 else [])
        raise RetrogradError("\n  ".join([f"{path} is not what was archived, so nothing is made of it:", *lines]))
    UNPACKED.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=UNPACKED))
    try:
        with Archive(path) as archive:
            archive.unpack(temporary)
        # A mkdtemp folder is its owner's alone; results are as readable as others.
        temporary.chmod(0o777 & ~_umask())
        try:
            temporary.rename(folder)
        except OSError:
            # Another job was faster: what it unpacked has the same name, so the same contents.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def study_of(folder: Path) -> str:
    """Returns the name of an unpacked archive's study."""
    return str(config_of(folder)["study"])


def config_of(folder: Path) -> dict[str, Any]:
    """Returns the config of an unpacked archive; raises RetrogradError where it names files that are elsewhere.

    What is computed and compared is found by these names, in folders beside the archive's: none may lead out of it.
    """
    said = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    if why := overgrown(said):
        raise RetrogradError(f"{CONFIG}: {why}.")
    files = given_files(said, folder)
    if not is_name(said["study"]):
        raise RetrogradError(f"{CONFIG}: found the study {show(said['study'])}, wanted the name of a folder.")
    for role, name in files.items():
        first = name.split("/")[0].casefold()
        if bad_name(name) or first in (".snakemake", "results") or not (folder / name).is_file():
            raise RetrogradError(
                f"{CONFIG}: found the {role} {show(name)}, wanted a file of the study's in the archive."
            )
    return said


def given_files(config: Any, folder: Path) -> dict[str, str]:
    """Returns the files that a study is given, by role, as its config names them.

    - `folder`: of the archive, in which a model in several files says which they are.
    """
    model = config["model"]
    out = {"plugin": model["plugin"], "scenarios": config["scenarios"]}
    out |= {role: model[role] for role in ("weights", *IMPORTED) if model.get(role)}
    if wrong := [role for role, name in out.items() if not isinstance(name, str)]:
        raise TypeError(f"{wrong[0]} is no text")
    for kind in IMPORTED & out.keys():
        if not bad_name(out[kind]):
            first, *others = source_files(kind, folder / out[kind])
            out |= {f"{kind}/{os.path.relpath(f, first.parent)}": os.path.relpath(f, folder) for f in others}
    return out


def results_of(path: str, root: Path, digest: str) -> Path:
    """Returns the folder of a reference's results; arguments as for `unpacked`."""
    if not Path(path).is_file():
        return results_folder(path)
    folder = unpacked(path, root, digest)
    return results_folder(str(folder / "results" / study_of(folder)))
