"""What native libraries do behind our back: notes on stderr that tell a user nothing, and memory that is given back too soon."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt, as its header numbers them
_LARGEST = 32 << 20  # bytes: the most that the threshold may be


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
