"""The stages of a rendering on one thread or on many, and who may use many.

Numba's threads cannot be used everywhere. A process forked from one that has started them may hang or be ended, and one of Numba's
layers must not be entered by two threads at once. So stages run on many threads only in the process that started them, one rendering at
a time; otherwise on the calling thread alone. Results are the same bits.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
import torch

from mggtalk.rendering.cpu_bins import count_part, fill_part
from mggtalk.rendering.cpu_blend import blend_part, blend_part_narrow
from mggtalk.rendering.cpu_blend_back import blend_back_part, blend_back_part_narrow
from mggtalk.rendering.cpu_gather import project_back_part
from mggtalk.rendering.cpu_layout import Images, Lists, Pairs, Plan, Scene
from mggtalk.rendering.cpu_project import project_part
from mggtalk.rendering.cpu_project_back import Outcome
from mggtalk.rendering.simd import Array, compiled


@compiled(parallel=True)
def project_all(parts: int, plan: Plan, scene: Scene, lists: Lists) -> None:
    """:func:`project_part` on every thread."""
    for part in numba.prange(parts):
        project_part(part, plan, scene, lists)


@compiled(parallel=True)
def count_all(parts: int, plan: Plan, lists: Lists, visible: int) -> None:
    """:func:`count_part` on every thread."""
    for part in numba.prange(parts):
        count_part(part, parts, plan, lists, visible)


@compiled(parallel=True)
def fill_all(parts: int, plan: Plan, lists: Lists, pairs: Pairs, visible: int) -> None:
    """:func:`fill_part` on every thread."""
    for part in numba.prange(parts):
        fill_part(part, parts, plan, lists, pairs, visible)


@compiled(parallel=True)
def blend_all(parts: int, plan: Plan, lists: Lists, pairs: Pairs, images: Images) -> None:
    """:func:`blend_part` on every thread."""
    for part in numba.prange(parts):
        blend_part(part, plan, lists, pairs, images)


@compiled(parallel=True)
def blend_all_narrow(parts: int, plan: Plan, lists: Lists, pairs: Pairs, images: Images) -> None:
    """:func:`blend_part_narrow` on every thread."""
    for part in numba.prange(parts):
        blend_part_narrow(part, plan, lists, pairs, images)


@compiled(parallel=True)
def blend_back_all(
    parts: int, plan: Plan, lists: Lists, pairs: Pairs, images: Images, gradients: Images, gathered: Array, reached: Array
) -> None:
    """:func:`blend_back_part` on every thread."""
    for part in numba.prange(parts):
        blend_back_part(part, plan, lists, pairs, images, gradients, gathered, reached)


@compiled(parallel=True)
def blend_back_all_narrow(
    parts: int, plan: Plan, lists: Lists, pairs: Pairs, images: Images, gradients: Images, gathered: Array, reached: Array
) -> None:
    """:func:`blend_back_part_narrow` on every thread."""
    for part in numba.prange(parts):
        blend_back_part_narrow(part, plan, lists, pairs, images, gradients, gathered, reached)


@compiled(parallel=True)
def project_back_all(parts: int, plan: Plan, scene: Scene, lists: Lists, gathered: Array, reached: Array, outcome: Outcome) -> None:
    """:func:`project_back_part` on every thread."""
    for part in numba.prange(parts):
        project_back_part(part, plan, scene, lists, gathered, reached, outcome)


config: Any = numba.config  # filled in when Numba is imported
PATIENCE = 2.0  # seconds; what is on disk already loads faster


class _Process:
    """What this process knows of its threads; a forked child starts with its own, and may not use many."""

    def __init__(self, *, forked: bool = False) -> None:
        self.forked, self.started = forked, False
        self.busy = threading.Lock()
        self.compiled: set[tuple[str, bool]] = set()


_process = _Process()


def _after_fork() -> None:
    global _process
    _process = _Process(forked=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _start(process: _Process) -> None:
    """Start Numba's threads, and give back to torch the number of threads that this may take from it: they can share a runtime."""
    wanted = torch.get_num_threads()
    numba.get_num_threads()
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
    process.started = True


@contextmanager
def threads() -> Iterator[int]:
    """How many threads the stages inside may use: as many as torch, or 1 where more are unsafe (see the top of this file)."""
    process = _process
    parts = min(torch.get_num_threads(), config.NUMBA_NUM_THREADS)
    if parts == 1 or process.forked or not process.busy.acquire(blocking=False):
        yield 1
        return
    try:
        if not process.started:
            _start(process)
        numba.set_num_threads(parts)
        yield parts
    finally:
        process.busy.release()


@contextmanager
def announced(what: str, parts: int) -> Iterator[None]:
    """Say on stderr what takes so long, should the first call in a process have to compile."""
    key, process = (what, parts > 1), _process
    if key in process.compiled:
        yield
        return
    message = f"compiling {what} of the CPU renderer (once, about 20 s)...\n"
    timer = threading.Timer(PATIENCE, lambda: sys.stderr.write(message))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    process.compiled.add(key)
