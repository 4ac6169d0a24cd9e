"""The networks of MediaPipe's face landmarker in PyTorch: what a tracker reads of a picture, with gradients to the picture.

Training may look at a rendering as the tracker does: a lip that is where it should be is seen, whatever its colours. The file is the one
that tracking uses (Apache 2.0). Kartynnik et al., "Real-time facial surface geometry from monocular video on mobile GPUs", 2019;
Grishchenko et al., "Blendshapes GHUM: real-time monocular facial blendshape prediction", 2023.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from datasets_toolkit.assets import locate
from datasets_toolkit.faces.face_regions import LEFT_EYE, RIGHT_EYE
from datasets_toolkit.schema import LANDMARKS
from mggtalk.networks.frozen import Frozen
from mggtalk.networks.tflite import TfliteNetwork
from mggtalk.networks.weights import WeightsError

SIDE = 256
"""Pixels a side of the square that the landmark network sees."""
ROOM = 1.5
"""Side of that square in units of the larger side of the landmarks."""
EXPRESSIVE = (
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80, 81, 82, 84, 87, 88, 91,
    93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153, 154, 155, 157, 158, 159, 160, 161, 162, 163,
    168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249, 251, 263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293,
    295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318, 321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378,
    379, 380, 381, 382, 384, 385, 386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472, 473, 474,
    475, 476, 477,
)  # fmt: skip
"""Landmarks that expressions are read from (a fact of MediaPipe's graph)."""


class Reading(NamedTuple):
    """What is read of pictures."""

    landmarks: Float[Tensor, "b n 2"]  # pixels
    blendshapes: Float[Tensor, "b 52"]  # datasets_toolkit.schema.BLENDSHAPES


class FaceLandmarks(Frozen):
    """Landmarks and expressions of faces whose place is known; gradients pass to the pictures.

    Args:
        path: ``face_landmarker.task``; by default it is looked up as :mod:`datasets_toolkit.assets` says.

    Raises:
        AssetError: the file cannot be had.
        WeightsError: it is not that file.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        super().__init__()
        path = locate("face_landmarker.task") if path is None else Path(path).expanduser()
        try:
            with zipfile.ZipFile(path) as parts:
                data = [parts.read(f"{name}.tflite") for name in ("face_landmarks_detector", "face_blendshapes")]
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise WeightsError(f"{path}: no face landmarker ({type(error).__name__}); fetch face_landmarker.task again") from error
        self.detector, self.expression = (TfliteNetwork(part, str(path)) for part in data)
        self.freeze()

    def forward(self, image: Float[Tensor, "b 3 h w"], near: Float[Tensor, "b n 2"]) -> Reading:
        """What the tracker reads of each image.

        Args:
            image: RGB in [0, 1].
            near: pixels where its landmarks are, about: says where the network looks. Takes no gradients.
        """
        with torch.autocast(image.device.type, enabled=False):
            square = _square(near.detach().float())
            return self._read(image.float(), square)

    def _read(self, image: Tensor, square: Tensor) -> Reading:
        size = image.new_tensor([image.shape[-1], image.shape[-2]])
        steps = (torch.arange(SIDE, device=image.device, dtype=image.dtype) + 0.5) / SIDE
        places = torch.stack([*torch.meshgrid(steps, steps, indexing="xy"), torch.ones(SIDE, SIDE).to(image)], -1)
        grid = 2 * (places.flatten(0, 1) @ square.mT).unflatten(1, (SIDE, SIDE)) / size - 1
        cut = grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        points = self.detector(cut.permute(0, 2, 3, 1))[0].reshape(len(image), LANDMARKS, 3)[..., :2] / SIDE
        landmarks = torch.cat([points, torch.ones_like(points[..., :1])], -1) @ square.mT
        return Reading(landmarks, self.expression(landmarks[:, list(EXPRESSIVE)])[0].reshape(len(image), -1))


def _square(landmarks: Float[Tensor, "b n 2"]) -> Float[Tensor, "b 2 3"]:
    """From shares of the square that the network looks at, upright with the eyes, to pixels of the image."""
    right, left = landmarks[:, RIGHT_EYE[0]], landmarks[:, LEFT_EYE[0]]
    along = normalize(left - right, dim=-1)
    axes = torch.stack([along, torch.stack([-along[:, 1], along[:, 0]], -1)], -1)  # columns: right and down of the face
    upright = landmarks @ axes
    low, high = upright.amin(1), upright.amax(1)
    side = ROOM * (high - low).amax(-1)
    corner = (low + high) / 2 - side[:, None] / 2
    return torch.cat([axes * side[:, None, None], (axes @ corner[..., None])], -1)
