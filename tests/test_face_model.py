"""The linear face model: closed forms, symmetry, and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_scenes import face_model
from torch import Tensor

from datasets_toolkit.schema import BLENDSHAPES
from mggtalk.geometry.face_model import LIKELY
from mggtalk.geometry.symmetry import mirror_points

MODEL = face_model()
seeds = st.integers(0, 10**6)
SWAPPED = [BLENDSHAPES.index(_other) for _other in (
    name.replace("Left", "?").replace("Right", "Left").replace("?", "Right") for name in BLENDSHAPES
)]  # fmt: skip


def expressions(seed: int, count: int, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, len(BLENDSHAPES), generator=generator)
    return torch.cat([scores, size * torch.randn(count, len(MODEL.components), generator=generator)], -1)


def people(seed: int, count: int) -> Tensor:
    coefficients = torch.randn(count, len(MODEL.identity), generator=torch.Generator().manual_seed(seed))
    return MODEL.mean + torch.einsum("na,avk->nvk", coefficients, MODEL.identity)


def mirrored(meshes: Tensor) -> Tensor:
    """The meshes seen in a mirror: reflected, and left and right vertices exchanged."""
    return mirror_points(meshes)[..., MODEL.mirror, :]


def ridge(basis: Tensor, residuals: Tensor) -> np.ndarray:
    """Maximum a posteriori coefficients as one least squares problem with a row for each prior."""
    weights = MODEL.importance.double().numpy()[:, None]
    matrix = (basis.double().numpy() * weights).reshape(len(basis), -1).T
    targets = (residuals.double().numpy() * weights).reshape(len(residuals), -1).T
    rows = np.concatenate([matrix, MODEL.noise * np.eye(len(basis))])
    zeros = np.zeros((len(basis), targets.shape[1]))
    return np.linalg.lstsq(rows, np.concatenate([targets, zeros]), rcond=None)[0].T


@settings(deadline=None, max_examples=10)
@given(seed=seeds)
def test_expressions_are_the_ridge_solution_and_invert_displacement(seed: int) -> None:
    """What the ridge leaves is the prior's doing: without noise in the meshes a coefficient shrinks by a few hundredths."""
    true, neutral = expressions(seed, 4), people(seed, 1)[0]
    meshes = neutral + MODEL.displacement(true)
    found = MODEL.expression(meshes, true[:, :52], neutral)
    assert torch.equal(found[:, :52], true[:, :52])
    left = meshes - neutral - MODEL.displacement(torch.cat([true[:, :52], torch.zeros(4, len(MODEL.components))], -1))
    np.testing.assert_allclose(found[:, 52:].numpy(), ridge(MODEL.components, left), atol=2e-3)
    assert (MODEL.displacement(found) - MODEL.displacement(true)).norm(dim=-1).max() < 0.02
    assert ((found - true).abs() < 0.1 * (1 + true.abs())).all()


@settings(deadline=None, max_examples=10)
@given(seed=seeds)
def test_a_change_is_the_difference_of_expressions_whoever_the_person_is(seed: int) -> None:
    """Of frames of one person: the neutral face, given or not, cancels."""
    first, second, neutral = expressions(seed, 3), expressions(seed + 1, 3), people(seed, 1)[0]
    meshes = [neutral + MODEL.displacement(one) for one in (first, second)]
    found = MODEL.change(meshes[0], meshes[1], second[:, :52] - first[:, :52])
    other = people(seed + 2, 1)[0]
    begin, end = (MODEL.expression(mesh, one[:, :52], other) for mesh, one in zip(meshes, (first, second), strict=True))
    torch.testing.assert_close(found, end - begin, rtol=1e-3, atol=2e-3)
    assert (MODEL.displacement(found) - (meshes[1] - meshes[0])).norm(dim=-1).max() < 0.03  # cm


@settings(deadline=None, max_examples=10)
@given(seed=seeds)
def test_a_split_adds_up_and_is_the_ridge_solution_of_both_bases_as_far_as_it_is_likely(seed: int) -> None:
    mesh = people(seed, 1)[0] + MODEL.displacement(expressions(seed, 1)[0])
    mesh = mesh + 0.02 * torch.randn(mesh.shape, generator=torch.Generator().manual_seed(seed))
    scores = expressions(seed, 1)[0, :52]
    neutral, expression = MODEL.split(mesh, scores)
    torch.testing.assert_close(neutral + MODEL.displacement(expression), mesh, rtol=0, atol=2e-6)
    assert torch.equal(expression[:52], scores)
    left = mesh - MODEL.mean - MODEL.displacement(torch.cat([scores, torch.zeros(len(MODEL.components))]))
    motion = ridge(torch.cat([MODEL.identity, MODEL.components]), left[None])[0][len(MODEL.identity) :]
    shortened = motion * min(1.0, LIKELY / float(np.sqrt((motion**2).mean())))
    np.testing.assert_allclose(expression[52:].numpy(), shortened, atol=2e-3)


@settings(deadline=None, max_examples=10)
@given(seed=seeds)
def test_a_split_claims_no_motion_beyond_what_is_likely(seed: int) -> None:
    """A face thirty standard deviations away is a person who looks so: the split still adds up, its motion points the same way."""
    wild = torch.cat([torch.zeros(52), 30 * torch.randn(len(MODEL.components), generator=torch.Generator().manual_seed(seed))])
    mesh = MODEL.mean + MODEL.displacement(wild)
    neutral, expression = MODEL.split(mesh, wild[:52])
    torch.testing.assert_close(neutral + MODEL.displacement(expression), mesh, rtol=0, atol=2e-5)
    motion = expression[52:]
    assert abs(float(motion.square().mean().sqrt()) - LIKELY) < 1e-4
    both = ridge(torch.cat([MODEL.identity, MODEL.components]), (mesh - MODEL.mean)[None])[0]
    free = torch.as_tensor(both[len(MODEL.identity) :]).to(motion)
    assert float(torch.cosine_similarity(motion, free, dim=0)) > 0.9999


def test_the_same_expression_moves_nothing() -> None:
    one = expressions(1, 3)
    assert torch.equal(MODEL.displacement(one - one), torch.zeros(3, 478, 3))


@settings(deadline=None, max_examples=10)
@given(seed=seeds)
def test_displacement_is_linear_and_batches(seed: int) -> None:
    one, two = expressions(seed, 3), expressions(seed + 1, 3)
    torch.testing.assert_close(MODEL.displacement(one - two), MODEL.displacement(one) - MODEL.displacement(two), rtol=0, atol=1e-4)
    for index in range(3):
        torch.testing.assert_close(MODEL.displacement(one)[index], MODEL.displacement(one[index]), rtol=0, atol=1e-5)


def test_frames_are_solved_one_by_one() -> None:
    true, neutral = expressions(2, 5), people(2, 1)[0]
    meshes = neutral + MODEL.displacement(true)
    together = MODEL.expression(meshes, true[:, :52], neutral)
    for index in range(5):
        alone = MODEL.expression(meshes[index : index + 1], true[index : index + 1, :52], neutral)
        torch.testing.assert_close(together[index], alone[0], rtol=0, atol=1e-5)


def test_a_neutral_face_is_what_blendshapes_leave_on_average() -> None:
    true, neutral = expressions(4, 40, 0.0), people(4, 1)[0]
    torch.testing.assert_close(MODEL.neutral(neutral + MODEL.displacement(true), true[:, :52]), neutral, rtol=0, atol=1e-5)


def test_the_mean_and_the_blendshapes_are_symmetric() -> None:
    """Exactly so: the basis is symmetrised when it is made."""
    assert sorted(SWAPPED) == list(range(52)) and list(range(52)) != SWAPPED
    torch.testing.assert_close(mirrored(MODEL.mean), MODEL.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(mirrored(MODEL.blendshapes[SWAPPED]), MODEL.blendshapes, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=10)
@given(seed=seeds)
def test_a_mirrored_face_has_the_mirrored_displacements(seed: int) -> None:
    """Mirrored meshes and exchanged left and right scores: the split is the mirrored one, and so is what it displaces."""
    scores = expressions(seed, 1)[0, :52]
    mesh = people(seed, 1)[0] + MODEL.displacement(expressions(seed, 1)[0])
    neutral, expression = MODEL.split(mesh, scores)
    their_neutral, theirs = MODEL.split(mirrored(mesh), scores[SWAPPED])
    torch.testing.assert_close(their_neutral, mirrored(neutral), rtol=0, atol=1e-3)
    torch.testing.assert_close(MODEL.displacement(theirs), mirrored(MODEL.displacement(expression)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name, vertex, axis, sign", [("jawOpen", 152, 1, -1), ("jawLeft", 152, 0, 1), ("eyeBlinkLeft", 386, 1, -1)])
def test_blendshapes_move_what_they_are_named_after(name: str, vertex: int, axis: int, sign: int) -> None:
    """The chin down, the chin to the person's left, the left upper lid down; the forehead stays."""
    moved = MODEL.blendshapes[BLENDSHAPES.index(name)]
    assert sign * moved[vertex, axis] > 0.2
    assert moved[10].norm() < 0.25 * moved[vertex].norm()


def test_nothing_of_it_is_trained_or_saved() -> None:
    assert not list(MODEL.parameters()) and not MODEL.state_dict()
    assert MODEL.expression_size == len(MODEL.blendshapes) + len(MODEL.components)
    assert torch.equal(MODEL.mirror[MODEL.mirror], torch.arange(478))
