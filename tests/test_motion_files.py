"""Motions from files and from tables: what was written comes back, and whatever is wrong is told in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from motion_scenes import (
    BROKEN,
    broken,
    double,
    full_motion,
    live_link,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from datasets_toolkit.errors import UserError
from datasets_toolkit.faces.head_pose import euler_degrees
from datasets_toolkit.schema import BLENDSHAPES
from mggtalk.geometry.face_model import FaceModel
from mggtalk.motion_csv import DISTANCE, head_poses, motion_from_csv
from mggtalk.motion_files import load_motion, save_motion


@pytest.fixture(scope="module")
def face_model() -> FaceModel:
    return FaceModel()


@pytest.mark.parametrize("fps", [None, Fraction(30000, 1001), Fraction(25)])
def test_a_motion_file_gives_back_what_it_was_given(tmp_path: Path, fps: Fraction | None) -> None:
    motion, path = full_motion(), tmp_path / "a.motion.safetensors"
    path.write_bytes(b"what was here before")
    save_motion(path, motion, fps=fps, source="drive \udcff.mp4")
    loaded, rate = load_motion(path)
    assert rate == fps and list(tmp_path.iterdir()) == [path]
    for name in ("expression", "head_to_camera", "times", "found", "focal"):
        torch.testing.assert_close(getattr(loaded, name), getattr(motion, name), rtol=0, atol=0)


def test_nothing_is_left_of_a_motion_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "a.safetensors", tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            save_motion(path, full_motion(), fps=None, source="a.mp4")
    assert list(tmp_path.parent.glob(".*.part")) == [] and list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="frame 1"):
        save_motion(tmp_path / "a", broken(full_motion(), "expression", (1, 0), float("nan")), fps=None, source="a.mp4")
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> None:
    """Change tensors or metadata of a file, past every check."""
    with safe_open(path, framework="pt") as file:
        before = file.metadata()
    content = load_file(path)
    save_file({**content, **(tensors or {})}, path, {**before, **metadata})


def malformed(path: Path) -> dict[str, tuple[Callable[[], object], str]]:
    data = path.read_bytes()
    motion = full_motion()
    cases: dict[str, tuple[Callable[[], object], str]] = {
        "missing": (path.unlink, "no such file"),
        "empty": (lambda: path.write_bytes(b""), "damaged"),
        "truncated": (lambda: path.write_bytes(data[:-100]), "damaged"),
        "cut in the header": (lambda: path.write_bytes(data[:40]), "damaged"),
        "text": (lambda: path.write_text("time,jawOpen\n0,1\n" * 20), "damaged"),
        "other tensors": (lambda: save_file({"weight": torch.zeros(3)}, path), "not a motion file"),
        "version": (lambda: rewrite(path, version="2"), "version 2"),
        "basis": (lambda: rewrite(path, basis="0" * 64), "another face basis.*track the driver again"),
        "rate": (lambda: rewrite(path, fps="25/0"), "frame rate"),
        "negative rate": (lambda: rewrite(path, fps="-25/1"), "frame rate"),
        "worded rate": (lambda: rewrite(path, fps="fast"), "frame rate"),
        "length": (lambda: rewrite(path, {"times": motion.times[:4]}), "shapes do not fit together"),
        "shape": (lambda: rewrite(path, {"head_to_camera": torch.zeros(5, 3, 4)}), "shapes do not fit together"),
        "dimensions": (lambda: rewrite(path, {"expression": torch.zeros(5)}), "expression is torch.float32"),
        "type": (lambda: rewrite(path, {"found": torch.ones(5)}), "found is torch.float32"),
        "size": (lambda: rewrite(path, {"expression": torch.zeros(5, 52)}), "expression has the shape"),
        "no frames": (
            lambda: rewrite(path, {name: getattr(motion, name)[:0] for name in ("expression", "times", "found", "head_to_camera")}),
            "no frame",
        ),
    }
    for field, index, value, message in BROKEN:
        changed = getattr(broken(motion, field, index, value), field)
        cases[f"{field} {index} {value}"] = (lambda field=field, changed=changed: rewrite(path, {field: changed}), message)
    return cases


def test_every_malformed_motion_file_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_motion(path, full_motion(), fps=Fraction(25), source="a.mp4")
    good = path.read_bytes()
    for name, (spoil, message) in malformed(path).items():
        spoil()
        with pytest.raises(UserError, match=message) as caught:
            load_motion(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value), name
        path.write_bytes(good)
    assert load_motion(path)[1] == 25


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_a_live_link_recording(tmp_path: Path, face_model: FaceModel, rate: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        motion, fps = motion_from_csv(live_link(tmp_path / "a.csv", rate), face_model)
    assert fps == rate
    index = np.arange(130)
    np.testing.assert_allclose(motion.times, index / rate, atol=1e-9)
    np.testing.assert_array_equal(motion.found, index != 20)
    expected = np.zeros((130, face_model.expression_size))
    expected[:, 1:52] = 0.125
    expected[:, BLENDSHAPES.index("eyeBlinkLeft")] = index / 130
    np.testing.assert_allclose(motion.expression, expected, atol=1e-5)
    angles = np.degrees(np.stack([0.5 * index / 130, np.full(130, -0.2), np.full(130, 0.1)], 1))
    angles[20] = angles[[19, 21]].mean(0)  # the shortest arc between two near poses
    np.testing.assert_allclose(euler_degrees(motion.head_to_camera.double().numpy()), angles, atol=2e-3)
    np.testing.assert_array_equal(motion.head_to_camera[:, :3, 3], np.tile([0, 0, DISTANCE], (130, 1)))
    assert "1 of 130 frames show no face" in caplog.text and "no columns" not in caplog.text


@settings(deadline=None)
@given(yaw=st.floats(-1.5, 1.5), pitch=st.floats(-1.5, 1.5), roll=st.floats(-1.5, 1.5))
def test_angles_make_the_pose_that_has_them(yaw: float, pitch: float, roll: float) -> None:
    poses = head_poses(torch.tensor([[yaw, pitch, roll]], dtype=double)).double()
    np.testing.assert_allclose(np.radians(euler_degrees(poses.numpy())), [[yaw, pitch, roll]], atol=1e-4)  # arcsin is coarse near its ends


def test_a_plain_table(tmp_path: Path, face_model: FaceModel, caplog: pytest.LogCaptureFixture) -> None:
    """Seconds, Apple's own names, cells in any order, unknown columns, a repeated frame; without angles the head keeps still."""
    path = tmp_path / "a.csv"
    rows = ["jawOpen, mouthSmile_L ,TIMESTAMP,comment,tongueOut"]
    rows += [f"{0.1 * index:.3f},0.5,{100 + index * 1001 / 30000:.4f},take {index},1" for index in range(9)]
    path.write_text("\n".join([*rows[:5], rows[4], "", *rows[5:]]))
    with caplog.at_level(logging.WARNING):
        motion, fps = motion_from_csv(path, face_model)
    assert fps == Fraction(30000, 1001)
    np.testing.assert_allclose(motion.times, np.arange(9) * 1001 / 30000, atol=1e-4)
    np.testing.assert_allclose(motion.expression[:, BLENDSHAPES.index("jawOpen")], 0.1 * np.arange(9), atol=1e-6)
    np.testing.assert_allclose(motion.expression[:, BLENDSHAPES.index("mouthSmileLeft")], 0.5)
    assert float(motion.expression.sum()) == pytest.approx(0.1 * 36 + 4.5, abs=1e-4)
    np.testing.assert_array_equal(motion.head_to_camera[:, :3, :3], np.tile(np.diag([1.0, -1, -1]), (9, 1, 1)))
    assert "1 of 10 rows repeat the time" in caplog.text and "no columns for browDownLeft" in caplog.text
    assert "_neutral" not in caplog.text


HEADER = "time,jawOpen,headYaw\n"
CODES = "Timecode,BlendshapeCount,JawOpen\n"
BAD_TABLES = {
    "empty": ("", "holds no frames"),
    "header only": (HEADER, "holds no frames"),
    "no time": ("jawOpen\n0.1\n", "line 1: no column is named timecode"),
    "no scores": ("time,x\n0,1\n", "line 1: no column is named like a blendshape"),
    "names twice": ("time,jawOpen,JawOpen\n0,1,1\n", "line 1: two columns have the same name"),
    "word": (HEADER + "0,0.1,0\n1,open,0\n", "line 3: jawopen is 'open', not a number from -0.5 to 1.5"),
    "nan": (HEADER + "0,nan,0\n", "line 2: jawopen is 'nan'"),
    "percent": (HEADER + "0,50,0\n", "line 2: jawopen is '50'"),
    "degrees": (HEADER + "0,0.5,0\n1,0.5,20\n", "line 3: headyaw is '20'"),
    "short row": (HEADER + "0,0.1,0\n0.5,0.5\n", "line 3: headyaw is ''"),
    "long row": (HEADER + "0,0.1,0,4\n", "line 2: 4 values under 3 names"),
    "no time in a row": (HEADER + ",0.1,0\n", "line 2: time is ''"),
    "backwards": (HEADER + "0,0.1,0\n1,0.1,0\n0.5,0.1,0\n", "line 4: its time is before"),
    "milliseconds": (HEADER + "0,0.1,0\n40,0.1,0\n80,0.1,0\n", "40 s apart; times must be in seconds"),
    "time code": (CODES + "12:00:00:01,61,0.1\n12:00:00,61,0.1\n", "line 3: '12:00:00' is not a time code"),
    "frame of a second": (CODES + "12:00:00:01,61,0.1\n12:00:00:90,61,0.1\n", "line 3: frame 90 of a second"),
    "frame of two seconds": (CODES + "12:00:00:75,61,0.1\n12:00:01:00,61,0.1\n", "line 2: frame 75 of a second"),
    "no face": (CODES + "12:00:00:01,0,\n", "no row shows a face"),
    "binary": ("\udcff\udcfe", "cannot be read as a table"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_told_with_file_and_line(tmp_path: Path, face_model: FaceModel, case: str) -> None:
    text, message = BAD_TABLES[case]
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        motion_from_csv(path, face_model)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_missing_table_is_told(tmp_path: Path, face_model: FaceModel) -> None:
    with pytest.raises(UserError, match=r"a\.csv: cannot be read"):
        motion_from_csv(tmp_path / "a.csv", face_model)
