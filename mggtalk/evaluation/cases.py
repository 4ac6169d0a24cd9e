"""From a planned pair to what methods are given and what they are compared with, read from shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.faces.head_pose import FOCAL_SCALE
from datasets_toolkit.schema import HEAD_REGIONS, ByteImage, FloatArray
from datasets_toolkit.shards.reader import AddressBook
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.data.augment import PairTransform
from mggtalk.data.frames import PRIOR_WEIGHT
from mggtalk.data.packed import PackedFrame, head_mesh, unpack_frame
from mggtalk.data.pair_reader import LABELS, read_frame, single
from mggtalk.drivers import Control, retarget
from mggtalk.evaluation.protocol import PlannedPair, Rows
from mggtalk.geometry.cameras import project
from mggtalk.geometry.face_model import FaceModel
from mggtalk.geometry.surface import integrate_normals
from mggtalk.types import Camera, Frame, Motion, stack

ALWAYS = ("image", "landmarks", "meta")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pair, ready to be animated.

    Attributes:
        plan: what it was read for.
        source: the source as the model is given it (batch of one).
        picture: the source's picture, s s 3.
        landmarks: 478 x 2 of it, pixels.
        expressions: t x e, of the source under the driver, one row for each frame of the driving clip.
        poses: t x 4 x 4, likewise.
        targets: t x 478 x 2, where a warp of the source puts its landmarks, pixels.
    """

    plan: PlannedPair
    source: Frame
    picture: ByteImage
    landmarks: FloatArray
    expressions: Float[Tensor, "t e"]
    poses: Float[Tensor, "t 4 4"]
    targets: FloatArray

    def closing(self, face_model: FaceModel) -> Float[Tensor, " e"]:
        """What closes the lips of the source's neutral face; see :meth:`FaceModel.closing`."""
        return face_model.closing(self.source.mesh[0] - face_model.displacement(self.source.expression[0]))

    def speaking(self, driven: Float[Tensor, "t e"], face_model: FaceModel) -> Case:
        """The source under what speech drives (about its face with closed lips), its head still; one row for each of ``driven``."""
        expressions = (self.closing(face_model) + driven).to(self.expressions)
        return replace(self, expressions=expressions, poses=self.source.camera.head_to_camera.expand(len(driven), -1, -1))

    def camera(self, row: int) -> Camera:
        """Of a frame of the driving clip (batch of one)."""
        return Camera(intrinsics=self.source.camera.intrinsics, head_to_camera=self.poses[row][None])


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Pictures of a data set that show what should be seen, in some window.

    Attributes:
        pictures: k, each s s 3.
        head: k 1 s s, 1 where the parsing sees head, hair or neck.
        intrinsics: k 3 3.
        landmarks: k 478 2, pixels.
    """

    pictures: tuple[ByteImage, ...]
    head: Float[Tensor, "k 1 s s"]
    intrinsics: Float[Tensor, "k 3 3"]
    landmarks: Float[Tensor, "k 478 2"]


class Studio:
    """Reads the cases of a data set.

    Args:
        reader: of the data set.
        size: pixels a side that methods see.
        face_model: gives expressions.

    Raises:
        UserError: the data set lacks a column that is needed.
    """

    def __init__(self, reader: ShardReader, size: int, face_model: FaceModel) -> None:
        self.reader, self.size, self.face_model = reader, size, face_model
        wanted: tuple[tuple[str, ...], ...] = ((*ALWAYS, *LABELS), (*ALWAYS, "parsing"), ALWAYS)
        self._books = {names: AddressBook(reader, names) for names in wanted}
        self._motions: dict[str, tuple[list[PackedFrame], Motion]] = {}

    def case(self, plan: PlannedPair) -> Case:
        """What methods are given of a pair.

        A clip drives its own first frame by its changes since then; across people the head is put where the driver's is, with the
        driver's expressions about the mean face of their clip.

        Raises:
            UserError: a sample cannot be read.
        """
        packed = self._read(plan.source, (*ALWAYS, *LABELS))
        fitted, _ = PairTransform(size=self.size)(packed, packed)
        source = self._frame(fitted)
        own = plan.drives_itself
        control = Control(pose="relative", expression="relative") if own else Control(pose="absolute", expression="absolute")
        frames, motion = self._motion(plan)
        expressions, poses = retarget(motion, source.camera[0], source.expression[0], control)
        return Case(
            plan=plan,
            source=source,
            picture=fitted.image.numpy(),
            landmarks=fitted.landmarks.double().numpy()[:, :2],
            expressions=expressions,
            poses=poses,
            targets=_targets(fitted, frames, own),
        )

    def truth(self, rows: Rows | Sequence[int], source: int | None = None) -> Truth:
        """Frames of the data set; in the window of ``source``'s crop if that is a frame of the same video."""
        frames = [self._read(int(row), (*ALWAYS, "parsing")) for row in rows]
        first = None if source is None else self._read(source, (*ALWAYS, "parsing"))
        seen = [PairTransform(size=self.size)(first or frame, frame)[1] for frame in frames]
        heads = np.stack([np.isin(frame.parsing.numpy(), HEAD_REGIONS) for frame in seen if frame.parsing is not None])
        return Truth(
            pictures=tuple(frame.image.numpy() for frame in seen),
            head=torch.from_numpy(heads)[:, None].double(),
            intrinsics=torch.stack([frame.camera.intrinsics.double() for frame in seen]),
            landmarks=torch.stack([frame.landmarks[:, :2].double() for frame in seen]),
        )

    def near(self, case: Case, rows: Rows | Sequence[int]) -> Float[Tensor, "k 478 2"]:
        """Where the face of the source is to be expected under the driver's frames, pixels."""
        index = torch.as_tensor(np.asarray(rows))
        moved = case.source.mesh + self.face_model.displacement(case.expressions[index] - case.source.expression)
        intrinsics = case.source.camera.intrinsics.expand(len(index), -1, -1)
        return project(moved, Camera(intrinsics=intrinsics, head_to_camera=case.poses[index]))[0].double()

    def _read(self, row: int, columns: tuple[str, ...]) -> PackedFrame:
        return read_frame(self._books[columns][row], self.reader.storage)[0]

    def _frame(self, packed: PackedFrame) -> Frame:
        """As inference makes it: with the depth rebuilt from the normals."""
        frame = unpack_frame(stack([packed.map(single)]), self.face_model)
        depth = integrate_normals(
            frame.normals[0], frame.depth[0], frame.depth[0] > 0, frame.camera.intrinsics[0], prior_weight=PRIOR_WEIGHT
        )
        return replace(frame, depth=depth[None])

    def _motion(self, plan: PlannedPair) -> tuple[list[PackedFrame], Motion]:
        """Of the driving clip; that of the last clip is kept."""
        if plan.driver not in self._motions:
            frames = [self._read(int(row), ALWAYS).map(single) for row in plan.rows]
            times = torch.as_tensor(self.reader.index["time"].to_numpy()[plan.rows])
            self._motions = {plan.driver: (frames, motion_of(frames, times, self.face_model))}
        return self._motions[plan.driver]


def motion_of(frames: Sequence[PackedFrame], times: Float[Tensor, " t"], face_model: FaceModel) -> Motion:
    """The motion that the frames of a clip show, expressions about the mean face of the clip."""
    landmarks, camera = torch.stack([frame.landmarks for frame in frames]), stack([frame.camera for frame in frames])
    blendshapes, mesh = torch.stack([frame.blendshapes for frame in frames]), head_mesh(landmarks, camera)
    return Motion(
        expression=face_model.expression(mesh, blendshapes, face_model.neutral(mesh, blendshapes)),
        head_to_camera=camera.head_to_camera,
        times=times,
        found=torch.ones(len(frames), dtype=torch.bool),
        focal=torch.tensor(FOCAL_SCALE),
    )


def _targets(source: PackedFrame, frames: Sequence[PackedFrame], own: bool) -> FloatArray:
    """Landmarks of a warp (t 478 2, pixels of the source's crop).

    Those of the driver, if it is the source's own clip; else the source's, moved as the driver's move from its first frame on, in
    proportion to the heights of the faces.
    """
    start = source.landmarks[:, :2].double().numpy()
    video = [_in_video(frame) for frame in frames]
    if own:
        matrix = source.source_to_crop.double().numpy()
        return np.stack([points @ matrix[:2, :2].T + matrix[:2, 2] for points in video])
    scale = np.ptp(start[:, 1]) / np.ptp(video[0][:, 1])
    return np.stack([start + scale * (points - video[0]) for points in video])


def _in_video(frame: PackedFrame) -> FloatArray:
    matrix = np.linalg.inv(frame.source_to_crop.double().numpy())
    return np.asarray(frame.landmarks[:, :2].double().numpy() @ matrix[:2, :2].T + matrix[:2, 2])
