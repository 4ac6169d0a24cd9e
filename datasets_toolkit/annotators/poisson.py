"""The screened Poisson equation on a square grid with holes, by conjugate gradients with a multigrid preconditioner.

Letters: u the values, s the screen; at every free cell i, with its neighbours j inside the grid,
    sum_j (u_i - u_j) + s u_i = 0,
and u is given at all other cells. With the given values on the right side that is A u = b, A symmetric and positive. A coarse cell stands
for its free children; it is linked to the next one half as strongly as they are together (its centre lies twice as far away), and to
given cells as they are. One V-cycle of Gauss-Seidel sweeps, red, black, then black, red, keeps the symmetry that conjugate gradients need
(Tatebe, "The multigrid preconditioned conjugate gradient method", 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datasets_toolkit.compiling import compiled
from datasets_toolkit.schema import FloatArray

PRECISION = 1e-5
"""Residual, relative to the right side, at which the iteration ends."""
_MOST = 60  # iterations; 6 to 9 are usual
_COARSEST = 4
Grid = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """Arrays of (n + 2) x (n + 2) with an empty rim: links to the right and downwards, and 1 / diagonal (0 where not free)."""

    right: Grid
    down: Grid
    inverse: Grid


def screened_poisson(value: FloatArray, known: npt.NDArray[np.bool_], screen: float) -> FloatArray:
    """``u = value`` where known; elsewhere the differences to the neighbours and ``screen u`` add up to 0, free at the border.

    Args:
        value: n x n, read where known.
        known: n x n.
        screen: s > 0, in units of the cells: values return to 0 over ``1 / sqrt(s)`` cells.
    """
    if not known.any() or known.all():
        return np.where(known, value, 0.0)
    size = len(value)
    rim = (1, (1 << max(int(np.ceil(np.log2(size))), 2)) - size + 1)
    given, free, there = np.pad(np.where(known, value, 0.0), rim), np.pad(~known, rim).astype(float), np.pad(np.ones((size, size)), rim)
    levels = _levels(free, there, screen)
    b = _neighbours(given) * free
    u, r = np.zeros_like(b), b.copy()
    limit = PRECISION * float(np.linalg.norm(b))
    p, product = np.zeros_like(b), 1.0
    for _ in range(_MOST):
        if np.linalg.norm(r) <= limit:
            break
        z = _v_cycle(levels, 0, r)
        last, product = product, float(np.vdot(r, z))
        p = z + (product / last) * p
        ap = np.zeros_like(p)
        _apply(p, levels[0].right, levels[0].down, levels[0].inverse, ap)
        step = product / float(np.vdot(p, ap))
        u += step * p
        r -= step * ap
    return np.ascontiguousarray((u + given)[1 : size + 1, 1 : size + 1])


def _levels(free: Grid, there: Grid, screen: float) -> list[_Level]:
    """The operators from the finest to the coarsest grid."""
    right, down = np.zeros_like(free), np.zeros_like(free)
    right[:, :-1], down[:-1] = free[:, :-1] * free[:, 1:], free[:-1] * free[1:]
    held = free * (_neighbours(there) - _neighbours(free) + screen)  # by given cells and by the screen
    levels = []
    while True:
        links = right + down
        links[:, 1:] += right[:, :-1]
        links[1:] += down[:-1]
        diagonal = links + held
        levels.append(_Level(right, down, np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=held + links > 0)))
        if len(free) - 2 <= _COARSEST:
            return levels
        across, along = _inner(right)[:, 1::2], _inner(down)[1::2]
        right, down = np.pad(across[::2] + across[1::2], 1) / 2, np.pad(along[:, ::2] + along[:, 1::2], 1) / 2
        held = np.pad(_quarters(_inner(held)), 1)
        free = held


def _v_cycle(levels: list[_Level], depth: int, b: Grid) -> Grid:
    """An approximate solution of ``A u = b``, linear and symmetric in b."""
    level = levels[depth]
    u = np.zeros_like(b)
    sweeps = 1 if depth < len(levels) - 1 else 8
    for _ in range(sweeps):
        _sweep(u, b, level.right, level.down, level.inverse, 0)
        _sweep(u, b, level.right, level.down, level.inverse, 1)
    if depth < len(levels) - 1:
        coarse = np.zeros_like(levels[depth + 1].inverse)
        _restrict(u, b, level.right, level.down, level.inverse, coarse)
        _prolong(_v_cycle(levels, depth + 1, coarse), level.inverse, u)
    for _ in range(sweeps):
        _sweep(u, b, level.right, level.down, level.inverse, 1)
        _sweep(u, b, level.right, level.down, level.inverse, 0)
    return u


def _inner(array: Grid) -> Grid:
    return array[1:-1, 1:-1]


def _neighbours(array: Grid) -> Grid:
    """The sum of the four neighbours of each cell; the rim is left at 0."""
    total = np.zeros_like(array)
    total[1:-1, 1:-1] = array[:-2, 1:-1] + array[2:, 1:-1] + array[1:-1, :-2] + array[1:-1, 2:]
    return total


def _quarters(array: Grid) -> Grid:
    """Sums of 2 x 2 cells."""
    rows = array[0::2] + array[1::2]
    return np.asarray(rows[:, 0::2] + rows[:, 1::2])


@compiled()
def _sweep(u, b, right, down, inverse, colour):  # type: ignore[no-untyped-def]
    """Gauss-Seidel on the cells of one colour."""
    size = u.shape[0]
    for y in range(1, size - 1):
        for x in range(1 + (y + colour) % 2, size - 1, 2):
            if inverse[y, x] > 0.0:
                near = right[y, x - 1] * u[y, x - 1] + right[y, x] * u[y, x + 1]
                near += down[y - 1, x] * u[y - 1, x] + down[y, x] * u[y + 1, x]
                u[y, x] = (b[y, x] + near) * inverse[y, x]


@compiled()
def _apply(u, right, down, inverse, result):  # type: ignore[no-untyped-def]
    """``result = A u``."""
    size = u.shape[0]
    for y in range(1, size - 1):
        for x in range(1, size - 1):
            if inverse[y, x] > 0.0:
                near = right[y, x - 1] * u[y, x - 1] + right[y, x] * u[y, x + 1]
                near += down[y - 1, x] * u[y - 1, x] + down[y, x] * u[y + 1, x]
                result[y, x] = u[y, x] / inverse[y, x] - near


@compiled()
def _restrict(u, b, right, down, inverse, coarse):  # type: ignore[no-untyped-def]
    """Add up the residuals of the children of each coarse cell."""
    size = u.shape[0]
    for y in range(1, size - 1):
        for x in range(1, size - 1):
            if inverse[y, x] > 0.0:
                near = right[y, x - 1] * u[y, x - 1] + right[y, x] * u[y, x + 1]
                near += down[y - 1, x] * u[y - 1, x] + down[y, x] * u[y + 1, x]
                coarse[(y + 1) // 2, (x + 1) // 2] += b[y, x] + near - u[y, x] / inverse[y, x]


@compiled()
def _prolong(coarse, inverse, u):  # type: ignore[no-untyped-def]
    """Add each coarse cell's correction to its children."""
    size = u.shape[0]
    for y in range(1, size - 1):
        for x in range(1, size - 1):
            if inverse[y, x] > 0.0:
                u[y, x] += coarse[(y + 1) // 2, (x + 1) // 2]
