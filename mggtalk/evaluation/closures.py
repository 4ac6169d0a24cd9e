"""Are lips closed when p, b or m is said? Counts over clips, and a picture of the mouth at chosen phones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datasets_toolkit.annotators.phones import SILENCE, Phone, closures
from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import ByteImage
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.evaluation.cases import Studio
from mggtalk.evaluation.grids import grid
from mggtalk.evaluation.heard import kept_closures
from mggtalk.evaluation.methods import Method
from mggtalk.evaluation.protocol import Suite, plan
from mggtalk.evaluation.speech import Driven
from mggtalk.geometry.face_model import FaceModel
from mggtalk.metrics.speech import Closures
from mggtalk.modules.speech import FRAME_RATE

SHOWN = ("P", "B", "M", "AA", "AE", "IY", "UW", "OW", "F", "V", SILENCE)
"""Phones that a picture shows: closed, open, spread, round, lip against teeth, and rest."""
ACROSS = 6
"""Pictures beside each other."""


@dataclass(frozen=True, kw_only=True)
class ClosureRow:
    """What one method keeps of the closures of one clip."""

    method: str
    clip: str
    person: str
    closures: Closures


def closure_rows(driven: Sequence[Driven], phones: Mapping[str, Sequence[Phone]]) -> list[ClosureRow]:
    """Every method on every clip that was understood."""
    return [
        ClosureRow(
            method=one.method,
            clip=one.clip.name,
            person=one.clip.person,
            closures=kept_closures(one.opening, one.clip.opening, phones[one.clip.name]),
        )
        for one in driven
        if one.clip.name in phones
    ]


def phone_sheet(
    reader: ShardReader, split: str, method: Method, driven: Driven, phones: Sequence[Phone], face_model: FaceModel, size: int = 256
) -> ByteImage:
    """Strips of the clip at the middle of phones, in time; each shows the clip above and what speech drives below, under the phones' names.

    The source is the clip's first frame, and the head stays as it is there.

    Args:
        reader: of the data set.
        split: of the clip.
        method: makes the pictures.
        driven: by speech, on the clip.
        phones: of the clip; one of each of :data:`SHOWN` is shown, p, b and m all.
        face_model: of the expressions.
        size: pixels a side.

    Raises:
        UserError: none of the phones is there, or the clip cannot be read.
    """
    chosen = _chosen(phones, len(driven.opening) / FRAME_RATE)
    if not chosen:
        raise UserError(f"{driven.clip.name}: none of the phones {', '.join(SHOWN)} is heard; choose another clip")
    studio = Studio(reader, size, face_model)
    plans = plan(reader.index, reader.clips, Suite(name="self", kind="self", split=split))
    planned = next(one for one in plans if one.driver == driven.clip.name)
    case, times = studio.case(planned), reader.index["time"].to_numpy()[planned.rows]
    middles = np.array([(phone.start + phone.end) / 2 for phone in chosen])
    frames = np.abs((times - times[0])[None] - middles[:, None]).argmin(1)
    moments = torch.from_numpy((middles * FRAME_RATE).round()).long().clamp(0, len(driven.expression) - 1)
    animated = method.pictures(case.speaking(driven.expression[moments], face_model), range(len(chosen)))
    real = studio.truth(planned.rows[frames], planned.source).pictures
    return _strips([phone.name for phone in chosen], real, animated)


def _chosen(phones: Sequence[Phone], seconds: float) -> list[Phone]:
    """All closures, and of the other phones that are shown the one that fits best."""
    inside = [phone for phone in phones if phone.start >= 0 and phone.end <= seconds]
    found = list(closures(inside))
    for name in SHOWN[3:]:
        found += sorted((phone for phone in inside if phone.name == name), key=lambda phone: phone.likelihood)[-1:]
    return sorted(found, key=lambda phone: phone.start)


def _strips(names: Sequence[str], real: Sequence[ByteImage], animated: Sequence[ByteImage]) -> ByteImage:
    strips: list[ByteImage] = []
    for first in range(0, len(names), ACROSS):
        part = {
            f"{number + 1} {names[number]}": [real[number], animated[number]] for number in range(first, min(first + ACROSS, len(names)))
        }
        if len(part) == 1:  # a grid has two columns at least
            part["-"] = [np.full_like(real[0], 255)] * 2
        strips += grid(part)
    width = max(strip.shape[1] for strip in strips)
    return np.vstack([np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips])
