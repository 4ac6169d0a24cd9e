"""Star-shaped surfaces: a radius for every direction from a centre, smooth, with exact derivatives.

Letters: P = X - C the place of a point as seen from the centre; phi = atan2(P_x, P_z) its longitude (0 in front, towards the person's
left positive), theta = atan2(P_y, hypot(P_x, P_z)) its elevation; r(phi, theta) the radius. The surface is where
    F(X) = |P| - r(phi, theta) = 0,
and its outward normal is the gradient of F. A radius field is a uniform bicubic B-spline over longitude (periodic) and elevation (a row
beyond a pole is the row on the other side of it, half a turn around).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack
from scipy.sparse.linalg import splu

from datasets_toolkit.schema import FloatArray

ROWS, COLUMNS = 40, 80
"""Control values over elevation and longitude: 4.5 degrees apart, 0.7 cm on a face."""
STEP = np.pi / ROWS
STIFFNESS = 0.03
"""Weight of the second differences when a field is fitted to points; weights of points are about 1."""
_BASIS = np.array([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]]) / 6.0  # powers of the fraction x the four taps


def angles(places: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Longitude and elevation (each ...) of places (... x 3) relative to the centre, radians."""
    across = np.hypot(places[..., 0], places[..., 2])
    return np.arctan2(places[..., 0], places[..., 2]), np.arctan2(places[..., 1], across)


def directions(longitude: FloatArray, elevation: FloatArray) -> FloatArray:
    """Unit vectors (... x 3) of longitudes and elevations."""
    flat = np.cos(elevation)
    return np.stack([np.sin(longitude) * flat, np.sin(elevation), np.cos(longitude) * flat], -1)


def nodes() -> tuple[FloatArray, FloatArray]:
    """Longitude and elevation (each ROWS x COLUMNS) of the control values."""
    row, column = np.arange(ROWS) + 0.5, np.arange(COLUMNS) + 0.5
    elevation, longitude = np.meshgrid(row * STEP - np.pi / 2, column * STEP - np.pi, indexing="ij")
    return longitude, elevation


class RadialField:
    """One or more fields over the directions, evaluated together.

    Args:
        values: ROWS x COLUMNS x fields, the control values.
    """

    def __init__(self, values: FloatArray) -> None:
        table = _padded(values)
        self._fields, self._width = table.shape[2], table.shape[1]
        self._flat = table.reshape(-1, self._fields)
        self._offsets = (np.arange(4)[:, None] * self._width + np.arange(4)).ravel()

    def __call__(self, longitude: FloatArray, elevation: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Fields (n x fields), and their derivatives by longitude and by elevation, at n directions (radians)."""
        row, row_weights, row_slopes = _taps(elevation + np.pi / 2)
        column, column_weights, column_slopes = _taps(longitude + np.pi)
        taken = self._flat[(row * self._width + column)[:, None] + self._offsets].reshape(-1, 4, 4 * self._fields)
        rows = np.matmul(np.stack([row_weights, row_slopes], 1), taken).reshape(-1, 2, 4, self._fields)
        value, by_longitude = np.matmul(np.stack([column_weights, column_slopes], 1), rows[:, 0]).swapaxes(0, 1)
        return value, by_longitude, np.matmul(column_weights[:, None], rows[:, 1])[:, 0]


@dataclass(frozen=True, kw_only=True)
class Shell:
    """The surface of a skull and what grows on it.

    Attributes:
        centre: 3, of the directions.
        skull: ROWS x COLUMNS, control values of the radius, cm.
        hair: ROWS x COLUMNS, control values of the height of the hair above the skull, cm; there is none where the field is negative.
    """

    centre: FloatArray
    skull: FloatArray
    hair: FloatArray

    @cached_property
    def _field(self) -> RadialField:
        return RadialField(np.stack([self.skull, self.hair], -1))

    def table(self, fine: int) -> npt.NDArray[np.float32]:
        """The radius with hair, ``fine`` samples a control value (ROWS fine x COLUMNS fine), cm; the first ones lie half a sample in."""
        taps = np.arange(4)
        row, row_weights, _ = _taps((np.arange(fine * ROWS) + 0.5) * STEP / fine)
        column, column_weights, _ = _taps((np.arange(fine * COLUMNS) + 0.5) * STEP / fine)
        padded = _padded(np.stack([self.skull, self.hair], -1))
        tall = np.einsum("ni,niwf->nwf", row_weights, padded[row[:, None] + taps])
        sampled = np.einsum("nj,hnjf->hnf", column_weights, tall[:, column[:, None] + taps])
        return np.asarray(sampled[..., 0] + np.maximum(sampled[..., 1], 0), np.float32)

    def radius(self, longitude: FloatArray, elevation: FloatArray) -> FloatArray:
        """Radius (n, cm) of the skin, without hair."""
        return RadialField(self.skull[..., None])(longitude, elevation)[0][:, 0]

    def level(self, points: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """F, its gradient (n x 3) and the height of the hair (n, negative where there is none) at points (n x 3)."""
        places = points - self.centre
        longitude, elevation = angles(places)
        values, by_longitude, by_elevation = self._field(longitude, elevation)
        hairy = values[:, 1] > 0
        east, north = (slope[:, 0] + np.where(hairy, slope[:, 1], 0) for slope in (by_longitude, by_elevation))
        x, y, z = places.T
        across = np.sqrt(x**2 + z**2).clip(1e-9)
        distance = np.sqrt(across**2 + y**2)
        east, north, outward = east / across**2, north / distance**2, 1 / distance
        gradient = np.stack(
            [
                x * outward - east * z + north * x * y / across,
                y * outward - north * across,
                z * outward + east * x + north * y * z / across,
            ],
            -1,
        )
        return distance - values[:, 0] - np.where(hairy, values[:, 1], 0), gradient, values[:, 1]


def fit_radius(places: FloatArray, weights: FloatArray) -> FloatArray:
    """Control values (ROWS x COLUMNS) of the smoothest field through places (n x 3) seen from the centre, by weighted least squares."""
    longitude, elevation = angles(places)
    root = np.sqrt(weights)
    data = csr_matrix(_design(longitude, elevation).multiply(root[:, None]))
    system = vstack([data, STIFFNESS * _second_differences()]).tocsr()
    target = np.concatenate([root * np.linalg.norm(places, axis=-1), np.zeros(system.shape[0] - len(places))])
    solver = splu((system.T @ system).tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return np.asarray(solver.solve(system.T @ target)).reshape(ROWS, COLUMNS)


def _taps(angle: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray]:
    """First tap in a padded table, weights and slopes (n x 4) of the four taps around an angle (n, from the table's first edge)."""
    place = angle / STEP - 0.5
    first = np.floor(place).astype(np.int64)
    part = place - first
    powers = np.stack([np.ones_like(part), part, part**2, part**3], -1)
    slopes = np.stack([np.zeros_like(part), np.ones_like(part), 2 * part, 3 * part**2], -1) / STEP
    return first + 1, powers @ _BASIS, slopes @ _BASIS


def _padded(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Control values with two more on every side: around the turn, and across the poles."""
    half = np.roll(values, COLUMNS // 2, 1)
    tall = np.concatenate([half[1::-1], values, half[:-3:-1]], 0)
    return np.concatenate([tall[:, -2:], tall, tall[:, :2]], 1)


def _design(longitude: FloatArray, elevation: FloatArray) -> csr_matrix:
    """The matrix (n x ROWS COLUMNS) that takes control values to the field at n directions."""
    index = _padded(np.arange(ROWS * COLUMNS, dtype=np.int64).reshape(ROWS, COLUMNS))
    row, row_weights, _ = _taps(elevation + np.pi / 2)
    column, column_weights, _ = _taps(longitude + np.pi)
    taps = np.arange(4)
    columns = index[row[:, None, None] + taps[:, None], column[:, None, None] + taps]
    weights = row_weights[:, :, None] * column_weights[:, None, :]
    rows = np.broadcast_to(np.arange(len(longitude))[:, None, None], columns.shape)
    return csr_matrix((weights.ravel(), (rows.ravel(), columns.ravel())), shape=(len(longitude), ROWS * COLUMNS))


def _second_differences() -> csr_matrix:
    """Second differences along rows, columns and both (scaled to lengths on the sphere) of the control values."""
    index = _padded(np.arange(ROWS * COLUMNS, dtype=np.int64).reshape(ROWS, COLUMNS))[1:-1, 1:-1]
    here = index[1:-1, 1:-1]
    count = ROWS * COLUMNS
    shrink = np.repeat(1 / np.cos(nodes()[1][:, 0]).clip(0.2), COLUMNS)
    blocks = []
    for before, after, scale in (
        (index[:-2, 1:-1], index[2:, 1:-1], np.ones(count)),
        (index[1:-1, :-2], index[1:-1, 2:], shrink),
    ):
        rows = np.tile(np.arange(count), 3)
        columns = np.concatenate([before.ravel(), here.ravel(), after.ravel()])
        weights = np.concatenate([scale, -2 * scale, scale])
        blocks.append(csr_matrix((weights, (rows, columns)), shape=(count, count)))
    return vstack(blocks)
