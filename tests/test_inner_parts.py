"""What a closed mouth hides: where the generic parts lie, when they appear, and what colour they have."""

from __future__ import annotations

from dataclasses import replace

import torch
from model_scenes import labelled, made_frame

from datasets_toolkit.faces import face_regions
from datasets_toolkit.schema import Region
from mggtalk.geometry.inner_parts import DARK, FLESH, PARTED, PATCH, inner_points
from mggtalk.types import Frame, PointCloud

COUNT = PATCH[0] * PATCH[1]
CAVITY, TONGUE, TEETH = range(3)


def part(frame: Frame, number: int) -> PointCloud:
    return inner_points(frame)[:, number * COUNT : (number + 1) * COUNT]


def skin(frame: Frame) -> torch.Tensor:
    return frame.image[:, :, labelled(frame, Region.SKIN)[0, 0]].mean(-1)


def test_teeth_hang_from_the_skull_and_the_tongue_rises_from_the_jaw() -> None:
    """Teeth end .3 cm below the upper lip, the tongue fades out above the lower one, and all lie behind the lips, the cavity deepest."""
    frame = made_frame(96)
    upper, lower = (frame.mesh[0, vertex] for vertex in (face_regions.UPPER_INNER_LIP, face_regions.LOWER_INNER_LIP))
    cavity, tongue, teeth = (part(frame, number) for number in (CAVITY, TONGUE, TEETH))
    assert abs(float(upper[1] - teeth.positions[0, :, 1].min()) - 0.27) < 0.03
    assert float(lower[1] - tongue.positions[0, :, 1].max()) < 0 and float(teeth.weights.sum()) == 0
    torch.testing.assert_close(tongue.weights.sum(-1), torch.ones(1, COUNT))
    depths = [float(points.positions[0, :, 2].max()) for points in (cavity, tongue, teeth)]
    assert depths == sorted(depths) and depths[-1] < float(torch.minimum(upper[2], lower[2])) - 0.5
    rows = tongue.opacity.reshape(PATCH)
    assert bool((rows[: PATCH[0] // 2].diff(dim=0) > 0).all()) and float(rows[0].max()) < 0.1 < 0.9 < float(rows[-1].max())


def test_colours_follow_the_skin() -> None:
    """In the middle of each part: the shares of the skin that the module names, and teeth between the skin and white."""
    frame = made_frame(96)
    middle = COUNT // 2 + PATCH[1] // 2
    for number, share in ((CAVITY, DARK), (TONGUE, FLESH)):
        torch.testing.assert_close(part(frame, number).colour[:, middle], skin(frame) * torch.tensor(share), rtol=0.02, atol=0)
    darker = replace(frame, image=0.5 * frame.image)
    torch.testing.assert_close(part(darker, TEETH).colour, 0.5 * part(frame, TEETH).colour, rtol=1e-4, atol=1e-5)


def test_teeth_that_a_source_shows_give_their_colour() -> None:
    """Bright pixels between parted lips are teeth; between closed lips, or dark, they are not."""
    opened = made_frame(96, jaw=0.5)
    gap = opened.mesh[0, face_regions.UPPER_INNER_LIP, 1] - opened.mesh[0, face_regions.LOWER_INNER_LIP, 1]
    assert float(gap) > PARTED and int(labelled(opened, Region.MOUTH).sum()) > 12
    mouth = labelled(opened, Region.MOUTH).expand_as(opened.image)
    blue = torch.tensor([0.7, 0.8, 0.9])[None, :, None, None]
    showing = replace(opened, image=torch.where(mouth, blue, opened.image))
    empty = replace(opened, image=torch.where(mouth, 0.05, opened.image))
    shown, usual = part(showing, TEETH).colour, part(empty, TEETH).colour
    torch.testing.assert_close(shown.amax(1), blue.flatten(1), rtol=0.02, atol=0)
    shut = replace(showing, mesh=showing.mesh.clone())
    shut.mesh[0, face_regions.LOWER_INNER_LIP, 1] = shut.mesh[0, face_regions.UPPER_INNER_LIP, 1]
    torch.testing.assert_close(part(shut, TEETH).colour, usual, rtol=1e-4, atol=1e-5)
