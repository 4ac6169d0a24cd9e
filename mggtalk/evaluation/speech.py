"""Speech drives the mouth: suite ``audio``, the opening of the driven mouth against that of the tracked one.

Each clip's mesh is driven by its sound alone, 50 times a second. The baseline, opening = a + b loudness, is fitted on the training clips;
loudness as in :mod:`datasets_toolkit.annotators.av_offset`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.annotators.av_offset import loudness, speech_band
from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.audio.behaviour import Strengths
from mggtalk.audio.driver import AudioDriver
from mggtalk.audio.stream import SpeechControl
from mggtalk.data.speech_clips import SpeechClip, clip_rows, read_clips, read_motion
from mggtalk.data.speech_pieces import whole
from mggtalk.evaluation.protocol import Suite
from mggtalk.evaluation.results import Metric, Missing, PairResult, SuiteResult
from mggtalk.evaluation.runner import described
from mggtalk.metrics.speech import OPENING_VERTICES, correlation, lag, mouth_opening, opening_error, opening_of
from mggtalk.modules.audio import STYLES
from mggtalk.modules.speech import FRAME_RATE, RATE

REGRESSION, NETWORK = "regression on loudness", "network"
PROTOCOL = (
    "The sound of a clip drives its speaker's neutral face, speaking style unknown but for the row that says so; the opening of the mouth "
    "is compared with the tracked one, 50 times a second, wherever the clip is heard. Blinks, gaze and head motion are off."
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
MISSING = (
    Missing(
        title="LSE-C, LSE-D",
        reason="they are measured on videos",
        remedy="python benchmarks/audio.py --videos FOLDER --syncnet syncnet_v2.model",
    ),
)
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
def driven_opening(driver: AudioDriver, clip: SpeechClip, gain: float, known: bool) -> Float[Tensor, " t"]:
    """Opening of the clip's neutral face under what its sound drives, as the driver limits it."""
    batch, network = whole(clip), driver.network
    style = network.standard_style(batch.style) if known else torch.zeros(1, len(STYLES))
    expression, size = gain * network(batch.features, style)[0], len(driver.face_model.blendshapes)
    expression = torch.cat([expression[:, :size].clamp(0, 1), expression[:, size:]], 1)
    corners = driver.face_model.displacement(torch.eye(expression.shape[1]))[:, list(OPENING_VERTICES)]
    return opening_of(clip.points + torch.einsum("te,evk->tvk", expression, corners))


def compare(reader: ShardReader, split: str, driver: AudioDriver, only: set[str] | None) -> list[Row]:
    """Every method on every clip."""
    encoder, face_model = driver.network.encoder, driver.face_model
    train = read_clips(reader, "train", encoder, face_model)
    clips = [clip for clip in read_clips(reader, split, encoder, face_model) if only is None or clip.name in only]
    if not clips:
        raise UserError(f"split {split!r} has no clip that can be heard, or none of those that were asked for")
    offset, slope = line(envelopes(reader, "train", train, driver), [clip.opening for clip in train])
    rows = [
        row_of(REGRESSION, clip, offset + slope * envelope)
        for clip, envelope in zip(clips, envelopes(reader, split, clips, driver), strict=True)
    ]
    for name, gain, known in (
        (NETWORK, 1.0, False),
        (f"{NETWORK}, gain {SpeechControl().mouth_gain}", SpeechControl().mouth_gain, False),
        (f"{NETWORK}, style known", 1.0, True),
    ):
        rows += [row_of(name, clip, driven_opening(driver, clip, gain, known)) for clip in clips]
    return rows


def quiet(driver: AudioDriver, seconds: float) -> dict[str, float]:
    """Mean opening over the neutral face's and largest speed (face heights a second) in silence and in noise; times real time."""
    neutral = mouth_opening(driver.face_model.mean)
    found = {}
    generator = torch.Generator().manual_seed(0)
    for name, amplitude in (("silence", 0.0), ("noise -60 dB", 1e-3), ("noise -40 dB", 1e-2)):
        samples = amplitude * torch.randn(int(seconds * RATE), generator=generator)
        start = time.perf_counter()
        motion = driver.motion_of([samples], STILL)
        found[f"{name}, times real time"] = seconds / (time.perf_counter() - start)
        opening = mouth_opening(driver.face_model.mean + driver.face_model.displacement(motion.expression))
        found[f"{name}, opening over neutral"] = float(opening.mean() / neutral)
        found[f"{name}, largest speed"] = float(opening.diff().abs().max() * 25)
    return found


def run_speech(suite: Suite, reader: ShardReader, driver: AudioDriver) -> SuiteResult:
    """All numbers of suite ``audio``.

    Raises:
        UserError: no clip of the split can be heard.
    """
    rows = compare(reader, suite.split, driver, None)
    rows = [row for row in rows if suite.people is None or row.person in suite.people]
    if not rows:
        raise UserError(f"split {suite.split!r} has no clip that can be heard of the people that were asked for")
    methods = (NETWORK, *(name for name in dict.fromkeys(row.method for row in rows) if name != NETWORK))
    pairs = []
    for clip in dict.fromkeys(row.clip for row in rows):
        own = {row.method: row for row in rows if row.clip == clip}
        person = own[NETWORK].person
        pairs.append(
            PairResult(
                name=clip,
                source=clip,
                source_person=person,
                driver=clip,
                driver_person=person,
                frames=(),
                values={method: _values(row) for method, row in own.items()},
            )
        )
    about = {method: "The network with the speaker's style, or louder; see its name." for method in methods}
    about |= {
        NETWORK: "The speech network that ships, or --audio-model.",
        REGRESSION: "Opening from the loudness of the speech band alone.",
    }
    return SuiteResult(
        suite=suite.name,
        protocol=PROTOCOL,
        settings=asdict(suite),
        data=described(reader, suite.split, {row.person for row in rows}),
        methods=methods,
        about=about,
        metrics=METRICS,
        missing=MISSING,
        pairs=tuple(pairs),
    )


def _values(row: Row) -> dict[str, float]:
    return {"correlation": row.correlation, "best": row.best, "lag": 1000 * abs(row.lag), "error": row.error}
