"""An archive of a study: one zip that is a research object crate, a project that runs, and bytes that can be checked.

Files are stored, not compressed (netCDF is compressed inside), in the order of their names, with one date and one
mode: the same results give the same bytes, and every byte of the container follows from names and contents.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

from retrograd.errors import RetrogradError
from retrograd.messages import printable
from retrograd.whole import whole

MANIFEST = "manifest-sha256.txt"
METADATA = "ro-crate-metadata.json"
CONFIG = "config/config.yaml"

# The earliest date of the format, and a plain file that its owner writes.
_DATE, _MODE = (1980, 1, 1, 0, 0, 0), 0o100644
_BLOCK = 1 << 20
# Names that every system can hold; what Windows forbids is out, such as a colon or a dot at the end.
_NAME = re.compile(r"[A-Za-z0-9_+=@,~\-(). ]+")
# Files of an archive: a study of any size has a few thousand.
MOST_FILES = 100_000
# What a 32-bit field of the format says where a 64-bit one holds the number, and from where on it does.
_MARK = 0xFFFFFFFF
_LIMIT = _MARK
# What reading a file raises whose place or checksum is wrong.
_DAMAGE = (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with an archive."""

    file: str  # name in the archive; empty where it is the container itself
    what: str

    def __str__(self) -> str:
        # Names and values are what somebody wrote.
        return printable(f"{self.file}: {self.what}" if self.file else self.what)


def bad_name(name: str) -> str:
    """Returns why a file of that name is not unpacked, empty where it may be."""
    if not name or name != name.strip() or "\0" in name:
        return "the name is empty, or begins or ends with a blank"
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        return "the name is no relative path"
    if any(part in ("", ".", "..") for part in parts):
        return "the name leads out of the archive"
    if any(part.endswith((".", " ")) or not _NAME.fullmatch(part) for part in parts):
        return "the name has characters that some systems do not take"
    if len(name) > 1000 or any(len(part) > 255 for part in parts):
        return "the name is longer than some systems take"
    return ""


def bad_names(names: Collection[str]) -> list[tuple[str, str]]:
    """Returns names under which files are not unpacked, alone or beside the others, and why."""
    why = {name: bad_name(name) for name in names}
    folders = {str(f).casefold() for name in names if not why[name] for f in PurePosixPath(name).parents}
    out, seen = [], dict[str, str]()
    for name in names:
        if why[name]:
            out.append((name, why[name]))
        elif other := seen.get(name.casefold()):
            out.append((name, f"is there twice, or differs from {other} in capitals only"))
        elif name.casefold() in folders:
            out.append((name, "is the name of a folder too"))
        seen[name.casefold()] = name
    return out


# -- writing ----------------------------------------------------------------------------------------------


def write(path: str | os.PathLike[str], files: Mapping[str, bytes | Path]) -> str:
    """Writes an archive with its manifest, atomically; returns its sha256.

    - `files`: name -> content, or the file that holds it.
    """
    # The manifest among them: a file of its name would be lost.
    if wrong := [f"{name}: {why}" for name, why in bad_names([*files, MANIFEST])]:
        raise RetrogradError("These files cannot be archived under their names:\n  " + "\n  ".join(wrong))
    contents = dict(files)
    members = {name: _Member.of(name, _blocks(content)) for name, content in contents.items()}
    contents[MANIFEST] = "".join(f"{members[name].sha256}  {name}\n" for name in sorted(members)).encode()
    members[MANIFEST] = _Member.of(MANIFEST, _blocks(contents[MANIFEST]))
    digest = hashlib.sha256()
    with whole(path) as temporary, open(temporary, "wb") as out:
        for block in _container([members[name] for name in sorted(members)], lambda m: _blocks(contents[m.name])):
            out.write(block)
            digest.update(block)
    return digest.hexdigest()


def _blocks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with open(content, "rb") as file:
        while block := file.read(_BLOCK):
            yield block


def file_facts(content: bytes | Path) -> tuple[int, str]:
    """Returns size and sha256 of a content, or of the file that holds it."""
    member = _Member.of("", _blocks(content))
    return member.size, member.sha256


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    crc: int
    sha256: str

    @classmethod
    def of(cls, name: str, blocks: Iterable[bytes]) -> _Member:
        size, crc, digest = 0, 0, hashlib.sha256()
        for block in blocks:
            size, crc = size + len(block), zlib.crc32(block, crc)
            digest.update(block)
        return cls(name, size, crc, digest.hexdigest())


def _container(members: Iterable[_Member], blocks: Callable[[_Member], Iterator[bytes]]) -> Iterator[bytes]:
    """Yields the bytes of a zip (PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5) with stored members, in this order.

    Nothing in it is free: no comment, no extra field but the sizes that need 64 bits, one date, one mode.
    """
    directory, offset, count = io.BytesIO(), 0, 0
    date = (_DATE[0] - 1980) << 9 | _DATE[1] << 5 | _DATE[2]
    for m in members:
        name = m.name.encode("ascii")
        large, far = m.size >= _LIMIT, offset >= _LIMIT
        size = _MARK if large else m.size
        version = 45 if large or far else 20
        extra = struct.pack("<HHQQ", 1, 16, m.size, m.size) if large else b""
        head = struct.pack("<4s5H3L2H", b"PK\3\4", version, 0, 0, 0, date, m.crc, size, size, len(name), len(extra))
        yield head + name + extra
        yield from blocks(m)
        sizes = struct.pack("<QQ", m.size, m.size) if large else b""
        sizes += struct.pack("<Q", offset) if far else b""
        extra = struct.pack("<HH", 1, len(sizes)) + sizes if sizes else b""
        directory.write(
            struct.pack(
                "<4s6H3L5H2L",
                *(b"PK\1\2", 3 << 8 | version, version, 0, 0, 0, date, m.crc, size, size, len(name), len(extra)),
                *(0, 0, 0, _MODE << 16, _MARK if far else offset),
            )
            + name
            + extra
        )
        local = 30 + len(name) + (20 if large else 0)
        offset, count = offset + local + m.size, count + 1
    yield directory.getvalue()
    length = directory.tell()
    if count >= 0xFFFF or offset >= _LIMIT or length >= _LIMIT:
        yield struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 3 << 8 | 45, 45, 0, 0, count, count, length, offset)
        yield struct.pack("<4sLQL", b"PK\6\7", 0, offset + length, 1)
    few, here = min(count, 0xFFFF), min(offset, _MARK)
    yield struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, few, few, min(length, _MARK), here, 0)


# -- reading ----------------------------------------------------------------------------------------------


class Archive:
    """An archive that is open for reading. Nothing in it is trusted before `structure` and `fixity` find nothing.

    Raises RetrogradError where the file is no zip.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # A pipe would be waited for, for ever.
        if self.path.exists() and not self.path.is_file():
            raise RetrogradError(
                f"The archive {self.path} is no regular file, wanted a zip that `snakemake archive` made."
            )
        try:
            # Open for as long as this is.
            self._file: IO[bytes] = open(self.path, "rb")  # noqa: SIM115
        except OSError as error:
            raise RetrogradError(f"The archive {self.path} cannot be opened: {error.strerror}.") from None
        try:
            self._zip = zipfile.ZipFile(self._file)
        except Exception as error:
            self._file.close()
            raise RetrogradError(
                f"{self.path} is no zip, or what is left of one ({error}): fetch it again, and compare its sha256."
            ) from None
        self.names = [info.filename for info in self._zip.infolist()]

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: Any) -> None:
        self._zip.close()
        self._file.close()

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yields the content of a file in blocks; raises zipfile.BadZipFile where its checksum says otherwise."""
        with self._zip.open(name) as file:
            while block := file.read(_BLOCK):
                yield block

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        return b"".join(self.blocks(name))

    @cached_property
    def structure(self) -> list[Finding]:
        """What makes it unsafe to look further: names that lead elsewhere, links, what is no stored file."""
        entries = self._zip.infolist()
        out = [Finding(name, why) for name, why in bad_names([info.orig_filename for info in entries])]
        for info in entries:
            name = info.orig_filename
            if info.external_attr >> 16 != _MODE:
                out.append(Finding(name, "is no plain file: a link, a folder, a device, or of another mode"))
            elif info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                out.append(Finding(name, "is compressed, which an archive of Retrograd never is"))
            elif info.flag_bits:
                out.append(Finding(name, "is encrypted, or marked in another way"))
        if len(entries) > MOST_FILES:
            out.append(Finding("", f"it has {len(entries)} files, wanted at most {MOST_FILES}"))
        # Files that share their bytes: a small zip of many large ones.
        declared, there = sum(info.file_size for info in entries), os.fstat(self._file.fileno()).st_size
        if declared > there:
            out.append(Finding("", f"its files are said to have {declared} bytes, and the zip has {there} in all"))
        return out

    def manifest(self) -> dict[str, str]:
        """Returns name -> sha256 as the manifest has it; raises RetrogradError where it cannot be read."""
        if MANIFEST not in self.names:
            raise RetrogradError(f"{self.path} holds no {MANIFEST}: it is no archive that Retrograd made.")
        try:
            text = self.read(MANIFEST).decode("utf-8")
        except _DAMAGE as error:
            raise RetrogradError(f"{MANIFEST} was changed, or what says where it is: {error}.") from None
        found: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), 1):
            match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
            if not match or match[2] in found:
                raise RetrogradError(f"{MANIFEST}, line {number}: found {line!r}, wanted a new sha256 and name.")
            found[match[2]] = match[1]
        return found

    @cached_property
    def fixity(self) -> list[Finding]:
        """Where files and manifest differ, or the container's bytes and what names and contents imply: all is read."""
        manifest = self.manifest()
        out = [Finding(name, "is missing") for name in manifest if name not in self.names]
        members = []
        for name in self.names:
            try:
                member = _Member.of(name, self.blocks(name))
            except _DAMAGE as error:
                out.append(Finding(name, f"was changed, or what says where it is: {error}"))
                continue
            members.append(member)
            if name != MANIFEST and name not in manifest:
                out.append(Finding(name, "was added: the manifest does not name it"))
            elif name != MANIFEST and manifest[name] != member.sha256:
                out.append(Finding(name, f"was changed: its sha256 is {member.sha256}, not {manifest[name]}"))
        return out or self._between(members)

    def _between(self, members: list[_Member]) -> list[Finding]:
        """Returns whether any byte outside the files differs from what names and contents imply."""
        if [m.name for m in members] != sorted(m.name for m in members):
            return [Finding("", "the files are not in the order of their names")]
        self._file.seek(0)
        at = 0
        for block in _container(members, lambda m: self._same(m)):
            found = self._file.read(len(block))
            if found != block:
                first = next((i for i, (a, b) in enumerate(zip(found, block, strict=False)) if a != b), len(found))
                return [Finding("", f"byte {at + first} of the zip, outside its files, was changed")]
            at += len(block)
        if self._file.read(1):
            return [Finding("", f"there are bytes behind the end of the zip, from byte {at} on")]
        return []

    def _same(self, member: _Member) -> Iterator[bytes]:
        # Contents were judged by their sha256 already; here they only have to stand where they should.
        position = self._file.tell()
        for block in self.blocks(member.name):
            self._file.seek(position)
            yield block
            position += len(block)
        self._file.seek(position)

    def unpack(self, folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> list[Path]:
        """Writes files below a folder; raises RetrogradError where the archive is not sound.

        - `names`: all by default.
        """
        wrong = self.structure or self.fixity
        if wrong:
            raise RetrogradError(f"{self.path} is not unpacked: {wrong[0]}. `snakemake verify` says all of it.")
        out = []
        for name in self.names if names is None else names:
            target = Path(folder, *PurePosixPath(name).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as file:
                for block in self.blocks(name):
                    file.write(block)
            out.append(target)
        return out
