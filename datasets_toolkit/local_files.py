"""Files of this machine that appear under their names only when whole, and reads from many threads and processes."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import threading
from contextlib import suppress
from pathlib import Path, PurePosixPath

from datasets_toolkit.errors import UserError

_PART = re.compile(r"^\..+\.[0-9a-f]{8}\.part$")


class StorageError(UserError):
    """A file of a data set cannot be found, read or written."""


def check_name(name: str) -> str:
    """``name`` if it is a relative path that stays below its root.

    Raises:
        StorageError: it is absolute, climbs out with ``..``, or has parts that mean different things on different systems.
    """
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or re.search(r"[\\:\x00-\x1f]", name):
        raise StorageError(f"{name!r}: not a safe name for a file of a data set; it must be relative, without '..', '\\' or ':'")
    return name


def part_name(name: str) -> str:
    """A temporary name beside ``name`` that no other process chooses."""
    return f".{PurePosixPath(name).name}.{secrets.token_hex(4)}.part"


def is_part(name: str) -> bool:
    """Whether a file is one that is being written, or was when its process died."""
    return bool(_PART.match(PurePosixPath(name).name))


def sync(path: Path) -> None:
    """Make sure that a file's bytes are on the disk before its name is."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def move_into_place(source: Path, target: Path) -> None:
    """Give a finished file its final name, replacing one that is there; across file systems by a copy under a temporary name.

    Raises:
        OSError: it cannot be written there; nothing has changed then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_into_place(source, target)
        source.unlink()
    sync_folder(target.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file that appears under its name only when whole.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    part = path.with_name(part_name(path.name))
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _copy_into_place(source: Path, target: Path) -> None:
    part = target.with_name(part_name(target.name))
    try:
        shutil.copyfile(source, part)
        sync(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut, where the system can do that (Windows cannot open folders)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Handle:
    """A file open for positioned reads from any thread; it closes when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = None if hasattr(os, "pread") else threading.Lock()

    def read(self, offset: int, size: int | None) -> bytes:
        """``size`` bytes from ``offset``, fewer where the file ends, all that follow where size is None."""
        there = max(os.fstat(self._file.fileno()).st_size - offset, 0)
        size = there if size is None else min(size, there)  # memory is asked for what is there, whatever a damaged index says
        pieces = []
        while size > 0:
            piece = self._piece(offset, size)
            if not piece:
                break
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, offset: int, size: int) -> bytes:
        if self._lock is None:
            return os.pread(self._file.fileno(), size, offset)
        with self._lock:  # Windows has no pread: the position is shared
            self._file.seek(offset)
            return self._file.read(size) or b""

    def close(self) -> None:
        """Close the file now."""
        self._file.close()

    def __del__(self) -> None:
        with suppress(AttributeError):  # where opening it failed
            self._file.close()
