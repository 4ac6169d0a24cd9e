"""Work buffers that are used again: filling fresh memory costs more than the arithmetic of a small image."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

LINE = 64  # bytes
SPARE = 4  # workspaces kept for the next rendering


class Workspace:
    """Named flat arrays that only grow. Return it with :meth:`release`; one that is dropped returns by itself."""

    def __init__(self) -> None:
        self.arrays: dict[str, npt.NDArray[Any]] = {}

    def array(self, name: str, size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array of at least ``size`` numbers, which hold anything."""
        found = self.arrays.get(name)
        if found is None or found.size < size:
            found = self.arrays[name] = aligned(size + size // 4 + 64, np.dtype(dtype))
        return found


def aligned(size: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A flat array that starts at a cache line: a vector that lies across two takes twice as long."""
    raw = np.empty(size * dtype.itemsize + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + size * dtype.itemsize].view(dtype)


class Lease:
    """The use of a workspace until this object is gone: after the backward pass, or with a graph that is never run backward."""

    def __init__(self) -> None:
        with _pool.lock:
            self.workspace = _pool.spare.pop() if _pool.spare else Workspace()

    def __del__(self) -> None:
        """Give the workspace back, or its memory if there are enough."""
        pool, workspace = _pool, self.__dict__.pop("workspace", None)
        if workspace is not None and len(pool.spare) < SPARE:
            pool.spare.append(workspace)  # atomic: no lock, for this may run inside a garbage collection that holds it


class _Pool:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.spare: list[Workspace] = []


_pool = _Pool()


def _after_fork() -> None:
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
