"""One contract for every annotator."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotator_scenes import ALL, FAMILIES, NETWORKS, SIZE, Scene, arguments, make_scene, run, shipped

from datasets_toolkit.annotators import (
    Annotator,
    AudioAnnotator,
    FaceCrop,
    FrameSound,
    IdentityAnnotator,
    NormalAnnotator,
    SyncScore,
    make_annotator,
)
from datasets_toolkit.annotators.depth_normals import DepthNormals
from datasets_toolkit.annotators.landmark_parsing import LandmarkParsing
from datasets_toolkit.annotators.mesh_depth import MeshDepth
from datasets_toolkit.annotators.portrait import Annotations, Annotators, crop_face
from datasets_toolkit.annotators.weights import NetworkAnnotator
from datasets_toolkit.assets import ASSETS
from datasets_toolkit.errors import AssetError, UserError
from datasets_toolkit.schema import HEAD_REGIONS, ByteImage, Face, Region


@pytest.fixture(scope="module")
def crop(astronaut: ByteImage, astronaut_face: Face) -> FaceCrop:
    return crop_face(astronaut, astronaut_face, SIZE)


@pytest.fixture(scope="module")
def seen(crop: FaceCrop) -> Annotations:
    """What the default annotators say of the astronaut."""
    with closing(Annotators(parsing=LandmarkParsing(), depth=MeshDepth(), normals=DepthNormals())) as chosen:
        return chosen(crop)


@pytest.fixture(scope="module")
def scene(crop: FaceCrop, seen: Annotations) -> Scene:
    return make_scene(crop, seen)


@pytest.fixture(scope="module", params=ALL, ids=lambda kind: kind.__name__)
def annotator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Annotator]:
    with request.param(**arguments(request.param, tmp_path_factory.mktemp("weights"))) as made:
        yield made


def check_parsing(labels: np.ndarray, matte: np.ndarray, scene: Scene) -> None:
    assert labels.shape == matte.shape == (SIZE, SIZE)
    assert labels.dtype == np.uint8
    assert matte.dtype == np.float32
    assert set(np.unique(labels).tolist()) <= {int(region) for region in Region}
    assert matte.min() >= 0
    assert matte.max() <= 1
    assert (matte[labels != Region.BACKGROUND] >= 0.4).mean() > 0.999  # what has a name belongs to the person


def check_depth(depth: np.ndarray, scene: Scene) -> None:
    assert depth.shape == (SIZE, SIZE)
    assert depth.dtype == np.float32
    head = np.isin(scene.parsing.labels, HEAD_REGIONS)
    assert (depth[~head] == 0).all()
    assert (np.abs(depth[head] - scene.crop.head_to_camera[2, 3]) < 25).all()


def check_normals(normals: np.ndarray, scene: Scene) -> None:
    assert normals.shape == (SIZE, SIZE, 3)
    assert normals.dtype == np.float32
    known = scene.depth > 0
    assert (normals[~known] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(normals[known], axis=-1), 1, atol=1e-5)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(scene.crop.intrinsics).T
    assert ((normals * rays).sum(-1)[known] < 0).all()


def check_identity(vector: np.ndarray, scene: Scene) -> None:
    assert vector.ndim == 1
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def check_sync(score: SyncScore, scene: Scene) -> None:
    assert type(score.offset_frames) is int
    assert abs(score.offset_frames) <= 15
    assert type(score.confidence) is type(score.distance) is float
    assert score.confidence >= 0
    assert score.distance >= 0


def check_audio(*frames: FrameSound) -> None:
    *heard, scene = frames
    assert len(heard) == len(scene.times)
    for frame in heard:
        assert frame.pcm.dtype == np.int16
        assert frame.mel.dtype == np.float16
        assert frame.pcm.ndim == 1
        assert frame.mel.shape == (4, 80)
        assert np.isfinite(frame.mel).all()
    whole = np.concatenate([frame.pcm for frame in heard])  # from 0.1 s after the beginning of the sound on, nothing twice
    np.testing.assert_array_equal(whole, scene.sound[1600 : 1600 + len(whole)])


CHECKS = {
    "parsing": check_parsing, "depth": check_depth, "normals": check_normals, "identity": check_identity, "sync": check_sync,
    "audio": check_audio,
}  # fmt: skip


def plain(label: Any) -> Any:
    return [label.pcm.tolist(), label.mel.tolist()] if isinstance(label, FrameSound) else label


def test_contract(annotator: Annotator, scene: Scene) -> None:
    labels = run(annotator, scene)
    CHECKS[annotator.family](*labels, scene)  # type: ignore[operator]
    if isinstance(annotator, IdentityAnnotator):
        descriptor = annotator.descriptor(scene.crop)
        assert labels[0].shape == descriptor.shape == (annotator.numbers,)
        np.testing.assert_allclose(descriptor / np.linalg.norm(descriptor), labels[0], atol=1e-6)
    annotator.close()  # and used again, which loads again what was released, or says so
    if isinstance(annotator, NetworkAnnotator | AudioAnnotator | NormalAnnotator):
        for first, again in zip(labels, run(annotator, scene), strict=True):
            np.testing.assert_equal(plain(first), plain(again))


def test_the_same_input_gives_the_same_labels(scene: Scene, tmp_path: Path) -> None:
    for kind in (kind for kind in ALL if not issubclass(kind, NetworkAnnotator)):
        with kind(**arguments(kind, tmp_path)) as annotator:
            for first, again in zip(run(annotator, scene), run(annotator, scene), strict=True):
                np.testing.assert_equal(plain(first), plain(again))


def test_an_annotator_tells_what_it_is(annotator: Annotator) -> None:
    assert type(annotator).family in CHECKS
    assert isinstance(type(annotator).version, int)
    assert type(annotator).version >= 1
    told = annotator.provenance()
    pinned = {asset.name: {"weights": asset.name, "sha256": asset.sha256, "licence": asset.licence} for asset in ASSETS}
    if isinstance(annotator, NetworkAnnotator):
        assert sorted(told) == ["licence", "sha256", "weights"]
        assert all(told.values())
    else:
        assert told == pinned[told["weights"]] if told else "assets" not in inspect.signature(type(annotator)).parameters


def test_parameters_make_the_annotator_again(annotator: Annotator) -> None:
    parameters = annotator.parameters()
    assert list(parameters) == list(inspect.signature(type(annotator)).parameters)
    stored = json.loads(json.dumps(annotator.spec()))
    with make_annotator(stored, type(annotator)) as again:
        assert type(again) is type(annotator)
        assert again.parameters() == parameters
        assert again.provenance() == annotator.provenance()
        assert again.recipe() == annotator.recipe()
    assert not set(annotator.settings()) & type(annotator).locations  # what only says where files lie is no part of a key


def test_every_family_has_an_annotator() -> None:
    assert [len(shipped(family)) > 0 for family in FAMILIES] == [True] * 6
    assert {family.family for family in FAMILIES} == set(CHECKS)
    assert {LandmarkParsing, MeshDepth, DepthNormals} <= set(ALL)


def test_annotators_do_not_change_their_input(annotator: Annotator, scene: Scene) -> None:
    arrays = (scene.crop.image, scene.crop.landmarks, scene.depth, scene.parsing.labels, scene.sound, scene.times)
    before = [array.copy() for array in arrays]
    with type(annotator)(**annotator.parameters()) as other:
        run(other, scene)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


# Weights that cannot be


def spoil(path: Path) -> None:
    """Cut the largest file of some weights in two."""
    file = max((one for one in ([path] if path.is_file() else path.rglob("*")) if one.is_file()), key=lambda one: one.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_missing_foreign_and_damaged_weights_are_refused(kind: type[NetworkAnnotator], scene: Scene, tmp_path: Path) -> None:
    made = arguments(kind, tmp_path)
    foreign = tmp_path / "notes.txt"
    foreign.write_text("no weights")
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "nowhere", foreign, tmp_path / "empty"):
        with pytest.raises(AssetError) as caught:
            kind(**{**made, "weights": wrong}).network()
        for told in (str(wrong), kind.source.what, kind.source.address, kind.source.licence):
            assert told in str(caught.value)
        assert "\n" not in str(caught.value)
    spoil(Path(made["weights"]))
    with pytest.raises(AssetError, match="cannot be loaded"):
        run(kind(**made), scene)


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_nothing_is_loaded_before_it_is_needed(kind: type[NetworkAnnotator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: NetworkAnnotator) -> None:
        raise AssertionError("loaded too early")

    monkeypatch.setattr(kind, "_load", refuse)
    annotator = kind(**arguments(kind, tmp_path), licence="by agreement")
    annotator.parameters()
    assert annotator.provenance()["licence"] == "by agreement"


def test_a_spec_that_makes_no_annotator_is_told() -> None:
    home = "datasets_toolkit.annotators"
    for spec, told in (
        ({"class_path": f"{home}.nothing.Nothing"}, "there is no such annotator"),
        ({"class_path": f"{home}.mesh_depth.Nothing"}, "there is no such annotator"),
        ({}, "there is no such annotator"),
        ({"class_path": f"{home}.mesh_depth.MeshDepth"}, "no annotator of the normals family"),
        ({"class_path": f"{home}.mesh_depth.rasterise_depth"}, "no annotator of the normals family"),
        ({"class_path": f"{home}.NormalAnnotator"}, "no annotator of the normals family"),
        ({"class_path": f"{home}.depth_normals.DepthNormals", "init_args": {"smooth": 1}}, "it takes smoothing"),
    ):
        with pytest.raises(UserError, match=told):
            make_annotator(spec, NormalAnnotator)
    with pytest.raises(UserError, match="MeshDepth: no annotator of the normals family"):
        make_annotator(MeshDepth(), NormalAnnotator)
    assert make_annotator({"class_path": f"{home}.depth_normals.DepthNormals"}).smoothing == 1.0


def test_a_hash_stands_for_the_weights(tmp_path: Path) -> None:
    from datasets_toolkit.annotators.weights import declared_licence, fingerprint

    file = tmp_path / "one.onnx"
    file.write_bytes(b"weights")
    assert fingerprint(file) == hashlib.sha256(b"weights").hexdigest()
    for name in ("a", "b"):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "unet" / "model.safetensors").write_bytes(b"1234")
    rows = [f"config.json {hashlib.sha256(b'{}').hexdigest()}", f"unet/model.safetensors {hashlib.sha256(b'1234').hexdigest()}"]
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") == hashlib.sha256("\n".join(rows).encode()).hexdigest()
    (tmp_path / "b" / "README.md").write_text("---\nlicense: other\nlicense_name: 'strange-1.0'\n  license: no\n---\nlicense: never\n")
    (tmp_path / "b" / ".cache").mkdir()
    (tmp_path / "b" / ".cache" / "old.json").write_text("{}")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    (tmp_path / "b" / "unet" / "model.safetensors").write_bytes(b"12345")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
    assert declared_licence(tmp_path / "b") == "strange-1.0"
    assert declared_licence(tmp_path / "a") == ""
    with pytest.raises(AssetError, match="cannot be read"):
        fingerprint(tmp_path / "c")
