"""The screened Poisson equation against a direct sparse solver, and the parts of pictures that are worked on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix, csc_matrix, diags
from scipy.sparse.linalg import spsolve

from datasets_toolkit.annotators.masks import around
from datasets_toolkit.annotators.poisson import screened_poisson
from datasets_toolkit.schema import FloatArray


def direct(value: FloatArray, known: np.ndarray, screen: float) -> FloatArray:
    """The equation as one sparse system."""
    index = np.arange(value.size).reshape(value.shape)
    across, along = np.stack([index[:, :-1], index[:, 1:]]).reshape(2, -1), np.stack([index[:-1], index[1:]]).reshape(2, -1)
    ones = np.ones(across.shape[1] + along.shape[1])
    links = coo_matrix((ones, np.concatenate([across, along], 1)), shape=(value.size, value.size))
    links = links + links.T
    system = csc_matrix(diags(np.asarray(links.sum(1)).ravel() + screen) - links)
    free, fixed = np.flatnonzero(~known.ravel()), np.flatnonzero(known.ravel())
    solution = np.where(known, value, 0.0).ravel()
    if len(free) and len(fixed):
        solution[free] = spsolve(system[free][:, free], -system[free][:, fixed] @ solution[fixed])
    return solution.reshape(value.shape)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6), size=st.integers(3, 70), share=st.floats(0.002, 0.9), screen=st.floats(-6, 0).map(lambda power: 10**power)
)
def test_random_holes(seed: int, size: int, share: float, screen: float) -> None:
    generator = np.random.default_rng(seed)
    known = generator.uniform(size=(size, size)) < share
    value = generator.normal(size=(size, size))
    found, wanted = screened_poisson(value, known, screen), direct(value, known, screen)
    np.testing.assert_array_equal(found[known], value[known])
    np.testing.assert_allclose(found, wanted, atol=2e-3)


@pytest.mark.parametrize("screen", [1e-5, 6e-4, 1e-2])
def test_a_face_sized_hole(screen: float) -> None:
    y, x = np.mgrid[:128, :128]
    known = ((x - 60) / 28) ** 2 + ((y - 70) / 36) ** 2 < 1
    value = np.where(known, 3 * np.sin(x / 9) + y / 40 - 2, 0)
    np.testing.assert_allclose(screened_poisson(value, known, screen), direct(value, known, screen), atol=5e-4)


def test_nothing_known_gives_nothing_and_all_known_gives_itself() -> None:
    value = np.random.default_rng(0).normal(size=(9, 9))
    assert not screened_poisson(value, np.zeros((9, 9), bool), 0.1).any()
    np.testing.assert_array_equal(screened_poisson(value, np.ones((9, 9), bool), 0.1), value)


def test_the_part_around_a_mask() -> None:
    mask = np.zeros((20, 30), bool)
    assert around(mask, 3) == (slice(0, 20), slice(0, 30))
    mask[4:7, 10] = True
    assert around(mask, 2) == (slice(2, 9), slice(8, 13))
    mask[19, 0] = True
    assert around(mask, 5) == (slice(0, 20), slice(0, 16))
