"""What native libraries do behind our back: notes on stderr, memory that is given back too soon, threads that a fork leaves behind."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt, as its header numbers them
_LARGEST = 32 << 20  # bytes: the most that the threshold may be

_inherited: list[tuple[Any, ...]] = []


def close_with(owner: object, *models: Any) -> weakref.finalize[..., object]:
    """What closes native models: when called, when their owner goes, or when the process ends. Only the process that made them does.

    MediaPipe closes a model on a thread of its own. A forked child has the model without the thread: closing it, or only dropping it in
    a garbage collection at any time, would wait there for ever. So a child keeps what it inherits.
    """
    return weakref.finalize(owner, _close, os.getpid(), *models)


def _close(maker: int, *models: Any) -> None:
    if os.getpid() != maker:
        _inherited.append(models)
        return
    for model in models:
        model.close()


@lru_cache(maxsize=1)
def keep_freed_memory(mebibytes: int = 128) -> None:
    """Let this process keep so much freed memory for the next picture.

    By default glibc gives the memory of large arrays back to the system at once, and every picture pays for fresh pages, some
    milliseconds of annotating a frame. Other C libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and os.confstr("CS_GNU_LIBC_VERSION"):
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, mebibytes << 20)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what is written to the process's stderr inside the block; it is written after all if the block raises."""
    if sys.stderr is None:  # a process without stderr has nothing to hold back, and 2 may be any file it opened
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(kept, notes.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
