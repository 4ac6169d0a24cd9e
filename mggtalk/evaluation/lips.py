"""LSE-C and LSE-D of suite ``audio``: what SyncNet says of rendered speech, and of the real clips.

Prajwal, Mukhopadhyay, Namboodiri, Jawahar, "A lip sync expert is all you need for speech to lip generation in the wild", ACM MM 2020: LSE-C
is SyncNet's confidence, LSE-D the distance at the best offset. The first frame of a clip is the source; the head stays as it is there,
25 frames a second, and the sound is the clip's own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.audio_features import RATE
from datasets_toolkit.annotators.syncnet import FPS, SyncNet
from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import BLENDSHAPES, ByteImage
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.data.speech_clips import SpeechClip, placed, read_motion
from mggtalk.evaluation.cases import Case, Studio
from mggtalk.evaluation.methods import Method
from mggtalk.evaluation.protocol import PlannedPair, Suite, plan
from mggtalk.evaluation.results import Metric, Missing
from mggtalk.evaluation.runner import OWN
from mggtalk.evaluation.scoring import at
from mggtalk.geometry.face_model import FaceModel
from mggtalk.metrics.speech import OPENING_VERTICES, opening_of
from mggtalk.metrics.tracked import FaceReader
from mggtalk.modules.speech import FRAME_RATE

log = logging.getLogger(__name__)
LONGEST = 10.0
"""Seconds of a clip that are rendered and read, from its beginning."""
MISSING = Missing(
    title="LSE-C, LSE-D",
    reason="no SyncNet was given",
    remedy=f"--syncnet FILE: syncnet_v2.model ({SyncNet.source.address}; {SyncNet.source.licence})",
)
Values = dict[str, float]
Sound = npt.NDArray[np.int16]


class LipReader:
    """Renders what speech drives, and scores that and the real clips.

    Args:
        network: SyncNet.
        method: makes the pictures, such as the model under test.
        faces: finds the faces in them.

    Raises:
        AssetError: SyncNet's weights are damaged or of another network.
    """

    def __init__(self, network: SyncNet, method: Method, faces: FaceReader) -> None:
        self.network, self.method, self.faces = network, method, faces
        network.network()

    def scores(
        self, reader: ShardReader, suite: Suite, driven: Mapping[str, Mapping[str, Float[Tensor, "_ e"]]]
    ) -> dict[str, dict[str, Values]]:
        """``lse_c`` and ``lse_d`` by clip, then by method, and of the real pictures (:data:`OWN`); NaN where nothing can be said.

        Args:
            reader: of the data set.
            suite: split and size of the pictures.
            driven: expressions about the face with closed lips, 50 a second from the first frame on, by clip, then by method.

        Raises:
            UserError: no clip can be read and rendered; if some cannot, the log says which, and they are left out.
        """
        studio, found, reason = Studio(reader, suite.size, self.faces.face_model), {}, "it has no clip of two frames"
        for planned in plan(reader.index, reader.clips, replace(suite, kind="self", people=None)):
            if planned.driver not in driven:
                continue
            try:
                found[planned.driver] = self._clip(studio, planned, driven[planned.driver])
                log.info("%s: lips read", planned.driver)
            except UserError as error:
                log.warning("%s: has no LSE: %s", planned.driver, error)
                reason = str(error)
        if not found:
            raise UserError(f"suite {suite.name}: no clip could be rendered for LSE; the last reason: {reason}")
        return found

    def _clip(self, studio: Studio, planned: PlannedPair, driven: Mapping[str, Float[Tensor, "_ e"]]) -> dict[str, Values]:
        case, sound = studio.case(planned), _sound(studio, planned)
        found = {method: self._score(*self._rendered(case, expression), sound) for method, expression in driven.items()}
        times = studio.reader.index["time"].to_numpy()[planned.rows]
        real = studio.truth(planned.rows[nearest(times, LONGEST)], planned.source)
        return {**found, OWN: self._score(real.pictures, real.intrinsics, real.landmarks, sound)}

    def _rendered(self, case: Case, expression: Float[Tensor, "t e"]) -> tuple[Sequence[ByteImage], Tensor, Tensor]:
        """Pictures, their cameras, and where the face is to be expected: the head does not move."""
        chosen = expression[:: FRAME_RATE // FPS][: int(LONGEST * FPS)]
        pictures = self.method.pictures(case.speaking(chosen, self.faces.face_model), range(len(chosen)))
        return pictures, at(case, len(pictures)), torch.from_numpy(case.landmarks).expand(len(pictures), -1, -1)

    def _score(self, pictures: Sequence[ByteImage], intrinsics: Tensor, near: Tensor, sound: Sound) -> Values:
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        crops = filled(self.faces.crops(images, intrinsics, near), pictures)
        score = self.network(crops, sound[: len(pictures) * RATE // FPS])
        known = math.isfinite(score.distance)
        return {"lse_c": score.confidence if known else math.nan, "lse_d": score.distance}


def definitions(network: SyncNet) -> tuple[Metric, Metric]:
    """What the two metrics are, with the network's file."""
    about = network.provenance()
    model = {"name": about["weights"], "sha256": about["sha256"], "licence": about["licence"]}
    confidence = "SyncNet's confidence: the median over offsets of the mean distance of lips and sound, less the least one"
    distance = "The mean distance of SyncNet's vectors of lips and sound at the offset (up to 15 frames) where it is least"
    end = f" (Prajwal et al. 2020); of at most {LONGEST:g} s, rendered from the clip's first frame by the model of the other suites"
    return (
        Metric(name="lse_c", title="LSE-C", unit="", better="higher", definition=confidence + end, model=model),
        Metric(name="lse_d", title="LSE-D", unit="", better="lower", definition=distance + end, model=model),
    )


def jaw_expression(opening: Float[Tensor, " t"], clip: SpeechClip, face_model: FaceModel) -> Float[Tensor, "t e"]:
    """Expressions that open the clip's closed mouth by the jaw alone, as far as ``opening`` says and the blendshape reaches."""
    jaw = torch.eye(face_model.expression_size)[BLENDSHAPES.index("jawOpen")]
    corners, scores = face_model.displacement(jaw)[list(OPENING_VERTICES)], torch.linspace(0, 1, 101)
    reached = opening_of(clip.points + scores[:, None, None] * corners).cummax(0).values
    return torch.from_numpy(np.interp(opening.numpy(), reached.numpy(), scores.numpy())).float()[:, None] * jaw


def nearest(times: npt.NDArray[np.float64], longest: float) -> npt.NDArray[np.int64]:
    """Which frames (of ascending times, s) are shown 25 times a second from the first one on, for at most ``longest`` seconds."""
    wanted = times[0] + np.arange(int(min(times[-1] - times[0] + 1 / FPS, longest) * FPS + 1e-6)) / FPS
    return np.abs(times[None] - wanted[:, None]).argmin(1).astype(np.int64)


def filled(crops: Sequence[FaceCrop | None], pictures: Sequence[ByteImage]) -> list[FaceCrop]:
    """Crops in which a picture without a face has the place of the nearest one with a face; nothing if there is none."""
    known = np.array([row for row, crop in enumerate(crops) if crop is not None])
    found = []
    for row, picture in enumerate(pictures if len(known) else ()):
        crop = crops[known[np.abs(known - row).argmin()]]
        assert crop is not None
        found.append(replace(crop, image=picture))
    return found


def _sound(studio: Studio, planned: PlannedPair) -> Sound:
    """Of the clip, from its first frame on."""
    motion = read_motion(studio.reader, planned.rows, studio.face_model)
    return np.asarray(placed(motion.times - motion.times[0], motion.sound), np.int16)
