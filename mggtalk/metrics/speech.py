"""How well a mouth follows speech: opening of the driven mesh against the tracked one, and whether lips close in time. Pure functions.

Letters: o the opening of a clip's tracked mesh, p that of the driven one, both at equal times; "opening" is the distance of the inner lips
over the height of the face, so 0.02 is two per cent of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.schema import BLENDSHAPES

OPENING_VERTICES = (regions.UPPER_INNER_LIP, regions.LOWER_INNER_LIP, regions.FOREHEAD, regions.CHIN)
"""The vertices that an opening is measured between."""
CORNERS = (61, 291)
"""Vertices of the corners of the mouth."""
REACH = 0.4
"""Largest lag that is looked for, seconds."""
CLOSED = 0.1
"""Share of the way from a clip's 5th percentile to its 95th up to which its lips count as closed."""
AROUND = 0.04
"""Seconds around a phone in which lips may close for it: two frames of 20 ms."""
_SMILE = [BLENDSHAPES.index(name) for name in ("mouthSmileLeft", "mouthSmileRight")]


def mouth_opening(mesh: Float[Tensor, "*batch v 3"]) -> Float[Tensor, "*batch"]:
    """Distance of the inner lips over the distance from forehead to chin, of face meshes in any unit."""
    return opening_of(mesh[..., OPENING_VERTICES, :])


def opening_of(points: Float[Tensor, "*batch 4 3"]) -> Float[Tensor, "*batch"]:
    """As :func:`mouth_opening`, of :data:`OPENING_VERTICES` alone."""
    gap, height = points[..., 0, :] - points[..., 1, :], points[..., 2, :] - points[..., 3, :]
    return torch.linalg.vector_norm(gap, dim=-1) / torch.linalg.vector_norm(height, dim=-1)


def gap_of(points: Float[Tensor, "*batch 4 3"]) -> Float[Tensor, "*batch"]:
    """As :func:`opening_of`, along the height of the face: negative where a driven upper lip lies below the lower one."""
    height = points[..., 2, :] - points[..., 3, :]
    return ((points[..., 0, :] - points[..., 1, :]) * height).sum(-1) / height.square().sum(-1)


def correlation(first: Float[Tensor, " t"], second: Float[Tensor, " t"]) -> float:
    """Pearson's; 0 where one of them does not change."""
    one, other = first.double() - first.double().mean(), second.double() - second.double().mean()
    size = float(one.norm() * other.norm())
    return float(one @ other) / size if size > 1e-12 else 0.0


def lag(driven: Float[Tensor, " t"], tracked: Float[Tensor, " t"], rate: float, reach: float = REACH) -> tuple[float, float]:
    """The delay (s) at which the driven signal fits the tracked one best, positive where it comes too late, and the correlation there.

    Delays of whole samples are tried up to ``reach``, over the samples that both have; a parabola through the best one and its
    neighbours gives the rest. Signals shorter than twice the reach are tried with less of it.

    Args:
        driven: samples at equal steps.
        tracked: at the same times.
        rate: samples a second.
        reach: seconds.
    """
    steps = min(round(reach * rate), (len(driven) - 1) // 2)
    found = torch.tensor([correlation(*_moved(driven, tracked, step)) for step in range(-steps, steps + 1)], dtype=torch.float64)
    best = int(found.argmax())
    shift = 0.0
    if 0 < best < len(found) - 1:
        before, here, after = found[best - 1 : best + 2].tolist()
        bend = before - 2 * here + after
        shift = 0.5 * (before - after) / bend if bend < -1e-12 else 0.0
    return (best - steps + shift) / rate, float(found[best])


def opening_error(driven: Float[Tensor, " t"], tracked: Float[Tensor, " t"]) -> float:
    """Mean absolute difference of two openings, per cent of the height of the face."""
    return float(100 * (driven.double() - tracked.double()).abs().mean())


@dataclass(frozen=True, kw_only=True)
class Closures:
    """How many closures were heard (p, b, m), seen in the tracked lips, and kept by the driven ones; and how many chance would keep."""

    heard: int
    seen: int
    kept: int
    chance: float


def lip_closures(driven: Float[Tensor, " t"], tracked: Float[Tensor, " t"], spans: Float[Tensor, "n 2"], rate: float) -> Closures:
    """Whether driven lips close where a phone that closes lips is heard and the tracked lips are seen to close.

    kept / seen is the lip-closure recall, chance / seen what a mouth would have that closes as often, but anywhere: the share of all places
    of the clip where a phone of that length would find the driven lips closed. Both mouths are closed below the level of the tracked one.

    Args:
        driven: openings (or gaps) from time 0 on.
        tracked: at the same times.
        spans: begin and end (s) of the phones; those that reach beyond the clip are left out.
        rate: samples a second.
    """
    level, length = closed_level(tracked), (len(tracked) - 1) / rate
    spans = spans[(spans[:, 0] >= 0) & (spans[:, 1] <= length)]
    seen = spans[closes(tracked, spans, rate, level)]
    chance = 0.0
    for lasts in (seen[:, 1] - seen[:, 0]).tolist():
        starts = torch.arange(len(driven), dtype=torch.float64) / rate
        starts = starts[starts + lasts <= length + 1e-6]
        chance += float(closes(driven, torch.stack([starts, starts + lasts], 1), rate, level).double().mean())
    return Closures(heard=len(spans), seen=len(seen), kept=int(closes(driven, seen, rate, level).sum()), chance=chance)


def closed_level(opening: Float[Tensor, " t"]) -> float:
    """The opening below which the lips of a clip count as closed; see :data:`CLOSED`."""
    low, high = torch.quantile(opening.double(), opening.new_tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return float(low + CLOSED * (high - low))


def closes(opening: Float[Tensor, " t"], spans: Float[Tensor, "n 2"], rate: float, level: float) -> Bool[Tensor, " n"]:
    """Whether an opening comes down to ``level`` within each span (s), or :data:`AROUND` seconds of it."""
    times = torch.arange(len(opening), dtype=torch.float64) / rate
    near = (times >= spans[:, :1].double() - AROUND - 1e-6) & (times <= spans[:, 1:].double() + AROUND + 1e-6)
    return (near & (opening <= level)).any(1)


def _moved(driven: Tensor, tracked: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Both signals where both are there, if the driven one is ``step`` samples late."""
    count = len(driven) - abs(step)
    return driven[max(step, 0) :][:count], tracked[max(-step, 0) :][:count]


def measured_style(mesh: Float[Tensor, "t v 3"], expression: Float[Tensor, "t e"], times: Float[Tensor, " t"]) -> Float[Tensor, " 4"]:
    """How a person speaks: logarithms of the deviation of the mouth's opening and width, the mean smile, and the logarithm of the tempo.

    The tempo is the mean speed of the opening over its deviation (1 / s). Openings and widths are in face heights, so that no unit matters.
    """
    opening = mouth_opening(mesh)
    height = torch.linalg.vector_norm(mesh[:, OPENING_VERTICES[2]] - mesh[:, OPENING_VERTICES[3]], dim=-1)
    width = torch.linalg.vector_norm(mesh[:, CORNERS[0]] - mesh[:, CORNERS[1]], dim=-1) / height.mean()
    spread, stretch = (values.std().clamp_min(1e-3) for values in (opening, width))
    speed = (opening.diff().abs() / times.diff().to(opening)).mean()
    return torch.stack([spread.log(), stretch.log(), expression[:, _SMILE].mean(), (speed / spread + 1e-3).log()])
