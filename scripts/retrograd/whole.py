"""Files that appear under their name only when they are whole, and that can show that they still are."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# The last bytes of a sealed file: a sha256 of all bytes before them. HDF5 says in its head where its data ends and
# leaves alone what follows, until it opens the file for writing, which cuts it off.
_MARK = b"\nretrograd-sha256 "
_SEAL = len(_MARK) + 64 + 1
_BLOCK = 1 << 20


@contextmanager
def whole(path: str | os.PathLike[str], *, sealed: bool = False) -> Iterator[Path]:
    """Yields a place beside a file; what is written there takes the file's name at the end, or is dropped.

    - `sealed`: whether a digest of its bytes is put behind them, for `seal_holds`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            if sealed:
                file.write(_seal(file, os.path.getsize(temporary)))
                file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        # Where the file system is gone, what is told is that, and not this.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def seal_holds(path: str | os.PathLike[str]) -> bool | None:
    """Returns whether a file's bytes are those that were written, None where it carries no seal."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(size - _SEAL, 0))
        found = file.read()
        if not found.startswith(_MARK):
            return None
        file.seek(0)
        return _seal(file, size - _SEAL) == found


def to_rebuild(rule: str, *paths: str | os.PathLike[str]) -> str:
    """Returns the sentence that says how files that are not whole are made again."""
    return (
        f"Rule {rule} makes it: `snakemake --cores 1 --forcerun {' '.join(map(str, paths))}` makes it anew, with the "
        "--configfile of the study if it is not the default one."
    )


def _seal(file: BinaryIO, size: int) -> bytes:
    # Leaves the file's position behind the bytes that are digested.
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(_BLOCK, size))):
        digest.update(block)
        size -= len(block)
    return _MARK + digest.hexdigest().encode() + b"\n"


def _clear(target: Path) -> None:
    """Removes what a killed process left beside a file: it could not itself."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        process = left.name.split(".")[-2]
        if not process.isdecimal():
            continue
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (PermissionError, OverflowError):
            continue
