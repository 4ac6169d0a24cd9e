"""Where a data set lies: a folder, or any address that fsspec knows (``s3://``, ``gs://``, ``memory://`` and others).

Files appear under their names only when whole. Handles belong to the process that opened them and are opened when first needed, so a
:class:`Storage` may be pickled, forked or sent to a spawned process. fsspec is imported only where a root is not a local folder.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, cast

from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import Handle, StorageError, check_name, is_part, move_into_place, part_name, sync
from datasets_toolkit.shards.storage_options import hidden

__all__ = ["Storage", "StorageError", "check_name", "part_name"]

OPEN_FILES = 32
"""Local files that one :class:`Storage` keeps open in a process."""

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+(://|::)")
_WHOLE_PUT = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "r2"})  # an object is visible once it is whole


class Storage:
    """The files below one root; names are relative, with ``/`` between their parts.

    Args:
        root: a folder, or an fsspec address.
        options: for fsspec, such as ``endpoint_url`` of an object store.

    Raises:
        StorageError: the address needs a package that is not installed, or cannot be understood.
    """

    def __init__(self, root: str | Path, **options: Any) -> None:
        self.root = str(root)
        if self.root.startswith("file://"):
            self.root = self.root[len("file://") :]
        self.options = options
        self.local = None if _URL.match(self.root) else Path(self.root)
        """The root as a folder of this machine, None for a remote one."""
        self._reset()
        if self.local is None:
            self._remote()  # a mistyped address is told at once

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._handles: OrderedDict[str, Handle] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.root, self.options = state["root"], state["options"]
        self.local = None if _URL.match(self.root) else Path(self.root)
        self._reset()

    def __repr__(self) -> str:
        return f"Storage({self.root!r})"

    def address(self, name: str) -> str:
        """The full path or address of a file, as error messages show it."""
        return str(self.local / name) if self.local is not None else f"{self.root.rstrip('/')}/{name}"

    def open(self, name: str) -> Any:
        """A binary file opened for reading, seekable, to be closed by the caller.

        Raises:
            StorageError: it does not exist or cannot be read.
        """
        check_name(name)
        try:
            if self.local is not None:
                return (self.local / name).open("rb")
            fs, base = self._remote()
            return fs.open(f"{base}/{name}", "rb")
        except Exception as error:
            raise self._failed(name, error) from error

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """``size`` bytes from ``offset`` (without ``size`` all that follow): one read of a local file, one ranged request of a remote one.

        Raises:
            StorageError: the file does not exist, cannot be read, or ends before ``offset + size``.
        """
        check_name(name)
        try:
            if self.local is not None:
                data = self._handle(name).read(offset, size)
            elif size == 0:
                data = b""  # HTTP has no range without bytes
            else:
                fs, base = self._remote()
                data = cast(bytes, fs.cat_file(f"{base}/{name}", start=offset, end=None if size is None else offset + size))
        except Exception as error:
            raise self._failed(name, error) from error
        if size is not None and len(data) != size:
            raise StorageError(f"{self.address(name)}: cut short, {len(data)} of {size} bytes at {offset} are there; copy it again")
        return data

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            StorageError: it does not exist.
        """
        check_name(name)
        try:
            if self.local is not None:
                return (self.local / name).stat().st_size
            fs, base = self._remote()
            return int(fs.size(f"{base}/{name}"))
        except Exception as error:
            raise self._failed(name, error) from error

    def exists(self, name: str) -> bool:
        """Whether a file of that name is there, whole."""
        check_name(name)
        try:
            if self.local is not None:
                return (self.local / name).is_file()
            fs, base = self._remote()
            return bool(fs.isfile(f"{base}/{name}"))
        except Exception as error:
            raise self._failed(name, error) from error

    def list(self, prefix: str = "") -> list[str]:
        """Names of the files at all depths that begin with ``prefix``, sorted; files still being written are left out."""
        try:
            if self.local is not None:
                found = [path.relative_to(self.local).as_posix() for path in self.local.rglob("*") if path.is_file()]
            else:
                fs, base = self._remote()
                found = [str(path)[len(base) :].lstrip("/") for path in fs.find(base)]
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._failed(prefix, error) from error
        return sorted(name for name in found if name.startswith(prefix) and not is_part(name))

    def publish(self, local: Path, name: str) -> None:
        """Move a finished local file to ``name``; readers see the file that was there before or all of the new one.

        Raises:
            StorageError: it cannot be written there.
        """
        check_name(name)
        try:
            if self.local is not None:
                move_into_place(Path(local), self.local / name)
                with self._lock:
                    self._handles.pop(name, None)
            else:
                self._upload(Path(local), name)
                Path(local).unlink()
        except Exception as error:
            raise self._failed(name, error, "written") from error

    def write(self, name: str, data: bytes) -> None:
        """Publish ``data`` as the file ``name``.

        Raises:
            StorageError: it cannot be written there.
        """
        part = self.scratch(name)
        try:
            part.write_bytes(data)
            sync(part)
            self.publish(part, name)
        except OSError as error:
            raise self._failed(name, error, "written") from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def scratch(self, name: str) -> Path:
        """A temporary path of this machine to write what :meth:`publish` will then move to ``name``: beside it where the root is local."""
        folder = Path(tempfile.gettempdir())
        check_name(name)
        if self.local is not None:
            folder = (self.local / name).parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._failed(name, error, "written") from error
        return folder / part_name(name)

    def remove(self, name: str) -> None:
        """Delete a file; one that is not there is no error."""
        check_name(name)
        try:
            if self.local is not None:
                (self.local / name).unlink(missing_ok=True)
            else:
                fs, base = self._remote()
                with suppress(FileNotFoundError):
                    fs.rm_file(f"{base}/{name}")
        except Exception as error:
            raise self._failed(name, error, "removed") from error
        with self._lock:
            self._handles.pop(name, None)

    def _upload(self, local: Path, name: str) -> None:
        fs, base = self._remote()
        target = PurePosixPath(base) / name
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        if protocols & _WHOLE_PUT:
            fs.put_file(str(local), str(target))
            return
        part = str(target.with_name(part_name(target.name)))
        fs.makedirs(str(target.parent), exist_ok=True)
        try:
            fs.put_file(str(local), part)
            fs.mv(part, str(target))
        except BaseException:
            with suppress(Exception):
                fs.rm_file(part)
            raise

    def _remote(self) -> tuple[Any, str]:
        """The file system and the root's path on it. fsspec keeps one instance for each process and address."""
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise StorageError(f"{self.root}: addresses need the package fsspec; install it with: pip install fsspec") from error
        try:
            fs, base = url_to_fs(self.root, use_listings_cache=False, **self.options)
        except Exception as error:  # their clients raise whatever they like
            raise StorageError(f"{self.root}: cannot be used ({hidden(error)}); correct the address or install what it names") from error
        return fs, str(base).rstrip("/")

    def _handle(self, name: str) -> Handle:
        if os.getpid() != self._process:
            self._reset()  # a forked child opens its own; the parent's lock may be held for ever here
        with self._lock:
            handle = self._handles.pop(name, None) or Handle(Path(self.root) / name)
            self._handles[name] = handle
            while len(self._handles) > OPEN_FILES:
                self._handles.popitem(last=False)
            return handle

    def _failed(self, name: str, error: Exception, action: str = "read") -> UserError:
        if isinstance(error, UserError):
            return error
        if isinstance(error, FileNotFoundError):
            return StorageError(f"{self.address(name)}: no such file; check the path, or build the data set again")
        reason = hidden(getattr(error, "strerror", None) or error) or type(error).__name__
        return StorageError(f"{self.address(name)}: cannot be {action} ({reason}); check the address and its permissions")
