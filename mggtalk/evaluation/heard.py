"""Which phones are heard in the clips of a data set, and how well driven lips keep the closures among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.annotators.phones import Phone, PhoneAligner, closures, understood
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.data.speech_clips import SpeechClip, clip_rows, placed, read_motion
from mggtalk.evaluation.results import Metric, Missing
from mggtalk.geometry.face_model import FaceModel
from mggtalk.metrics.speech import Closures, lip_closures
from mggtalk.modules.speech import FRAME_RATE

FINDER = {"name": "PocketSphinx, US English", "licence": "BSD-2-Clause"}
METRICS = (
    Metric(
        name="closure",
        title="lip-closure recall",
        unit="",
        better="higher",
        definition="Of the p, b and m that are heard while the tracked lips close, the share at which the driven lips are as closed, "
        "within 40 ms; clips whose words are not understood have none.",
        model=FINDER,
    ),
    Metric(
        name="closure_chance",
        title="lip-closure recall by chance",
        unit="",
        better="lower",
        definition="The same if those phones were said at any other time: what a mouth gets for being shut often.",
        model=FINDER,
    ),
)


def installed() -> bool:
    """Whether phones can be looked for."""
    return find_spec("pocketsphinx") is not None


def missing() -> Missing:
    """Why the recall is not measured where no clip has phones."""
    if installed():
        return Missing(title=METRICS[0].title, reason="in no clip are English words understood", remedy="clips of clear English speech")
    return Missing(title=METRICS[0].title, reason="PocketSphinx is not installed", remedy="pip install 'mggtalk[phones]'")


def phones_of(reader: ShardReader, split: str, clips: Sequence[SpeechClip], face_model: FaceModel) -> dict[str, list[Phone]]:
    """The phones of each clip, by its name; no clip that was not understood.

    Raises:
        UserError: PocketSphinx is not installed.
    """
    aligner, wanted, found = PhoneAligner(), {clip.name for clip in clips}, {}
    for name, _, rows in clip_rows(reader, split):
        if name in wanted:
            motion = read_motion(reader, rows, face_model)
            phones = aligner(placed(motion.times - motion.times[0], motion.sound).astype(np.int16))
            if understood(phones):
                found[name] = phones
    return found


def spans(phones: Sequence[Phone]) -> Float[Tensor, "n 2"]:
    """Begin and end (s) of the phones for which lips close."""
    return torch.tensor([[phone.start, phone.end] for phone in closures(phones)], dtype=torch.float64).reshape(-1, 2)


def kept_closures(driven: Float[Tensor, " t"], tracked: Float[Tensor, " t"], phones: Sequence[Phone]) -> Closures:
    """What a driven opening, 50 a second, keeps of the closures among these phones."""
    return lip_closures(driven, tracked, spans(phones), float(FRAME_RATE))


def closure_values(driven: Float[Tensor, " t"], tracked: Float[Tensor, " t"], phones: Sequence[Phone]) -> dict[str, float]:
    """The values of :data:`METRICS` for a driven opening beside the tracked one; NaN where no closure is heard and seen."""
    found = kept_closures(driven, tracked, phones)
    share = 1 / found.seen if found.seen else math.nan
    return {"closure": found.kept * share, "closure_chance": found.chance * share}
