"""Where rays first meet a shell.

A ray goes in steps of 0.9 F, read from a table of the radius, until it lands inside; a few halvings in the table narrow the interval. From
there Newton's method on the exact field, kept inside the interval, ends at |F| below 1e-8 cm. (At the edge of the hair the slope jumps:
there Newton alone may run to and fro.)
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np
import numpy.typing as npt

from datasets_toolkit.schema import FloatArray
from datasets_toolkit.synthetic.radial import STEP, Shell

FINE = 4
"""Samples a control value in the table."""
STRIDE = 0.2
"""Least step outside, cm. Shorter chords may be missed: such rays pass within 1e-3 cm of the outline of what they miss."""
HALVINGS = 5
SLACK = 0.1
"""How much an interval is widened for the error of the table, cm."""
EXACT = 1e-8
Numbers = npt.NDArray[np.int64]
Table = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where m rays meet a shell: their numbers, parameters t, points (m x 3), gradients of F there (m x 3) and the hair's height (m)."""

    ray: Numbers
    t: FloatArray
    place: FloatArray
    gradient: FloatArray
    hair: FloatArray


def intersect(shell: Shell, origin: FloatArray, rays: FloatArray) -> Meeting:
    """Where rays ``origin + t rays`` (3, outside; n x 3) first meet the shell; rays that miss it are not in the answer."""
    table, start = np.pad(shell.table(FINE), 1, mode="wrap"), origin - shell.centre
    table[[0, -1]] = table[[1, -2]]  # rows end at the poles
    length, coarse = np.sqrt(_dot(rays, rays)), rays.astype(np.float32)
    t, leave = _sphere(start, rays, float(table.max()) + 0.1)
    todo, found = np.flatnonzero(np.isfinite(t)), []
    for _ in range(5):  # a ray that only brushes the surface goes on behind that place
        todo, low, high = _approach(table, start.astype(np.float32), coarse, t, leave, length, todo)
        met, meeting = _settle(shell, origin, rays, low, high, todo)
        found.append(meeting)
        t[todo] = high
        todo = todo[~met]
        if len(todo) == 0:
            break
    return Meeting(**{one.name: np.concatenate([getattr(meeting, one.name) for meeting in found]) for one in fields(Meeting)})


def _approach(
    table: Table, start: Table, rays: Table, t: FloatArray, leave: FloatArray, length: FloatArray, todo: Numbers
) -> tuple[Numbers, FloatArray, FloatArray]:
    """Which of the rays ``todo`` enter the surface of the table after ``t``, and the intervals in which they do."""
    low, high, active = t[todo], t[todo], np.arange(len(todo))
    entered = np.zeros(len(todo), bool)
    for _ in range(100):
        number = todo[active]
        height = _height(table, start + high[active, None].astype(np.float32) * rays[number])
        entered[active] = height <= 0
        low[active] = np.where(height > 0, high[active], low[active])
        high[active] += np.where(height > 0, np.maximum(0.9 * height, STRIDE) / length[number], 0)
        active = active[(height > 0) & (high[active] < leave[number])]
        if len(active) == 0:
            break
    todo, low, high = todo[entered], low[entered], high[entered]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        outside = _height(table, start + middle[:, None].astype(np.float32) * rays[todo]) > 0
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    return todo, low - SLACK, high + SLACK


def _settle(
    shell: Shell, origin: FloatArray, rays: FloatArray, low: FloatArray, high: FloatArray, todo: Numbers
) -> tuple[npt.NDArray[np.bool_], Meeting]:
    """Which of the rays ``todo`` meet the shell between ``low`` and ``high`` (each m), and where."""
    rays, low, t = rays[todo], low.copy(), (low + high) / 2
    high = high.copy()
    level, gradient, hair = shell.level(origin + t[:, None] * rays)
    hopeful = np.ones(len(todo), bool)
    for step in range(40):
        still = np.flatnonzero((np.abs(level) > EXACT) & hopeful)
        if step == 6:  # what takes long is often no crossing at all, or one at a very flat angle before the interval
            low[still] = _outside(shell, origin, rays[still], low[still])
            hopeful[still] = np.isfinite(low[still]) & (shell.level(origin + high[still, None] * rays[still])[0] < 0)
            still = still[hopeful[still]]
        if len(still) == 0:
            break
        outside = level[still] > 0
        low[still[outside]], high[still[~outside]] = t[still[outside]], t[still[~outside]]
        towards = _dot(gradient[still], rays[still])
        newton = t[still] - level[still] / np.where(np.abs(towards) > 1e-6, towards, -1e-6)
        kept = (newton > low[still]) & (newton < high[still])
        t[still] = np.where(kept, newton, (low[still] + high[still]) / 2)
        level[still], gradient[still], hair[still] = shell.level(origin + t[still, None] * rays[still])
    met = (np.abs(level) <= EXACT) & (_dot(gradient, rays) < 0)
    return met, Meeting(ray=todo[met], t=t[met], place=origin + t[met, None] * rays[met], gradient=gradient[met], hair=hair[met])


def _outside(shell: Shell, origin: FloatArray, rays: FloatArray, t: FloatArray) -> FloatArray:
    """The first of some parameters (m) before ``t`` that lie outside the shell; infinite where none does."""
    result = np.full(len(t), np.inf)
    for back in (0.0, 0.2, 0.6, 1.4):
        open_ = np.flatnonzero(np.isinf(result))
        out = shell.level(origin + (t[open_] - back)[:, None] * rays[open_])[0] > 0
        result[open_[out]] = t[open_[out]] - back
    return result


def _height(table: Table, places: Table) -> Table:
    """F, to the accuracy of the table, at places (n x 3) seen from the centre."""
    x, y, z = places.T
    across = np.sqrt(x * x + z * z)
    column = ((np.arctan2(x, z) + np.float32(np.pi)) * np.float32(FINE / STEP) + np.float32(0.5))[:, None]
    row = ((np.arctan2(y, across) + np.float32(np.pi / 2)) * np.float32(FINE / STEP) + np.float32(0.5))[:, None]
    parts = [slice(k, k + 30000) for k in range(0, len(column), 30000)]  # OpenCV's images have fewer than 32768 rows
    radius = [np.asarray(cv2.remap(table, column[part], row[part], cv2.INTER_LINEAR)) for part in parts]
    return np.asarray(np.sqrt(across * across + y * y) - np.concatenate([np.zeros((0, 1), np.float32), *radius])[:, 0])


def _dot(one: FloatArray, other: FloatArray) -> FloatArray:
    """Scalar products (n) of rows (n x 3)."""
    return np.asarray(np.einsum("ni,ni->n", one, other))


def _sphere(start: FloatArray, rays: FloatArray, radius: float) -> tuple[FloatArray, FloatArray]:
    """Parameters (n) at which rays from ``start`` (3, outside) enter and leave a sphere around 0; infinite for a miss."""
    a, b = _dot(rays, rays), rays @ start
    root = b**2 - a * (start @ start - radius**2)
    half = np.sqrt(root.clip(0))
    return np.where(root > 0, (-b - half) / a, np.inf), np.where(root > 0, (-b + half) / a, np.inf)
