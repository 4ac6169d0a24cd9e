"""The stages of a rendering on one thread or on many, and who may use many.

Numba's threads cannot be used everywhere. A process forked from one that has started them may hang or be ended, and one of Numba's
layers must not be entered by two threads at once. So stages run on many threads only in the process that started them, one rendering at
a time; otherwise on the calling thread alone. Results are the same bits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import torch

from mggtalk.rendering.cpu_bins import count_part, fill_part
from mggtalk.rendering.cpu_blend import blend_part
from mggtalk.rendering.cpu_layout import Images, Lists, Pairs, Plan, Scene
from mggtalk.rendering.cpu_project import project_part
from mggtalk.rendering.simd import compiled


@compiled(parallel=True)
def project_all(parts: int, plan: Plan, scene: Scene, lists: Lists) -> None:
    """:func:`project_part` on every thread."""
    for _ in numba.prange(parts):
        project_part(plan, scene, lists)


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
    for _ in numba.prange(parts):
        blend_part(plan, lists, pairs, images)
