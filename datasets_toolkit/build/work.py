"""The work folder: results under names that say what they were made from, so that nothing is made twice and a kill loses little.

A unit's key is the hash of all that decides its content. Units appear whole or not at all; a second process that makes the same unit
writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.tars import write_tar

Member = tuple[str, bytes]


class WorkError(UserError):
    """The work folder cannot be used."""


def key_of(facts: Any) -> str:
    """SHA-256 (hexadecimal) of JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class UnitStore:
    """Units of several kinds below one folder of this machine.

    Args:
        root: the folder; it is created when the first unit is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, kind: str, key: str) -> Path:
        """Where a unit lies, or would."""
        return self.root / kind / key[:2] / f"{key}.tar"

    def has(self, kind: str, key: str) -> bool:
        """Whether a unit is there."""
        return self.path(kind, key).is_file()

    def write(self, kind: str, key: str, samples: Iterable[tuple[str, Sequence[Member]]]) -> None:
        """Write a unit: for each sample its key and named byte strings.

        Raises:
            WorkError: the folder cannot be written, or the disk is full.
        """
        target = self.path(kind, key)
        try:
            with self.scratch() as folder:
                write_tar(folder / target.name, samples)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder / target.name, target)
        except OSError as error:
            raise WorkError(f"{target}: cannot be written ({error.strerror}); free the disk or choose another --work folder") from error

    def read(self, kind: str, key: str) -> dict[str, bytes]:
        """All members of a unit by name.

        Raises:
            WorkError: it is damaged.
        """
        data = self.path(kind, key).read_bytes()
        return {name: data[offset : offset + size] for name, (offset, size) in self.index(kind, key).items()}

    def first(self, kind: str, key: str) -> bytes:
        """The first member of a unit, without a look at the others.

        Raises:
            WorkError: it is damaged.
        """
        path = self.path(kind, key)
        try:
            with tarfile.open(path, "r:") as archive:
                member = archive.next()
                file = archive.extractfile(member) if member is not None else None
                if file is None:
                    raise tarfile.ReadError("it is empty")
                return file.read()
        except (OSError, tarfile.TarError) as error:
            raise _damaged(path, error) from error

    def index(self, kind: str, key: str) -> dict[str, tuple[int, int]]:
        """Offset and size in the unit's file of each member by name.

        Raises:
            WorkError: it is damaged.
        """
        path = self.path(kind, key)
        try:
            with tarfile.open(path, "r:") as archive:
                return {member.name: (member.offset_data, member.size) for member in archive}
        except (OSError, tarfile.TarError) as error:
            raise _damaged(path, error) from error

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder of this process for files in the making, on the disk of the units; removed at the end."""
        folder = self.root / "tmp" / f"{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what processes of this machine that are gone left unfinished."""
        for folder in sorted((self.root / "tmp").glob("*-*")):
            number = folder.name.split("-")[0]
            if number.isdecimal() and not alive(int(number)):
                shutil.rmtree(folder, ignore_errors=True)


def _damaged(path: Path, error: Exception) -> WorkError:
    return WorkError(f"{path}: this unit of work is damaged ({error}); delete it and run the same command again")


def alive(process: int) -> bool:
    """Whether a process of this machine is running."""
    if sys.platform == "win32":
        return True  # os.kill would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def only_builder(folder: Path) -> Iterator[int | None]:
    """Hold the folder for this process alone; yields the number of a process that ended without finishing here, or None.

    The system lets go of the lock when its process ends, however it ends.

    Raises:
        WorkError: another process builds here, or the folder cannot be written.
    """
    path = folder / ".building"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise WorkError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    with file:
        file.seek(0)
        before = file.read().strip()
        if not _lock(file):
            raise WorkError(f"{folder}: process {before or '?'} is building here; wait until it is done, or stop it")
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield int(before) if before.isdecimal() else None
        file.seek(0)
        file.truncate()
        file.flush()


def _lock(file: Any) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 20)  # a byte far behind the text, which others may then read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
