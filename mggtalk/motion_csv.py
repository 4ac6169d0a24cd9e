"""Motions from blendshape tables as phones record them: ARKit's names, one row for each frame.

Read are the tables of Live Link Face (``Timecode,BlendshapeCount,EyeBlinkLeft,...,HeadYaw,HeadPitch,HeadRoll,...``) and plain ones with
a ``time`` or ``timestamp`` column in seconds. Names are compared without case; ARKit's own spelling ``eyeBlink_L`` is understood.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import BLENDSHAPES
from mggtalk.drivers import check_motion, fill_gaps
from mggtalk.geometry.face_model import FaceModel
from mggtalk.types import Motion

log = logging.getLogger(__name__)

DISTANCE = 110.0
"""Depth (cm) that a recorded head is put at: a table does not tell where the head was."""
ANGLES = ("headyaw", "headpitch", "headroll")

_TIMECODE = re.compile(r"(\d{1,2}):(\d\d):(\d\d)[:;](\d{1,3}(?:\.\d{1,9})?)", re.ASCII)  # hours, minutes, seconds, frames of that second
_TIMECODE_RATES = (24, 25, 30, 48, 50, 60)
_RATES = tuple(Fraction(rate) for rate in (24, 25, 30, 50, 60)) + tuple(Fraction(rate * 1000, 1001) for rate in (24, 30, 60))
_SLACK = 0.5  # how far a score may leave [0, 1]: calibrated recordings overshoot, percentages are another unit


@dataclass(frozen=True)
class _Row:
    line: int  # in the file, from 1
    cells: dict[str, str]  # by normalised column


def motion_from_csv(path: Path, face_model: FaceModel) -> tuple[Motion, Fraction | None]:
    """The motion of a recording and its rate (None for a single frame); times count from its first frame.

    Motion components are 0, a missing blendshape is 0 and told in the log. Angles are radians with the signs of
    :func:`datasets_toolkit.faces.head_pose.euler_degrees`; without any the head is still. Frames that the recorder marks as having no face
    (a count of 0, or no values) are interpolated. Frames with the time of the one before are left out.

    Args:
        path: of the table.
        face_model: tells the length of an expression.

    Raises:
        UserError: the table is missing or malformed; names the line.
    """
    columns, rows = _read(path)
    rows, times = _in_order(path, rows, _times(path, columns, rows))
    names = [name for name in BLENDSHAPES if name.lower() in columns]
    if not names:
        raise UserError(f"{path}: line 1: no column is named like a blendshape (eyeBlinkLeft, jawOpen, ...)")
    if missing := [name for name in BLENDSHAPES[1:] if name not in names]:
        log.warning("%s: no columns for %s; taken as 0", path, ", ".join(missing))
    values = [column for column in (*(name.lower() for name in names), *ANGLES) if column in columns]
    seen = [row for row in rows if _shows_face(row, values)]
    if not seen:
        raise UserError(f"{path}: no row shows a face")
    expression = torch.zeros(len(seen), face_model.expression_size)
    for name in names:
        expression[:, BLENDSHAPES.index(name)] = torch.tensor([_number(path, row, name.lower(), -_SLACK, 1 + _SLACK) for row in seen])
    angles = [[_number(path, row, name, -math.pi, math.pi) if name in columns else 0.0 for name in ANGLES] for row in seen]
    found = torch.tensor([_shows_face(row, values) for row in rows])
    clock = torch.tensor([float(time - times[0]) for time in times], dtype=torch.float64)
    motion = fill_gaps(expression, head_poses(torch.tensor(angles)), clock, found, name=str(path))
    check_motion(motion, face_model.expression_size)
    return motion, _rate(path, times)


def head_poses(angles: Float[Tensor, "t 3"], distance: float = DISTANCE) -> Float[Tensor, "t 4 4"]:
    """head_to_camera (cm) on the optical axis from yaw, pitch and roll (radians): the inverse of ``head_pose.euler_degrees``."""
    yaw, pitch, roll = angles.unbind(-1)
    zero = torch.zeros_like(yaw)
    forward = torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), yaw.cos() * pitch.cos()], -1)
    level = torch.stack([yaw.cos(), zero, -yaw.sin()], -1)
    upright = torch.linalg.cross(forward, level)
    up = roll.cos()[:, None] * upright + roll.sin()[:, None] * level
    turn = torch.stack([torch.linalg.cross(up, forward), up, forward], -1)  # columns, in axes x right, y up, z to the camera
    poses = torch.eye(4).repeat(len(angles), 1, 1)
    poses[:, :3, :3] = turn * turn.new_tensor([1, -1, -1])[:, None]
    poses[:, 2, 3] = distance
    return poses


def _read(path: Path) -> tuple[set[str], list[_Row]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            names = [_normal(name) for name in next(reader, [])]
            rows = [_Row(reader.line_num, _cells(path, reader.line_num, names, cells)) for cells in reader if any(map(str.strip, cells))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); give a CSV file") from error
    known = [name for name in names if name]
    if len(set(known)) < len(known):
        raise UserError(f"{path}: line 1: two columns have the same name")
    if not rows:
        raise UserError(f"{path}: holds no frames; a header line and a line for each frame are needed")
    return set(known), rows


def _cells(path: Path, line: int, names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
        raise UserError(f"{path}: line {line}: {len(cells)} values under {len(names)} names")
    return {name: cell.strip() for name, cell in zip(names, cells, strict=False) if name}


def _normal(name: str) -> str:
    name = name.strip().lower()
    return re.sub("_l$", "left", re.sub("_r$", "right", name))


def _shows_face(row: _Row, values: Sequence[str]) -> bool:
    return row.cells.get("blendshapecount") != "0" and any(row.cells.get(column) for column in values)


def _number(path: Path, row: _Row, column: str, low: float, high: float) -> float:
    text = row.cells.get(column, "")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UserError(f"{path}: line {row.line}: {column} is {text!r}, not a number from {low:.4g} to {high:.4g}")
    return value


def _times(path: Path, columns: set[str], rows: Sequence[_Row]) -> list[Fraction]:
    if "timecode" in columns:
        return _timecodes(path, rows)
    column = next((name for name in ("time", "timestamp") if name in columns), None)
    if column is None:
        raise UserError(f"{path}: line 1: no column is named timecode, time or timestamp")
    return [Fraction(_number(path, row, column, -1e12, 1e12)) for row in rows]


def _timecodes(path: Path, rows: Sequence[_Row]) -> list[Fraction]:
    matches = [_TIMECODE.fullmatch(row.cells.get("timecode", "")) for row in rows]
    whole, frames = [], []
    for row, match in zip(rows, matches, strict=True):
        if match is None:
            raise UserError(f"{path}: line {row.line}: {row.cells.get('timecode', '')!r} is not a time code, HH:MM:SS:FF.mmm")
        hours, minutes, seconds = (int(part) for part in match.groups()[:3])
        whole.append(3600 * hours + 60 * minutes + seconds)
        frames.append(Fraction(match.group(4)))
    # Recorders number the frames of a second from 0: the largest number tells the rate, once a whole second has passed.
    rate = next((rate for rate in _TIMECODE_RATES if max(frames) < rate), None) if len(set(whole)) > 1 else 60
    if rate is None or max(frames) >= rate:
        line = rows[frames.index(max(frames))].line
        raise UserError(
            f"{path}: line {line}: frame {float(max(frames)):g} of a second; time codes count up to {_TIMECODE_RATES[-1]} frames"
        )
    days = 0
    for index in range(1, len(whole)):
        days += whole[index] + 86_400 * days < whole[index - 1] - 43_200  # past midnight
        whole[index] += 86_400 * days
    return [second + frame / rate for second, frame in zip(whole, frames, strict=True)]


def _in_order(path: Path, rows: Sequence[_Row], times: Sequence[Fraction]) -> tuple[list[_Row], list[Fraction]]:
    kept = [0]
    for index in range(1, len(rows)):
        if times[index] < times[kept[-1]]:
            raise UserError(f"{path}: line {rows[index].line}: its time is before that of the line above")
        if times[index] > times[kept[-1]]:
            kept.append(index)
    if len(kept) < len(rows):
        log.warning("%s: %d of %d rows repeat the time of the row before; left out", path, len(rows) - len(kept), len(rows))
    return [rows[index] for index in kept], [times[index] for index in kept]


def _rate(path: Path, times: Sequence[Fraction]) -> Fraction | None:
    """The mean rate without the gaps; a common rate if it is within 0.05 % of one."""
    steps = sorted(float(later - earlier) for earlier, later in pairwise(times))
    if not steps:
        return None
    usual = [step for step in steps if step < 1.5 * steps[len(steps) // 2]]
    rate = len(usual) / sum(usual)
    if rate < 1:
        raise UserError(f"{path}: its frames are {1 / rate:.3g} s apart; times must be in seconds")
    nearest = min(_RATES, key=lambda common: abs(float(common) / rate - 1))
    return nearest if abs(float(nearest) / rate - 1) < 5e-4 else Fraction(rate).limit_denominator(1000)
