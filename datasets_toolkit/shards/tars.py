"""Tar files of samples: written with the same bytes for the same input, read by byte range, foreign ones checked member by member.

The members of a sample stand side by side and are named ``<key>.<suffix>``, as WebDataset has it; headers are POSIX ustar (IEEE
1003.1-1988) with every field fixed that does not follow from name and size, long names in a pax record (IEEE 1003.1-2001).
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import StorageError, check_name, move_into_place, part_name
from datasets_toolkit.shards.storage import Storage

BLOCK, RECORD = 512, 10240
NEAR = 64 * 1024
"""Members less than this many bytes apart are read at once: a second request costs more than the bytes between."""

_KEY, _SUFFIX = re.compile(r"[A-Za-z0-9_\-]+"), re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")

Span = tuple[int, int]
Members = Sequence[tuple[str, bytes]]


class ShardError(UserError):
    """A tar of a data set is damaged, unsafe, or not what its index says."""


@dataclass(frozen=True, kw_only=True)
class SampleEntry:
    """Where a sample lies in its tar.

    Attributes:
        key: the sample's name.
        members: by suffix (such as ``parsing.png``), offset and size of the bytes, in tar order.
    """

    key: str
    members: dict[str, Span]


@dataclass(frozen=True, kw_only=True)
class WrittenTar:
    """Attributes: entries of a tar just written, its size in bytes and its SHA-256."""

    entries: list[SampleEntry]
    bytes: int
    sha256: str


def write_tar(path: Path, samples: Iterable[tuple[str, Members]]) -> list[SampleEntry]:
    """Write samples (key, members in order) as a tar that appears under its name only when whole and on the disk.

    The bytes depend on the samples alone, not on time, user, umask or working folder.

    Raises:
        ValueError: a key or suffix with other characters than letters, digits, ``-``, ``_`` (suffix: also ``.``), or one that repeats.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(part_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = write_part(part, samples)
        move_into_place(part, path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); free some space or choose another folder") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return written.entries


def write_part(part: Path, samples: Iterable[tuple[str, Members]]) -> WrittenTar:
    """As :func:`write_tar`, but under the name given; the bytes are on the disk on return."""
    entries, seen = [], set()
    with part.open("wb") as file:
        out = _Hashing(file)
        for key, members in samples:
            if not _KEY.fullmatch(key) or key in seen:
                raise ValueError(f"{key!r}: {'this key repeats' if key in seen else 'not a key of letters, digits, - and _'}")
            seen.add(key)
            entries.append(SampleEntry(key=key, members=_write_members(out, key, members)))
        end = out.position + 2 * BLOCK
        out.write(bytes(-(-end // RECORD) * RECORD - out.position))
        file.flush()
        os.fsync(file.fileno())
    return WrittenTar(entries=entries, bytes=out.position, sha256=out.digest.hexdigest())


class _Hashing:
    """A file that knows how much and what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.position, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.position += len(data)


def _write_members(out: _Hashing, key: str, members: Members) -> dict[str, Span]:
    spans: dict[str, Span] = {}
    for suffix, data in members:
        if not _SUFFIX.fullmatch(suffix) or suffix in spans:
            raise ValueError(f"{key}.{suffix}: {'this member repeats' if suffix in spans else 'not a safe name for a member'}")
        out.write(_headers(f"{key}.{suffix}".encode("ascii"), len(data)))
        spans[suffix] = (out.position, len(data))
        out.write(data)
        out.write(bytes(-len(data) % BLOCK))
    return spans


def _headers(name: bytes, size: int) -> bytes:
    if len(name) <= 100:
        return _header(name, size, b"0")
    record = b" path=" + name + b"\n"  # its length, which begins it, counts its own digits too
    length = next(n for digits in (3, 4, 5) if len(str(n := len(record) + digits)) == digits)
    record = str(length).encode() + record
    return _header(b"PaxHeader/" + name[:80], len(record), b"x") + record + bytes(-len(record) % BLOCK) + _header(name[:100], size, b"0")


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    """One ustar block: mode 0644, user, group and time 0."""
    if size >= 8**11:
        raise ValueError(f"{name.decode()}: {size} bytes are more than a tar member holds")
    fields = [name.ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % size, b"00000000000\0", b" " * 8, kind]
    fields += [bytes(100), b"ustar\x0000", bytes(64), b"0000000\0", b"0000000\0", bytes(167)]
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def read_members(storage: Storage, shard: str, spans: Sequence[Span]) -> list[bytes]:
    """The bytes at each (offset, size) of a shard; spans that lie side by side or nearly so are fetched by one ranged read.

    Raises:
        StorageError: the shard is missing or shorter than the spans say.
        ShardError: a span is negative.
    """
    return [bytes(view) for view in read_views(storage, shard, spans)]


def read_views(storage: Storage, shard: str, spans: Sequence[Span]) -> list[memoryview]:
    """As :func:`read_members`, without a copy: parts of what was read, all of which is kept while one of its parts is."""
    if any(offset < 0 or size < 0 for offset, size in spans):
        raise ShardError(f"{storage.address(shard)}: the index holds a negative offset or size; build the data set again")
    found: dict[Span, memoryview] = {}
    for group in _groups(sorted(set(spans))):
        start, end = group[0][0], max(offset + size for offset, size in group)
        data = memoryview(storage.read(shard, start, end - start))
        for offset, size in group:
            found[offset, size] = data[offset - start : offset - start + size]
    return [found[span] for span in spans]


def _groups(spans: list[Span]) -> list[list[Span]]:
    groups: list[list[Span]] = []
    end = 0
    for offset, size in spans:
        if groups and offset - end <= NEAR:
            groups[-1].append((offset, size))
        else:
            groups.append([(offset, size)])
        end = max(end, offset + size)
    return groups


def scan_tar(storage: Storage, name: str) -> list[SampleEntry]:
    """The samples of any WebDataset tar, found from its headers alone. Folders in names stay part of the key.

    Raises:
        StorageError: it is not there.
        ShardError: not a tar, cut short, or with a member that is a link, a device or has an unsafe or repeated name.
    """
    with storage.open(name) as file:
        where = storage.address(name)
        return _entries(file, where, storage.size(name))


def _entries(file: Any, where: str, size: int) -> list[SampleEntry]:
    entries: dict[str, SampleEntry] = {}
    last = None
    for member in _members(file, where):
        key, _, suffix = _split(member, where)
        if key in entries and key != last:
            raise ShardError(f"{where}: the members of {key} do not stand side by side; write this tar again")
        entry = entries.setdefault(key, SampleEntry(key=key, members={}))
        if suffix in entry.members:
            raise ShardError(f"{where}: {member.name} is there twice; write this tar again")
        if member.offset_data + member.size > size:
            raise ShardError(f"{where}: cut short in {member.name}; copy it again")
        entry.members[suffix] = (member.offset_data, member.size)
        last = key
    return list(entries.values())


def _members(file: Any, where: str) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            yield from (member for member in tar if not member.isdir())
            file.seek(tar.offset)  # tarfile takes damage and any end for the end; a whole archive closes with blocks of zeros
            if file.read(BLOCK) != bytes(BLOCK):
                raise ShardError(f"{where}: damaged or cut short at byte {tar.offset}; copy it again")
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as error:
        raise ShardError(f"{where}: not a sound tar file ({error}); copy it again") from error


def _split(member: tarfile.TarInfo, where: str) -> tuple[str, str, str]:
    if not member.isreg() or member.issparse():
        raise ShardError(f"{where}: {member.name} is a link or no plain file; such members are not read")
    try:
        check_name(member.name)
    except StorageError as error:
        raise ShardError(f"{where}: {error}") from error
    folder, slash, base = member.name.rpartition("/")
    key, dot, suffix = base.partition(".")
    if not (key and suffix):
        raise ShardError(f"{where}: {member.name} is not named KEY.SUFFIX; write this tar again")
    return f"{folder}{slash}{key}", dot, suffix


def iterate_tar(storage: Storage, name: str) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """The samples of a tar, one after the other: key and members (suffix, bytes) in tar order, as :func:`write_tar` takes them.

    Raises:
        StorageError: it is not there.
        ShardError: as :func:`scan_tar`.
    """
    for entry in scan_tar(storage, name):
        yield entry.key, list(zip(entry.members, read_members(storage, name, list(entry.members.values())), strict=True))
