"""From the 19 classes of CelebAMask-HQ, which most face parsing networks give, to the regions of the toolkit.

Lee et al., "MaskGAN: towards diverse and interactive facial image manipulation", CVPR 2020. Networks differ in the order of the classes,
and in whose left and right they mean: the person's, the viewer's, or, trained on mirrored pictures, neither. So the two sides are
taken together, and told apart by the tracked landmarks: left and right are the person's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from datasets_toolkit.annotators.base import FaceCrop, Map, Parsing
from datasets_toolkit.annotators.landmark_parsing import connected, polygon
from datasets_toolkit.errors import UserError
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.schema import FloatArray, Region

BISENET_CLASSES = (
    "background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r", "nose", "mouth", "u_lip", "l_lip",
    "neck", "neck_l", "cloth", "hair", "hat",
)  # fmt: skip
"""The order of the BiSeNet face parsing networks."""
CELEBAMASK_CLASSES = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip", "hair", "hat",
    "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
"""The order of the data set's own parsing code, which the SegFormer networks keep."""
_REGIONS = {
    "background": Region.BACKGROUND, "skin": Region.SKIN, "nose": Region.NOSE, "eye_g": Region.SKIN, "mouth": Region.MOUTH,
    "u_lip": Region.UPPER_LIP, "l_lip": Region.LOWER_LIP, "hair": Region.HAIR, "hat": Region.HAIR, "neck": Region.NECK,
    "neck_l": Region.NECK, "cloth": Region.TORSO, "l_brow": Region.LEFT_BROW, "r_brow": Region.LEFT_BROW, "l_eye": Region.LEFT_EYE,
    "r_eye": Region.LEFT_EYE, "l_ear": Region.LEFT_EAR, "r_ear": Region.LEFT_EAR, "ear_r": Region.LEFT_EAR,
}  # fmt: skip
"""A hat moves with the head like hair, a necklace with the neck, an earring with the ear. Pairs begin as the left one."""
_PAIRS = (
    (Region.LEFT_BROW, Region.RIGHT_BROW, regions.LEFT_BROW, regions.RIGHT_BROW),
    (Region.LEFT_EYE, Region.RIGHT_EYE, regions.LEFT_EYE, regions.RIGHT_EYE),
    (Region.LEFT_EAR, Region.RIGHT_EAR, (regions.LEFT_TEMPLE,), (regions.RIGHT_TEMPLE,)),
)
_BEHIND_GLASSES = (
    (Region.LEFT_BROW, regions.LEFT_BROW), (Region.RIGHT_BROW, regions.RIGHT_BROW), (Region.LEFT_EYE, regions.LEFT_EYE),
    (Region.RIGHT_EYE, regions.RIGHT_EYE),
)  # fmt: skip


def check_classes(classes: Sequence[str], name: str) -> tuple[str, ...]:
    """The classes of a network, if they are the 19 of CelebAMask-HQ in any order.

    Raises:
        UserError: they are not; ``name`` says whose they are.
    """
    if sorted(classes) != sorted(_REGIONS):
        strange = sorted(set(classes) - set(_REGIONS)) or sorted(set(_REGIONS) - set(classes)) or ["some class twice"]
        raise UserError(f"{name}: not the 19 classes of CelebAMask-HQ (see {', '.join(strange[:4])}); give a network trained on them")
    return tuple(classes)


def parsing_from_classes(probabilities: Map, classes: Sequence[str], crop: FaceCrop) -> Parsing:
    """Labels and matte from the probabilities (19 x s x s) of ``classes``.

    The person is where background has less than half of the probability and what is connected to the tracked face; the region of a
    person's pixel is that with the most probability once the classes of each region are added up. Glasses become skin, but eyes and
    brows seen through them keep their landmark polygons.
    """
    scores = np.zeros((len(Region), *probabilities.shape[1:]), np.float32)
    for name, probability in zip(classes, probabilities, strict=True):
        scores[_REGIONS[name]] += probability
    person = np.clip(1 - scores[Region.BACKGROUND], 0, 1)
    face = polygon(crop.landmarks, regions.FACE_OVAL, len(person)) > 0.5
    matte = np.asarray(person * connected(person > 0.02, face), np.float32)
    scores[Region.BACKGROUND] = -1
    best = np.argmax(scores, 0).astype(np.uint8)
    glasses = probabilities[list(classes).index("eye_g")]
    best = _seen_through(best, (best == Region.SKIN) & (glasses > 0.5 * scores[Region.SKIN]), crop)
    labels = np.where(matte >= 0.5, _sided(best, crop.landmarks), Region.BACKGROUND)
    return Parsing(labels=labels.astype(np.uint8), matte=matte)


def _sided(labels: npt.NDArray[np.uint8], landmarks: FloatArray) -> npt.NDArray[np.uint8]:
    """Each pixel of a pair goes to the side whose landmarks are nearer."""
    labels = labels.copy()
    for left, right, left_ring, right_ring in _PAIRS:
        row, column = np.isin(labels, (left, right)).nonzero()
        pixels = np.stack([column, row], 1) + 0.5
        to_left, to_right = (np.linalg.norm(pixels - landmarks[list(ring), :2].mean(0), axis=1) for ring in (left_ring, right_ring))
        labels[row, column] = np.where(to_left <= to_right, left, right)
    return labels


def _seen_through(labels: npt.NDArray[np.uint8], glasses: npt.NDArray[np.bool_], crop: FaceCrop) -> npt.NDArray[np.uint8]:
    labels = labels.copy()
    for region, ring in _BEHIND_GLASSES if glasses.any() else ():
        labels[glasses & (polygon(crop.landmarks, ring, len(labels)) > 0.5)] = region
    return labels
