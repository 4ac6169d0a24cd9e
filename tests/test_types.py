"""Records of tensors: moved, indexed, stacked and joined as one."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_scenes import made_frame

from mggtalk.types import Camera, Gaussians, Motion, Pair, Rendering, TensorRecord, cat, stack


@dataclass(frozen=True, kw_only=True)
class _Indices(TensorRecord):
    place: torch.Tensor


def camera(value: float, *batch: int) -> Camera:
    return Camera(intrinsics=torch.full((*batch, 3, 3), value), head_to_camera=torch.full((*batch, 4, 4), -value))


def gaussians(count: int, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    means, quaternions, scales, features = (torch.rand(2, count, width, generator=generator) for width in (3, 4, 3, 5))
    opacities, mask = torch.rand(2, count, generator=generator), torch.rand(2, count, generator=generator) > 0.5
    return Gaussians(means=means, quaternions=quaternions, scales=scales, opacities=opacities, features=features, mask=mask)


def tensors(record: TensorRecord) -> dict[str, torch.Tensor]:
    """All tensors by their dotted names."""
    found = {}
    for name, value in record.__dict__.items():
        nested = tensors(value) if isinstance(value, TensorRecord) else {"": value}
        found |= {f"{name}.{inner}".rstrip("."): tensor for inner, tensor in nested.items()}
    return found


def test_map_reaches_nested_records_and_leaves_the_original() -> None:
    frame = made_frame()
    pair = Pair(source=frame, target=frame)
    doubled = pair.map(lambda tensor: tensor + tensor)
    before, after = tensors(pair), tensors(doubled)
    assert before.keys() == after.keys() and "target.camera.head_to_camera" in before and len(before) == 18
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor + tensor), name
    assert torch.equal(frame.image, made_frame().image) and doubled.source is not frame
    with pytest.raises(FrozenInstanceError):
        pair.source = frame  # type: ignore[misc]


@pytest.mark.parametrize(
    "arguments, named",
    [
        ((torch.float64,), {}),
        (("cpu", torch.float64), {}),
        (("cpu", torch.float64, False, True), {}),
        ((torch.zeros(0, dtype=torch.float64),), {}),
        ((), {"dtype": torch.float64}),
        ((), {"device": "cpu", "dtype": torch.float64, "copy": True}),
    ],
)
def test_a_dtype_changes_floats_only(arguments: tuple[object, ...], named: dict[str, object]) -> None:
    frame = made_frame()
    moved = frame.to(*arguments, **named)
    assert moved.parsing.dtype == torch.uint8 and torch.equal(moved.parsing, frame.parsing)
    for name, tensor in tensors(moved).items():
        assert name == "parsing" or tensor.dtype == torch.float64, name
        assert torch.equal(tensor, tensors(frame)[name].to(tensor.dtype)), name


@settings(deadline=None, max_examples=20)
@given(value=st.integers(-(2**62), 2**62), dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_indices_survive_every_float_dtype(value: int, dtype: torch.dtype) -> None:
    """Through float16 the index 70001 would become infinite and 5001 would become 5000."""
    moved = _Indices(place=torch.tensor([[value, 5001, 70001]])).to(dtype)
    assert moved.place.tolist() == [[value, 5001, 70001]]


def test_moves_and_detaches_and_keeps_gradients() -> None:
    start = torch.ones(3, 3, requires_grad=True)
    record = Camera(intrinsics=start, head_to_camera=torch.eye(4))
    assert not record.detach().intrinsics.requires_grad
    record.to(torch.float64).intrinsics.sum().backward()
    assert torch.equal(start.grad, torch.ones(3, 3))
    assert record.to("meta").head_to_camera.device.type == "meta"


def test_stack_index_and_cat_are_inverse() -> None:
    singles = [camera(float(value)) for value in range(3)]
    batch = stack(singles)
    assert batch.intrinsics.shape == (3, 3, 3)
    for index, single in enumerate(singles):
        for name, tensor in tensors(batch[index]).items():
            assert torch.equal(tensor, tensors(single)[name])
    again = cat([batch[:1], batch[1:]])
    assert all(torch.equal(tensor, tensors(batch)[name]) for name, tensor in tensors(again).items())
    assert torch.equal(batch[torch.tensor([True, False, True])].intrinsics[:, 0, 0], torch.tensor([0.0, 2]))


def test_points_are_joined_along_their_own_dimension() -> None:
    first, second = gaussians(3), gaussians(5, 1)
    both = cat([first, second], dim=1)
    assert both.means.shape == (2, 8, 3) and both.mask.shape == (2, 8)
    for name, tensor in tensors(both).items():
        assert torch.equal(tensor[:, :3], tensors(first)[name]) and torch.equal(tensor[:, 3:], tensors(second)[name]), name


def test_nested_records_stack() -> None:
    frame = made_frame()[0]
    pairs = stack([Pair(source=frame, target=frame)] * 2)
    assert pairs.source.camera.intrinsics.shape == (2, 3, 3) and pairs.target.image.shape[0] == 2
    assert torch.equal(pairs[1].source.mesh, frame.mesh)


@pytest.mark.parametrize("join", [stack, cat])
def test_nothing_cannot_be_joined(join: object) -> None:
    with pytest.raises(ValueError, match="empty"):
        join([])  # type: ignore[operator]


def test_unequal_records_do_not_stack() -> None:
    with pytest.raises(RuntimeError):
        stack([gaussians(3), gaussians(4)])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Camera(intrinsics=torch.eye(4), head_to_camera=torch.eye(4)),
        lambda: Camera(intrinsics=torch.eye(3).expand(2, 3, 3), head_to_camera=torch.eye(4).expand(3, 4, 4)),
        lambda: Rendering(image=torch.zeros(3, 4, 4), alpha=torch.zeros(1, 4, 5), depth=torch.zeros(1, 4, 4)),
        lambda: Camera(intrinsics=torch.eye(3, dtype=torch.int64), head_to_camera=torch.eye(4)),
        lambda: Camera(torch.eye(3), torch.eye(4)),
        lambda: Motion(
            expression=torch.zeros(3, 2),
            head_to_camera=torch.zeros(2, 4, 4),
            times=torch.zeros(3),
            found=torch.ones(3) > 0,
            focal=torch.ones(()),
        ),
    ],
)
def test_records_of_wrong_shapes_are_refused(build: object) -> None:
    with pytest.raises(TypeError):
        build()  # type: ignore[operator]
