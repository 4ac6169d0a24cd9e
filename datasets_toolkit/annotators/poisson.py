"""The screened Poisson equation on a square grid with holes, by conjugate gradients with a multigrid preconditioner.

Letters: u the values, s the screen; at every free cell i, with its neighbours j inside the grid,
    sum_j (u_i - u_j) + s u_i = 0,
and u is given at all other cells. With the given values on the right side that is A u = b, A symmetric and positive. A coarse cell stands
for its free children; it is linked to the next one half as strongly as they are together (its centre lies twice as far away), and to
given cells as they are. One V-cycle keeps the symmetry that conjugate gradients need (Tatebe, "The multigrid preconditioned conjugate
gradient method", 1993). It smooths by damped Jacobi sweeps, which fill the vector units; Gauss-Seidel needs fewer sweeps and more time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datasets_toolkit.compiling import compiled
from datasets_toolkit.schema import FloatArray

PRECISION = 1e-5
"""Residual, relative to the right side, at which the iteration ends."""
_MOST = 60  # iterations; 6 to 9 are usual
_COARSEST = 4
_DAMPING = np.float32(0.8)
_SWEEPS, _LAST_SWEEPS = 2, 24  # before and after each coarse correction; on the coarsest grid
Grid = npt.NDArray[np.float32]


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
    side = (1 << max(int(np.ceil(np.log2(size))), 2)) + 2
    given, free, there = (np.zeros((side, side), np.float32) for _ in range(3))
    part = slice(1, size + 1)
    given[part, part], free[part, part], there[part, part] = np.where(known, value, 0.0), ~known, 1
    right, down, diagonal, inverse = _levels(free, there, np.float32(screen))
    u, spare, b = (tuple(np.zeros_like(one) for one in inverse) for _ in range(3))
    solution = np.zeros_like(free)
    _solve(solution, _neighbours(given) * free, right, down, diagonal, inverse, u, spare, b, PRECISION)
    return np.where(known, value, solution[part, part].astype(np.float64))


def _levels(free: Grid, there: Grid, screen: np.float32) -> tuple[tuple[Grid, ...], ...]:
    """The operators from the finest to the coarsest grid: links to the right and downwards, the diagonal, and its inverse.

    Each is (n + 2) x (n + 2) with an empty rim; the diagonal and its inverse are 0 where a cell is not free.
    """
    right, down, held = np.zeros_like(free), np.zeros_like(free), np.zeros_like(free)
    _first_links(free, there, screen, right, down, held)
    levels = []
    while True:
        diagonal, inverse = np.zeros_like(held), np.zeros_like(held)
        _diagonals(right, down, held, diagonal, inverse)
        levels.append((right, down, diagonal, inverse))
        side = (len(held) - 2) // 2 + 2
        if side - 2 < _COARSEST:
            return tuple(zip(*levels, strict=True))
        fine, (right, down, held) = (right, down, held), (np.zeros((side, side), np.float32) for _ in range(3))
        _coarser(*fine, right, down, held)


def _neighbours(array: Grid) -> Grid:
    """The sum of the four neighbours of each cell; the rim is left at 0."""
    total = np.zeros_like(array)
    total[1:-1, 1:-1] = array[:-2, 1:-1] + array[2:, 1:-1] + array[1:-1, :-2] + array[1:-1, 2:]
    return total


@compiled()
def _solve(solution, r, right, down, diagonal, inverse, u, spare, b, precision):  # type: ignore[no-untyped-def]
    """Preconditioned conjugate gradients from 0; ``r`` is the right side. The last tuples are room for each level."""
    p, ap = np.zeros_like(r), np.zeros_like(r)
    limit, product = precision * precision * _dot(r, r), 1.0
    for _ in range(_MOST):
        if _dot(r, r) <= limit:
            return
        b[0][:] = r
        _v_cycle(right, down, diagonal, inverse, u, spare, b)
        last, product = product, _dot(r, u[0])
        _add(p, u[0], product / last, 1.0)
        ap[:] = 0
        _residual(p, ap, right[0], down[0], diagonal[0], spare[0])  # -A p
        step = product / _dot(p, spare[0])
        _add(solution, p, 1.0, -step)
        _add(r, spare[0], 1.0, -step)


@compiled()
def _v_cycle(right, down, diagonal, inverse, u, spare, b):  # type: ignore[no-untyped-def]
    """Bring ``u[0]`` near the solution of ``A u = b[0]``, by a map that is linear and symmetric."""
    last = len(u) - 1
    for k in range(last):
        u[k][:] = 0
        _smooth(u[k], b[k], right[k], down[k], diagonal[k], inverse[k], spare[k], _SWEEPS)
        _residual(u[k], b[k], right[k], down[k], diagonal[k], spare[k])
        _restrict(spare[k], b[k + 1])
    u[last][:] = 0
    _smooth(u[last], b[last], right[last], down[last], diagonal[last], inverse[last], spare[last], _LAST_SWEEPS)
    for k in range(last - 1, -1, -1):
        _prolong(u[k + 1], inverse[k], u[k])
        _smooth(u[k], b[k], right[k], down[k], diagonal[k], inverse[k], spare[k], _SWEEPS)


@compiled(fastmath=True)
def _dot(a, b):  # type: ignore[no-untyped-def]
    first, second, total = a.ravel(), b.ravel(), 0.0
    for i in range(len(first)):
        total += np.float64(first[i] * second[i])
    return total


@compiled()
def _add(u, v, kept, share):  # type: ignore[no-untyped-def]
    """``u = kept u + share v``."""
    first, second = u.ravel(), v.ravel()
    kept, share = np.float32(kept), np.float32(share)
    for i in range(len(first)):
        first[i] = kept * first[i] + share * second[i]


@compiled()
def _smooth(u, b, right, down, diagonal, inverse, spare, sweeps):  # type: ignore[no-untyped-def]
    """Damped Jacobi sweeps."""
    target, weight, residual = u.ravel(), inverse.ravel(), spare.ravel()
    for _ in range(sweeps):
        _residual(u, b, right, down, diagonal, spare)
        for i in range(len(target)):
            target[i] += _DAMPING * weight[i] * residual[i]


@compiled()
def _first_links(free, there, screen, right, down, held):  # type: ignore[no-untyped-def]
    """Links between free cells, and how strongly given cells and the screen hold each of them."""
    for y in range(1, free.shape[0] - 1):
        for x in range(1, free.shape[0] - 1):
            right[y, x], down[y, x] = free[y, x] * free[y, x + 1], free[y, x] * free[y + 1, x]
            neighbours = there[y, x - 1] + there[y, x + 1] + there[y - 1, x] + there[y + 1, x]
            neighbours -= free[y, x - 1] + free[y, x + 1] + free[y - 1, x] + free[y + 1, x]
            held[y, x] = free[y, x] * (neighbours + screen)


@compiled()
def _diagonals(right, down, held, diagonal, inverse):  # type: ignore[no-untyped-def]
    """What stands on the diagonal of A."""
    for y in range(1, held.shape[0] - 1):
        for x in range(1, held.shape[0] - 1):
            total = held[y, x] + right[y, x] + right[y, x - 1] + down[y, x] + down[y - 1, x]
            diagonal[y, x], inverse[y, x] = total, np.float32(1) / total if total > 0 else np.float32(0)


@compiled()
def _coarser(right, down, held, coarse_right, coarse_down, coarse_held):  # type: ignore[no-untyped-def]
    """The links of the next coarser grid."""
    for y in range(1, coarse_held.shape[0] - 1):
        for x in range(1, coarse_held.shape[0] - 1):
            top, left = 2 * y - 1, 2 * x - 1
            coarse_held[y, x] = held[top, left] + held[top, left + 1] + held[top + 1, left] + held[top + 1, left + 1]
            coarse_right[y, x] = (right[top, left + 1] + right[top + 1, left + 1]) * np.float32(0.5)
            coarse_down[y, x] = (down[top + 1, left] + down[top + 1, left + 1]) * np.float32(0.5)


@compiled(fastmath=True)
def _residual(u, b, right, down, diagonal, result):  # type: ignore[no-untyped-def]
    """``result = b - A u``. Rows are taken as one line: the rim between them is 0 in all arrays, and stays so."""
    wide, size = u.shape[1], u.size
    middle, up, low = slice(wide, size - wide), slice(0, size - 2 * wide), slice(2 * wide, size)
    line, before, after, above, below = u.ravel()[middle], u.ravel()[wide - 1 :], u.ravel()[wide + 1 :], u.ravel()[up], u.ravel()[low]
    left, ahead, over, under = right.ravel()[wide - 1 :], right.ravel()[middle], down.ravel()[up], down.ravel()[middle]
    given, own, target = b.ravel()[middle], diagonal.ravel()[middle], result.ravel()[middle]
    for i in range(len(target)):
        near = left[i] * before[i] + ahead[i] * after[i] + over[i] * above[i] + under[i] * below[i]
        target[i] = given[i] + near - own[i] * line[i]


@compiled()
def _restrict(r, coarse):  # type: ignore[no-untyped-def]
    """Add up the residuals (0 where not free) of the children of each coarse cell."""
    for y in range(1, coarse.shape[0] - 1):
        for x in range(1, coarse.shape[0] - 1):
            top, left = 2 * y - 1, 2 * x - 1
            coarse[y, x] = r[top, left] + r[top, left + 1] + r[top + 1, left] + r[top + 1, left + 1]


@compiled()
def _prolong(coarse, inverse, u):  # type: ignore[no-untyped-def]
    """Add each coarse cell's correction to its free children."""
    for y in range(1, u.shape[0] - 1):
        for x in range(1, u.shape[0] - 1):
            if inverse[y, x] > 0.0:
                u[y, x] += coarse[(y + 1) // 2, (x + 1) // 2]
