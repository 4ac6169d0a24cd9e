"""A clip's motion as a table that ARKit tools read, and as arrays.

``motion.csv`` has one row for each frame: ``time`` (seconds on the clock of the source), ``frame`` (number in the source), the 52
blendshapes under ARKit's names, ``HeadYaw``, ``HeadPitch``, ``HeadRoll`` (radians, signs of
:func:`datasets_toolkit.faces.head_pose.euler_degrees`) and ``HeadX``, ``HeadY``, ``HeadZ`` (cm, the head's origin in the OpenCV camera).
A frame without a face has no row; the times tell.
``motion.npz`` holds the same with whole matrices. No row is made up, and none is smoothed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets_toolkit.faces.head_pose import euler_degrees
from datasets_toolkit.sample import FrameMeta
from datasets_toolkit.schema import BLENDSHAPES

ANGLES, PLACE = ("HeadYaw", "HeadPitch", "HeadRoll"), ("HeadX", "HeadY", "HeadZ")


def write_motion(metas: Sequence[FrameMeta], folder: Path) -> None:
    """Write ``motion.csv`` and ``motion.npz`` of the frames of one clip, in order.

    Raises:
        OSError: the folder cannot be written.
    """
    poses = np.stack([meta.head_to_camera for meta in metas])
    angles = np.radians(euler_degrees(poses))
    with (folder / "motion.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["time", "frame", *BLENDSHAPES, *ANGLES, *PLACE])
        for meta, turn, place in zip(metas, angles, poses[:, :3, 3], strict=True):
            table.writerow([repr(meta.time), meta.index, *(f"{value:.7g}" for value in (*meta.blendshapes, *turn, *place))])
    arrays = {
        "times": np.array([meta.time for meta in metas]),
        "indices": np.array([meta.index for meta in metas]),
        "blendshapes": np.stack([meta.blendshapes for meta in metas]),
        "names": np.array(BLENDSHAPES),
        "head_to_camera": poses,
        "intrinsics": np.stack([meta.intrinsics for meta in metas]),
        "source_to_crop": np.stack([meta.source_to_crop for meta in metas]),
        "fps": np.array([metas[0].fps.numerator, metas[0].fps.denominator]),
    }
    with (folder / "motion.npz").open("wb") as packed:
        np.savez(packed, **arrays)  # type: ignore[arg-type]
