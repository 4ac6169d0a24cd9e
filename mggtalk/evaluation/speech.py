"""Speech drives the mouth: suite ``audio``, the opening of the driven mouth against that of the tracked one.

Each clip's mesh is driven by its sound alone, 50 times a second. The baseline, opening = a + b loudness, is fitted on the training clips;
loudness as in :mod:`datasets_toolkit.annotators.av_offset`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.annotators.av_offset import loudness, speech_band
from datasets_toolkit.annotators.phones import Phone
from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.audio.behaviour import Strengths
from mggtalk.audio.driver import AudioDriver
from mggtalk.audio.stream import SpeechControl
from mggtalk.data.speech_clips import SpeechClip, clip_rows, read_clips, read_motion
from mggtalk.data.speech_pieces import whole
from mggtalk.evaluation import heard
from mggtalk.evaluation.lips import MISSING, LipReader, definitions, jaw_expression
from mggtalk.evaluation.protocol import Suite, chosen
from mggtalk.evaluation.results import Metric, PairResult, SuiteResult
from mggtalk.evaluation.runner import OWN, described
from mggtalk.metrics.speech import OPENING_VERTICES, correlation, gap_of, lag, mouth_opening, opening_error
from mggtalk.modules.audio import STYLES
from mggtalk.modules.speech import FRAME_RATE, RATE

REGRESSION, NETWORK = "regression on loudness", "network"
PROTOCOL = (
    "The sound of a clip drives its speaker's resting face, lips closed, speaking style unknown but for the row that says so; the opening "
    "of the mouth is compared with the tracked one, 50 times a second, wherever the clip is heard. Blinks, gaze and head motion are off."
)
METRICS = (
    Metric(
        name="correlation", title="correlation", unit="", better="higher", definition="Of driven and tracked opening, without any shift."
    ),
    Metric(
        name="best", title="correlation at best lag", unit="", better="higher", definition="The largest over shifts of the driven opening."
    ),
    Metric(name="lag", title="lag", unit="ms", better="lower", definition="Size of the shift at which it is largest."),
    Metric(
        name="error", title="opening error", unit="% of face height", better="lower", definition="Mean absolute difference of the openings."
    ),
)
ABOUT = {
    NETWORK: "The speech network that ships, or --audio-model.",
    REGRESSION: "Opening from the loudness of the speech band alone.",
    OWN: "The clip's own pictures, with its own sound.",
}
"""What the methods are."""
STILL = SpeechControl(mouth_gain=1.0, strengths=Strengths(blink=0.0, gaze=0.0, head=0.0))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one clip: correlation without lag, the best one, lag (s), error (% of face height), deviation over the tracked."""

    method: str
    clip: str
    person: str
    seconds: float
    correlation: float
    best: float
    lag: float
    error: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class Driven:
    """What a method makes of a clip's sound, 50 times a second: openings of the mouth, and expressions about the face with closed lips."""

    method: str
    clip: SpeechClip
    opening: Float[Tensor, " t"]
    expression: Float[Tensor, "t e"]


def row_of(method: str, clip: SpeechClip, driven: Float[Tensor, " t"]) -> Row:
    """What a driven opening scores on a clip."""
    delay, best = lag(driven, clip.opening, float(FRAME_RATE))
    return Row(
        method=method,
        clip=clip.name,
        person=clip.person,
        seconds=len(clip.opening) / FRAME_RATE,
        correlation=correlation(driven, clip.opening),
        best=best,
        lag=delay,
        error=opening_error(driven, clip.opening),
        deviation=float(driven.std() / clip.opening.std()),
    )


def envelopes(reader: ShardReader, split: str, clips: Sequence[SpeechClip], driver: AudioDriver) -> list[Float[Tensor, " _"]]:
    """The loudness of the speech band at the frames of each clip."""
    rows = {name: rows for name, _, rows in clip_rows(reader, split)}
    found = []
    for clip in clips:
        motion = read_motion(reader, rows[clip.name], driver.face_model)
        sound = np.concatenate(motion.sound)
        found.append(torch.from_numpy(loudness(speech_band(sound), np.arange(len(clip.opening)) / FRAME_RATE)).float())
    return found


def line(envelope: Sequence[Float[Tensor, " _"]], opening: Sequence[Float[Tensor, " _"]]) -> tuple[float, float]:
    """Least squares of opening = a + b loudness over all clips."""
    x, y = torch.cat(list(envelope)).double(), torch.cat(list(opening)).double()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return float(y.mean() - slope * x.mean()), slope


@torch.inference_mode()
def driven_expression(driver: AudioDriver, clip: SpeechClip, gain: float, known: bool) -> Float[Tensor, "t e"]:
    """What a clip's sound drives, about the face with closed lips, as the driver limits it."""
    batch, network = whole(clip), driver.network
    style = network.standard_style(batch.style) if known else torch.zeros(1, len(STYLES))
    expression, size = gain * network(batch.features, style)[0], len(driver.face_model.blendshapes)
    return torch.cat([expression[:, :size].clamp(0, 1), expression[:, size:]], 1)


def driven_opening(driver: AudioDriver, clip: SpeechClip, expression: Float[Tensor, "t e"]) -> Float[Tensor, " t"]:
    """Opening of the clip's face with closed lips under these expressions; 0 where the lips overlap."""
    corners = driver.face_model.displacement(torch.eye(expression.shape[1]))[:, list(OPENING_VERTICES)]
    return gap_of(clip.points + torch.einsum("te,evk->tvk", expression, corners)).clamp_min(0)


def drive(reader: ShardReader, split: str, driver: AudioDriver, only: set[str] | None) -> list[Driven]:
    """What every method makes of every clip.

    Raises:
        UserError: no clip can be heard, or none of those asked for.
    """
    encoder, face_model = driver.network.encoder, driver.face_model
    train = read_clips(reader, "train", encoder, face_model)
    clips = [clip for clip in read_clips(reader, split, encoder, face_model) if only is None or clip.name in only]
    if not clips:
        raise UserError(f"split {split!r} has no clip that can be heard, or none of those that were asked for")
    offset, slope = line(envelopes(reader, "train", train, driver), [clip.opening for clip in train])
    found = []
    for clip, envelope in zip(clips, envelopes(reader, split, clips, driver), strict=True):
        opening = offset + slope * envelope
        found.append(Driven(method=REGRESSION, clip=clip, opening=opening, expression=jaw_expression(opening, clip, face_model)))
    for name, gain, known in (
        (NETWORK, 1.0, False),
        (f"{NETWORK}, gain {SpeechControl().mouth_gain}", SpeechControl().mouth_gain, False),
        (f"{NETWORK}, style known", 1.0, True),
    ):
        for clip in clips:
            expression = driven_expression(driver, clip, gain, known)
            found.append(Driven(method=name, clip=clip, opening=driven_opening(driver, clip, expression), expression=expression))
    return found


def quiet(driver: AudioDriver, seconds: float) -> dict[str, float]:
    """Mean opening (% of face height) and largest speed (face heights a second) in silence and in noise; times real time."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    for name, amplitude in (("silence", 0.0), ("noise -60 dB", 1e-3), ("noise -40 dB", 1e-2)):
        samples = amplitude * torch.randn(int(seconds * RATE), generator=generator)
        start = time.perf_counter()
        motion = driver.motion_of([samples], STILL)
        found[f"{name}, times real time"] = seconds / (time.perf_counter() - start)
        opening = mouth_opening(driver.face_model.mean + driver.face_model.displacement(motion.expression))
        found[f"{name}, opening"] = float(100 * opening.mean())
        found[f"{name}, largest speed"] = float(opening.diff().abs().max() * 25)
    return found


def run_speech(suite: Suite, reader: ShardReader, driver: AudioDriver, lips: LipReader | None = None) -> SuiteResult:
    """All numbers of suite ``audio``; those of SyncNet if there is one.

    Raises:
        UserError: no clip of the split can be heard, or with SyncNet a clip cannot be read or rendered.
    """
    asked = chosen(reader.index, reader.clips, suite)
    driven = [one for one in drive(reader, suite.split, driver, None) if one.clip.name in asked]
    if not driven:
        raise UserError(f"split {suite.split!r} has no clip that can be heard of the people that were asked for")
    clips: dict[str, dict[str, Driven]] = {}
    for one in driven:
        clips.setdefault(one.clip.name, {})[one.method] = one
    seen: dict[str, dict[str, dict[str, float]]] = {}
    if lips is not None:
        seen = lips.scores(reader, suite, {clip: {name: one.expression for name, one in own.items()} for clip, own in clips.items()})
    speakers = [own[NETWORK].clip for own in clips.values()]
    phones = heard.phones_of(reader, suite.split, speakers, driver.face_model) if heard.installed() else {}
    real = [OWN] if lips or phones else []
    methods = (NETWORK, *(name for name in dict.fromkeys(one.method for one in driven) if name != NETWORK), *real)
    return SuiteResult(
        suite=suite.name,
        protocol=PROTOCOL,
        settings=asdict(suite),
        data=described(reader, suite.split, {one.clip.person for one in driven}),
        methods=methods,
        about={method: ABOUT.get(method, "The network with the speaker's style, or louder; see its name.") for method in methods},
        metrics=(*METRICS, *(heard.METRICS if phones else ()), *(definitions(lips.network) if lips else ())),
        missing=(*([] if lips else [MISSING]), *([] if phones else [heard.missing()])),
        pairs=tuple(_pair(clip, own, seen.get(clip, {}), phones.get(clip)) for clip, own in clips.items()),
    )


def _pair(clip: str, driven: Mapping[str, Driven], seen: Mapping[str, Mapping[str, float]], phones: Sequence[Phone] | None) -> PairResult:
    """All numbers of a clip: of its openings by method, what is heard in it, and what SyncNet says, of the real pictures too."""
    values = {method: _values(row_of(method, one.clip, one.opening)) for method, one in driven.items()}
    speaker = driven[NETWORK].clip
    if phones is not None:
        openings = {**{method: one.opening for method, one in driven.items()}, OWN: speaker.opening}
        for method, opening in openings.items():
            values[method] = {**values.get(method, {}), **heard.closure_values(opening, speaker.opening, phones)}
    for method, row in seen.items():
        values[method] = {**values.get(method, {}), **row}
    return PairResult(
        name=clip, source=clip, source_person=speaker.person, driver=clip, driver_person=speaker.person, frames=(), values=values
    )


def _values(row: Row) -> dict[str, float]:
    return {"correlation": row.correlation, "best": row.best, "lag": 1000 * abs(row.lag), "error": row.error}
