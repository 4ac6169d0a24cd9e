"""Classes of networks become regions, with the person's own left and right."""

from __future__ import annotations

from pathlib import Path

import network_weights as made
import numpy as np
import pytest
import torch
from annotator_scenes import SMALL, small_crop

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.celebamask import BISENET_CLASSES, CELEBAMASK_CLASSES, parsing_from_classes
from datasets_toolkit.annotators.identity_insightface import ArcFaceIdentity
from datasets_toolkit.annotators.landmark_parsing import polygon
from datasets_toolkit.annotators.parsing_onnx import OnnxParsing
from datasets_toolkit.annotators.parsing_segformer import SegformerParsing
from datasets_toolkit.errors import AssetError, UserError
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.schema import Region

for package in ("onnx", "onnxruntime", "transformers", "diffusers"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def crop() -> FaceCrop:
    return small_crop()


WANTED = {
    "background": Region.BACKGROUND, "skin": Region.SKIN, "nose": Region.NOSE, "eye_g": Region.SKIN, "mouth": Region.MOUTH,
    "u_lip": Region.UPPER_LIP, "l_lip": Region.LOWER_LIP, "hair": Region.HAIR, "hat": Region.HAIR, "neck": Region.NECK,
    "neck_l": Region.NECK, "cloth": Region.TORSO,
}  # fmt: skip
LEFT = {"eye": Region.LEFT_EYE, "brow": Region.LEFT_BROW, "ear": Region.LEFT_EAR}
RIGHT = {"eye": Region.RIGHT_EYE, "brow": Region.RIGHT_BROW, "ear": Region.RIGHT_EAR}


def colours(classes: tuple[str, ...]) -> np.ndarray:
    """A colour for each class, far from the others."""
    steps = np.array([(r, g, b) for r in (20, 128, 235) for g in (20, 128, 235) for b in (20, 128, 235)], np.uint8)
    return steps[: len(classes)]


def nearest_colour(classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """A 1 x 1 convolution whose largest logit is that of the class with the nearest colour: -|c - c_k|^2 but for what all share."""
    known = (colours(classes).astype(float) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    return {"mixing": 40 * known, "bias": -20 * (known**2).sum(1)}


def painted(crop: FaceCrop, classes: tuple[str, ...], swapped: bool) -> FaceCrop:
    """The crop with each part in the colour of its class; with left and right the wrong way round if ``swapped``."""
    number = {name: index for index, name in enumerate(classes)}
    left, right = ("r", "l") if swapped else ("l", "r")
    image = np.empty((SMALL, SMALL, 3), np.uint8)
    table, size = colours(classes), SMALL
    image[:] = table[number["background"]]
    y, x = np.mgrid[:size, :size] + 0.5
    image[polygon(crop.landmarks, regions.FACE_OVAL, size) > 0] = table[number["skin"]]
    for side, region in ((left, regions.LEFT_TEMPLE), (right, regions.RIGHT_TEMPLE)):
        near = np.hypot(x - crop.landmarks[region, 0], y - crop.landmarks[region, 1]) < 5
        image[near] = table[number[f"{side}_ear"]]
    sides = [(f"{left}_eye", regions.LEFT_EYE), (f"{right}_eye", regions.RIGHT_EYE)]
    sides += [(f"{left}_brow", regions.LEFT_BROW), (f"{right}_brow", regions.RIGHT_BROW)]
    for name, ring in [*sides, ("nose", regions.NOSE), ("u_lip", regions.UPPER_LIP), ("l_lip", regions.LOWER_LIP)]:
        image[polygon(crop.landmarks, ring, size) > 0.5] = table[number[name]]
    return FaceCrop(**{**vars(crop), "image": image})


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("classes", [BISENET_CLASSES, CELEBAMASK_CLASSES], ids=["bisenet", "celebamask"])
def test_a_painted_face_is_parsed_with_its_own_left_and_right(
    crop: FaceCrop, tmp_path: Path, classes: tuple[str, ...], swapped: bool
) -> None:
    arguments = made.bisenet(tmp_path, **nearest_colour(classes), size=SMALL)
    found = OnnxParsing(**arguments, classes=classes)(painted(crop, classes, swapped)).labels

    def at(index: int, down: float = 0) -> Region:
        x, y = crop.landmarks[index, :2]
        return Region(int(found[int(y + down), int(x)]))

    assert crop.landmarks[regions.LEFT_IRIS[0], 0] > SMALL / 2  # the person looks at us
    assert at(regions.LEFT_IRIS[0]) == Region.LEFT_EYE
    assert at(regions.RIGHT_IRIS[0]) == Region.RIGHT_EYE
    assert at(regions.LEFT_TEMPLE) == Region.LEFT_EAR
    assert at(regions.RIGHT_TEMPLE) == Region.RIGHT_EAR
    assert at(1) == Region.NOSE
    assert at(151) == Region.SKIN
    assert found[2, 2] == Region.BACKGROUND
    rings = {Region.LEFT_BROW: regions.LEFT_BROW, Region.RIGHT_BROW: regions.RIGHT_BROW, Region.UPPER_LIP: regions.UPPER_LIP}
    for region, ring in rings.items():
        part = polygon(crop.landmarks, ring, SMALL) > 0.99
        assert (found[part] == region).mean() > 0.9


@pytest.mark.parametrize("name", CELEBAMASK_CLASSES)
def test_every_class_has_its_region(crop: FaceCrop, name: str) -> None:
    probabilities = np.zeros((19, SMALL, SMALL), np.float32)
    probabilities[CELEBAMASK_CLASSES.index(name)] = 1
    parsing = parsing_from_classes(probabilities, CELEBAMASK_CLASSES, crop)
    if name in WANTED:
        wanted = {WANTED[name], *((Region.LEFT_EYE, Region.RIGHT_EYE, Region.LEFT_BROW, Region.RIGHT_BROW) if name == "eye_g" else ())}
    else:
        part = "ear" if name == "ear_r" else name[2:]
        wanted = {LEFT[part], RIGHT[part]}
        half = parsing.labels[:, SMALL // 2 + 1 :]
        assert (half == LEFT[part]).all()  # the person's left is on the right of the picture
    assert set(np.unique(parsing.labels)) == {int(region) for region in wanted}
    assert (parsing.matte == (name != "background")).all()


def test_the_segformer_keeps_the_order_of_its_names(crop: FaceCrop, tmp_path: Path) -> None:
    mixed = tuple(np.random.default_rng(0).permutation(CELEBAMASK_CLASSES).tolist())
    annotator = SegformerParsing(**made.segformer(tmp_path / "weights", mixed))
    classifier = annotator.network()[1].decode_head.classifier
    for name in ("hair", "cloth", "nose", "background"):
        with torch.no_grad():
            classifier.weight.zero_()
            classifier.bias.copy_(torch.tensor([20.0 * (other == name) for other in mixed]))
        parsing = annotator(crop)
        assert (parsing.labels == WANTED[name]).all()
    with pytest.raises(UserError, match="not the 19 classes"):
        SegformerParsing(**made.segformer(tmp_path / "other", ("road", "sky", "car")))


def test_people_beside_the_tracked_one_are_background(crop: FaceCrop) -> None:
    probabilities = np.zeros((19, SMALL, SMALL), np.float32)
    skin = polygon(crop.landmarks, regions.FACE_OVAL, SMALL) > 0
    skin[:20, :20] = True
    probabilities[CELEBAMASK_CLASSES.index("skin")], probabilities[0] = skin, ~skin
    parsing = parsing_from_classes(probabilities, CELEBAMASK_CLASSES, crop)
    assert not parsing.matte[:20, :20].any()
    assert not parsing.labels[:20, :20].any()
    assert (parsing.labels[skin][400:] == Region.SKIN).all()


def test_parts_of_a_region_count_together(crop: FaceCrop) -> None:
    """A person's pixel that is a little of hair, hat, neck and cloth: hair and hat are one region, and so are more than neck."""
    probabilities = np.zeros((19, SMALL, SMALL), np.float32)
    for name, share in (("background", 0.3), ("hair", 0.2), ("hat", 0.15), ("neck", 0.25), ("cloth", 0.1)):
        probabilities[CELEBAMASK_CLASSES.index(name)] = share
    parsing = parsing_from_classes(probabilities, CELEBAMASK_CLASSES, crop)
    assert (parsing.labels == Region.HAIR).all()
    np.testing.assert_allclose(parsing.matte, 0.7, atol=1e-6)


def test_classes_and_networks_that_do_not_fit_are_told(tmp_path: Path, crop: FaceCrop) -> None:
    arguments = made.bisenet(tmp_path)
    with pytest.raises(UserError, match="not the 19 classes"):
        OnnxParsing(**arguments, classes=BISENET_CLASSES[:-1])
    other = made.bisenet(tmp_path / "other", mixing=np.ones((7, 3)))
    with pytest.raises(AssetError, match="not 19 maps"):
        OnnxParsing(**other)(crop)
    with pytest.raises(AssetError, match="not 512 numbers"):
        ArcFaceIdentity(**arguments)(crop)
    with pytest.raises(AssetError, match="not 512 numbers"):
        ArcFaceIdentity(**made.arcface(tmp_path / "small", features=128))(crop)
    anything = made.bisenet(tmp_path / "any", size="side")
    assert OnnxParsing(**anything)(crop).labels.shape == (SMALL, SMALL)
