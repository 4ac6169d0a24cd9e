"""What a source is taken apart into: which pixels are the head's, which bend, and what goes on where the head hides it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_scenes import DISTANCE, made_frame

from datasets_toolkit.faces.face_regions import CHIN
from datasets_toolkit.schema import Region
from mggtalk.geometry.cameras import pixel_centres, project, unproject
from mggtalk.geometry.layers import BEARD, HANGS, NECK_HALF_WIDTH, NECK_REACH, take_apart
from mggtalk.geometry.neck import PIVOT
from mggtalk.types import Frame


def pivot_of(frame: Frame) -> tuple[float, float, float]:
    """Its pixel, and pixels a cm there."""
    x, y = project(torch.tensor([[PIVOT]]), frame.camera)[0][0, 0].tolist()
    return x, y, float(frame.camera.intrinsics[0, 1, 1] / (DISTANCE - PIVOT[2]))


@pytest.mark.parametrize("collar", [False, True])
def test_the_neck_goes_on_behind_the_head_and_nowhere_else(collar: bool) -> None:
    """It is the neck where that is to be seen, and a column as wide and as high as it says, collar below or not, hidden by the head."""
    frame = made_frame(128)
    x, y, per_cm = pivot_of(frame)
    if collar:  # of the neck the right half is seen, in the picture, and a collar rises beside it
        parsing = frame.parsing.clone()
        parsing[..., : int(x)][parsing[..., : int(x)] == Region.NECK] = Region.TORSO
        frame = replace(frame, parsing=parsing)
    layers = take_apart(frame)
    extent, labels = layers.neck_extent[0, 0], frame.parsing[0]
    rows = (extent > 0.5).any(1).nonzero()
    assert abs(float(rows.min()) - float(y - NECK_REACH[1] * per_cm)) < 2.5
    assert (extent[labels == Region.NECK] > 0.5).float().mean() > 0.9
    assert (extent <= layers.head[0, 0] + 1e-6).all() and layers.neck[0, 0][labels != Region.NECK].max() == 0
    sides = x + per_cm * torch.tensor([-NECK_HALF_WIDTH, NECK_HALF_WIDTH])
    for row in (extent > 0.5)[int(rows.min()) + 3 : int(y - per_cm)]:  # farther down the jaw is narrower
        columns = row.nonzero()[:, 0] + 0.5
        assert (columns[[0, -1]] - sides).abs().max() < 2.5 and len(columns) == columns[-1] - columns[0] + 1


def test_hair_hangs_more_the_lower_it_is_and_the_neck_bends_between_face_and_torso() -> None:
    frame = made_frame(128)
    parsing = frame.parsing.clone()
    long = parsing == Region.HAIR
    long[:, 64:118, 22:40] = long[:, 64:118, 88:106] = True  # falls on the shoulders
    long &= (parsing == Region.HAIR) | (parsing == Region.TORSO) | (parsing == Region.BACKGROUND)
    parsing[long] = Region.HAIR
    depth = torch.where(long[:, None], DISTANCE, frame.depth)
    frame = replace(frame, parsing=parsing, depth=depth, matte=torch.maximum(frame.matte, long[:, None].float()))
    weight = take_apart(frame).head_weight[0, 0]
    pixels = pixel_centres(128, 128).reshape(1, -1, 2)
    height = unproject(pixels, depth.flatten(1).clamp(min=1), frame.camera)[0, :, 1].view(128, 128) - frame.mesh[0, CHIN, 1]
    hangs = ((height - HANGS[1]) / (HANGS[0] - HANGS[1])).clamp(0, 1)
    torch.testing.assert_close(weight[long[0]], hangs[long[0]], rtol=0, atol=1e-5)
    assert weight[long[0]].min() < 0.1 and (weight[frame.parsing[0] == Region.SKIN] == 1).all()
    neck = frame.parsing[0] == Region.NECK
    between = weight[neck]
    assert between.min() < 0.2 and between.max() > 0.8 and ((between > 0) & (between < 1)).float().mean() > 0.9
    rows = torch.arange(128)[:, None].expand(128, 128)[neck].float()
    assert torch.corrcoef(torch.stack([rows, between]))[0, 1] < -0.8, "the higher, the more it goes with the head"


@pytest.mark.parametrize("colour", ["skin", "cloth"])
@pytest.mark.parametrize("above", [True, False])
def test_slivers_are_of_the_neck_where_they_look_like_it(colour: str, above: bool) -> None:
    """Straight above some of the neck, and in its colours; a light collar beside it stays a collar."""
    frame = made_frame(128)
    x, y, per_cm = pivot_of(frame)
    rows, columns = slice(int(y + 2), int(y + 2 + 2 * per_cm)), slice(round(x + 4.5 * per_cm), round(x + 5.5 * per_cm))
    parsing, image = torch.full_like(frame.parsing, int(Region.TORSO)), torch.zeros_like(frame.image)  # black cloth
    neck = columns if above else slice(round(x + 3.5 * per_cm), columns.start)
    parsing[:, rows.start : rows.stop + round(2 * per_cm), neck] = Region.NECK
    parsing[:, rows, columns] = Region.HAIR
    skin = torch.tensor([0.8, 0.6, 0.5])[:, None, None]
    image[:, :, parsing[0] == Region.NECK] = skin[..., 0]
    image[:, :, rows, columns] = (0.9 if colour == "skin" else 0.1) * skin
    parts = take_apart(replace(frame, parsing=parsing, image=image, matte=torch.ones_like(frame.matte)))
    assert (parts.head[0, 0, rows, columns] > 0.5).float().mean() == (1 if above and colour == "skin" else 0)


@pytest.mark.parametrize("thick", [False, True])
def test_slivers_of_hair_at_a_collar_are_the_collar(thick: bool) -> None:
    """Thin ones beside the neck, below the jaw, and near clothes; not broad hair, nor a beard."""
    frame = made_frame(128)
    x, y, per_cm = pivot_of(frame)
    parsing = frame.parsing.clone()
    parsing[:, int(y + 1) :][parsing[:, int(y + 1) :] == Region.BACKGROUND] = Region.TORSO  # a high collar, wherever nothing else is
    wide = round((4 if thick else 1) * per_cm)
    left = round(x - 5.5 * per_cm) - wide
    beard, sliver, lock = (torch.zeros_like(parsing, dtype=torch.bool) for _ in range(3))
    sliver[:, int(y + 2) : int(y + 2 + 4 * per_cm), left : left + wide] = True
    beard[:, int(y + 4) : int(y + 4 + 2 * per_cm), int(x - (BEARD - 1) * per_cm) : int(x - (BEARD - 2) * per_cm)] = True
    lock[:, int(y - 5 * per_cm) : int(y - 1 * per_cm), left : left + wide] = True  # above the jaw
    painted = parsing.clone()
    for mask in (beard, sliver, lock):
        painted[mask] = Region.HAIR
    parts = take_apart(replace(frame, parsing=painted, matte=torch.ones_like(frame.matte)))
    head = parts.head[0, 0] > 0.5
    assert head[beard[0]].all() and head[lock[0]].all()
    assert head[sliver[0]].float().mean() == (1 if thick else 0)
    assert (parts.torso_extent[0, 0][sliver[0]] > 0.9).all() or thick
