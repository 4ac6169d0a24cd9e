"""The slow twin of the normal integrator."""

from __future__ import annotations

import math

import numpy as np

from datasets_toolkit.schema import FloatArray

CENTRE = (3.1, 3.3)
"""Principal point of the twin's camera, pixels."""


def dense(
    normals: FloatArray, coarse: FloatArray, mask: np.ndarray, prior_weight: float, sharpness: float, focal: FloatArray
) -> FloatArray:
    """One reweighting with the equations of the paper, pixel by pixel, as rows of one dense system."""
    number = {(int(i), int(j)): k for k, (i, j) in enumerate(np.argwhere(mask))}
    prior, rows, targets = np.log(coarse), [], []
    for (i, j), k in number.items():
        ray = np.array([(j + 0.5 - CENTRE[0]) / focal[0], (i + 0.5 - CENTRE[1]) / focal[1], 1])
        for axis, (di, dj) in ((0, (0, 1)), (1, (1, 0))):
            steep, offset = focal[axis] * float(normals[i, j] @ ray), float(normals[i, j, axis])
            after, before = (i + di, j + dj), (i - di, j - dj)
            right = steep * (prior[after] - prior[i, j]) if after in number else -offset
            left = steep * (prior[i, j] - prior[before]) if before in number else -offset
            weight = 1 / (1 + math.exp(-sharpness * (left**2 - right**2)))
            for other, sign, share in ((after, 1, weight), (before, -1, 1 - weight)):
                if other in number:
                    row = np.zeros(len(number))
                    row[number[other]], row[k] = sign * steep, -sign * steep
                    rows.append(math.sqrt(share) * row)
                    targets.append(-math.sqrt(share) * offset)
        row = np.zeros(len(number))
        row[k] = math.sqrt(prior_weight)
        rows.append(row)
        targets.append(math.sqrt(prior_weight) * prior[i, j])
    return np.exp(np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0])
