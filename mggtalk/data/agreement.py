"""Whether sound and mouth of a clip belong together, and how far each part of an expression depends on sound: ridge regression.

It is always fitted to the clips of other people. Letters: X the regressors of a clip (t x m, ``AudioNetwork.design``), Y what is regressed
(t x k), both about their mean over the clip; W = (X^T X / t + ridge I)^-1 X^T Y / t, X with deviation 1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mggtalk.data.speech_clips import SpeechClip, moved
from mggtalk.metrics.speech import correlation, lag
from mggtalk.modules.audio import REACH, AudioNetwork
from mggtalk.modules.speech import FRAME_RATE

log = logging.getLogger(__name__)
RIDGE = 1.0
FOLDS = 5
BELIEVED = 0.25
"""Correlation at the best lag from which a lag is believed, and the sound moved by it."""
FARTHEST = 0.25
"""Seconds that sound is moved by at most."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of one clip, foretold by other people's: the mouth's best lag behind the sound (s), the correlation there, and that unmoved."""

    clip: str
    lag: float
    best: float
    unmoved: float


def agreeing(clips: Sequence[SpeechClip], network: AudioNetwork, minimum: float) -> list[SpeechClip]:
    """The clips whose mouth moves as the sound foretells with a correlation of at least ``minimum``, their sound moved by the lag.

    What is moved and what is left out is told in the log. With clips of fewer than two people nothing can be told, and all are kept.

    Args:
        clips: of a split.
        network: whose front has been fitted to them.
        minimum: correlation; -1 keeps all clips as they are.
    """
    if minimum <= -1 or len({clip.person for clip in clips}) < 2:
        return list(clips)
    kept, told = [], agreement(clips, network)
    for clip, found in zip(clips, told, strict=True):
        wanted = round(found.lag * FRAME_RATE) if found.best >= BELIEVED and abs(found.lag) <= FARTHEST else 0
        if max(found.best if wanted else found.unmoved, -1.0) >= minimum:
            kept.append(moved(clip, wanted) if wanted else clip)
        log.debug("%s: lag %+.2f s, correlation %.2f, %.2f unmoved", clip.name, found.lag, found.best, found.unmoved)
    log.info("%d of %d clips are used, those whose sound foretells the mouth with a correlation of %.2f", len(kept), len(clips), minimum)
    return kept


def agreement(clips: Sequence[SpeechClip], network: AudioNetwork) -> list[Agreement]:
    """How well the opening of each clip's mouth is foretold by regression on the clips of other people."""
    openings = [clip.opening[:, None] for clip in clips]
    told = held_out(clips, openings, network)
    results = []
    for clip, (prediction, truth) in zip(clips, told, strict=True):
        reach = min(FARTHEST, 0.2 * len(truth) / FRAME_RATE)
        delay, best = lag(truth[:, 0], prediction[:, 0], float(FRAME_RATE), reach)
        results.append(Agreement(clip=clip.name, lag=delay, best=best, unmoved=correlation(prediction[:, 0], truth[:, 0])))
    return results


def dependence(clips: Sequence[SpeechClip], network: AudioNetwork) -> Float[Tensor, " e"]:
    """The share of each coefficient's variance within a clip that regression on other people's clips foretells; at least 0.

    With clips of fewer than two people every share is 1.
    """
    if len({clip.person for clip in clips}) < 2:
        return torch.ones(clips[0].expression.shape[1])
    told = held_out(clips, [clip.expression for clip in clips], network)
    missed = torch.stack([(prediction - truth).square().sum(0) for prediction, truth in told]).sum(0)
    whole = torch.stack([truth.square().sum(0) for _, truth in told]).sum(0)
    return torch.where(whole > 1e-9, 1 - missed / whole.clamp_min(1e-9), 0.0).clamp(0, 1).float()


def held_out(
    clips: Sequence[SpeechClip], values: Sequence[Float[Tensor, "_ k"]], network: AudioNetwork
) -> list[tuple[Float[Tensor, "_ k"], Float[Tensor, "_ k"]]]:
    """For each clip, values about their mean as regression on the clips of other people foretells them, and as they are."""
    designs = [_centred(design_of(clip, network)) for clip in clips]
    truths = [_centred(value.double()) for value in values]
    people = sorted({clip.person for clip in clips})
    fold = {person: number % min(FOLDS, len(people)) for number, person in enumerate(people)}
    found: list[tuple[Tensor, Tensor]] = [(truth, truth) for truth in truths]
    for held in range(min(FOLDS, len(people))):
        inside = [fold[clip.person] == held for clip in clips]
        rest = [number for number, out in enumerate(inside) if not out]
        weights = ridge(torch.cat([designs[number] for number in rest]), torch.cat([truths[number] for number in rest]))
        for number in (number for number, out in enumerate(inside) if out):
            found[number] = (_centred(designs[number] @ weights), truths[number])
    return found


def ridge(design: Float[Tensor, "t m"], values: Float[Tensor, "t k"], strength: float = RIDGE) -> Float[Tensor, "m k"]:
    """Weights that take regressors (about their mean) to values, with a penalty on those of regressors of deviation 1."""
    deviation = design.square().mean(0).sqrt().clamp_min(1e-9)
    scaled = design / deviation
    normal = scaled.mT @ scaled / len(scaled) + strength * torch.eye(scaled.shape[1], dtype=scaled.dtype)
    return torch.linalg.solve(normal, scaled.mT @ values / len(scaled)) / deviation[:, None]


def design_of(clip: SpeechClip, network: AudioNetwork) -> Float[Tensor, "t m"]:
    """The regressors of a clip's frames; silence comes before and after it."""
    padded = torch.nn.functional.pad(clip.features, (0, 0, REACH, REACH))
    return network.design(network.front(padded)[None])[0].double()


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(0)
