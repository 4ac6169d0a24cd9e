"""Source videos as files of this machine: those behind an address are copied for as long as they are read."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets_toolkit.build.sources import content_hash
from datasets_toolkit.build.work import UnitStore, key_of
from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.opening import check_input
from datasets_toolkit.shards.storage_options import hidden

_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+://")


def is_address(path: str) -> bool:
    """Whether a path is an address (``s3://...``) and no local file."""
    return bool(_ADDRESS.match(path))


def content_of(path: str, store: UnitStore) -> str:
    """SHA-256 of a source's content; it is kept under path, size and time of change, so that a file is read for it once.

    Raises:
        MediaError: the source cannot be read.
    """
    known = known_content(path, store)
    if known is not None:
        return known
    with local_copy(path, store) as file:
        content = content_hash(file)
    store.write("content", key_of(["content", _state(path)]), [("content", [("json", json.dumps(content).encode())])])
    return content


def known_content(path: str, store: UnitStore) -> str | None:
    """What :func:`content_of` would answer, if it need not read the source for it.

    Raises:
        MediaError: the source is not there.
    """
    key = key_of(["content", _state(path)])
    return str(json.loads(store.first("content", key))) if store.has("content", key) else None


def forget_content(path: str, store: UnitStore) -> None:
    """Undo what :func:`content_of` has kept."""
    store.path("content", key_of(["content", _state(path)])).unlink(missing_ok=True)


@contextmanager
def local_copy(path: str, store: UnitStore) -> Iterator[Path]:
    """A source as a local file.

    Raises:
        MediaError: it cannot be fetched.
    """
    if not is_address(path):
        yield Path(path)
        return
    with store.scratch() as folder:
        copy = folder / (Path(path).name or "source")
        fs, place = _remote(path)
        try:
            with fs.open(place, "rb") as theirs, copy.open("wb") as ours:
                shutil.copyfileobj(theirs, ours, 1 << 20)
        except Exception as error:  # object stores raise whatever their client raises
            raise MediaError(f"{path}: cannot be fetched ({type(error).__name__}: {hidden(error)}); check the address") from error
        yield copy


def _state(path: str) -> list[Any]:
    """What changes when a file does."""
    if is_address(path):
        fs, place = _remote(path)
        try:
            return [path, str(fs.ukey(place))]
        except Exception as error:
            raise MediaError(f"{path}: cannot be found ({type(error).__name__}: {hidden(error)}); check the address") from error
    check_input(Path(path), "video")
    state = os.stat(path)
    return [os.path.abspath(path), state.st_size, state.st_mtime_ns]


def _remote(path: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        fs, place = url_to_fs(path)
    except Exception as error:  # as above
        raise MediaError(f"{path}: this address cannot be used ({hidden(error)}); install what it names, or copy the file here") from error
    return fs, str(place)
