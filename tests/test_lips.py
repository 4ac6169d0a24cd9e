"""LSE-C and LSE-D of suite audio: which frames are read, what is rendered, and what SyncNet is asked, with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import network_weights as made
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech_scenes import JAW, voice_clip
from torch import Tensor

from datasets_toolkit.annotators.syncnet import SyncNet, score
from datasets_toolkit.errors import AssetError, UserError
from datasets_toolkit.schema import FloatArray
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.synthetic.dataset import build_synthetic
from mggtalk.evaluation.cases import Case, Studio
from mggtalk.evaluation.command import main
from mggtalk.evaluation.lips import LONGEST, LipReader, filled, jaw_expression, nearest
from mggtalk.evaluation.methods import Repeated
from mggtalk.evaluation.protocol import Suite, plan
from mggtalk.evaluation.results import read_results
from mggtalk.evaluation.runner import OWN
from mggtalk.evaluation.speech import NETWORK, REGRESSION
from mggtalk.geometry.face_model import FaceModel
from mggtalk.metrics.speech import OPENING_VERTICES, opening_of
from mggtalk.metrics.tracked import FaceReader

SIZE = 96
SUITE = Suite(name="audio", kind="audio", size=SIZE)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Heads that speak; one clip to train on, one in each other split."""
    return build_synthetic(tmp_path_factory.mktemp("lips") / "data", clips=3, frames=32, size=SIZE, persons=3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(made.syncnet(tmp_path_factory.mktemp("syncnet"))["weights"])


class Watched(Repeated):
    """The source, and what was asked for."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def pictures(self, case: Case, rows: object) -> list[np.ndarray]:
        self.cases.append(case)
        return super().pictures(case, rows)  # type: ignore[arg-type]


def numbers(lips: FloatArray, sound: FloatArray) -> dict[str, float]:
    found = score(lips, sound, 15)
    return {"lse_c": pytest.approx(found.confidence, rel=1e-4), "lse_d": pytest.approx(found.distance, rel=1e-4)}


def test_real_and_rendered_clips_are_scored_by_syncnet(reader: ShardReader, weights: Path) -> None:
    """Against SyncNet on pictures, faces and sound that are read here one by one."""
    (planned,) = plan(reader.index, reader.clips, replace(SUITE, kind="self"))
    face_model, method = FaceModel(), Watched()
    expression = torch.rand(64, face_model.expression_size, generator=torch.Generator().manual_seed(0))
    with FaceReader() as faces, SyncNet(weights) as network:
        lips = LipReader(network, method, faces)
        found = lips.scores(reader, SUITE, {planned.driver: {"ours": expression}, "elsewhere": {"ours": expression}})
        studio = Studio(reader, SIZE, face_model)
        truth = studio.truth(planned.rows, planned.source)  # 25 frames a second already
        crops = faces.crops(torch.from_numpy(np.stack(truth.pictures)).permute(0, 3, 1, 2), truth.intrinsics, truth.landmarks)
        sound = np.concatenate([reader.sample(int(row), ["audio"]).audio for row in planned.rows])
        spoken = network.sound_vectors(sound[: 32 * 640], 27)
        own = numbers(network.lip_vectors(crops)[:27], spoken)
        (case,) = method.cases
        still = faces.crops(torch.from_numpy(case.picture).permute(2, 0, 1)[None], None, torch.from_numpy(case.landmarks)[None])
        source = numbers(network.lip_vectors(still * 32)[:27], spoken)
    assert list(found) == [planned.driver] and found[planned.driver] == {"ours": source, OWN: own}
    torch.testing.assert_close(case.expressions, case.closing(face_model) + expression[::2])
    torch.testing.assert_close(case.poses, case.source.camera.head_to_camera.expand(32, -1, -1))
    assert found[planned.driver][OWN]["lse_d"] != found[planned.driver]["ours"]["lse_d"]


def test_clips_that_cannot_be_rendered_are_told(reader: ShardReader, weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Repeated):
        def pictures(self, case: Case, rows: object) -> list[np.ndarray]:
            raise UserError("no pictures today")

    (planned,) = plan(reader.index, reader.clips, replace(SUITE, kind="self"))
    driven = {planned.driver: {"ours": torch.zeros(64, FaceModel().expression_size)}}
    with FaceReader() as faces, pytest.raises(UserError, match=r"no clip could be rendered for LSE.* no pictures today"):
        LipReader(SyncNet(weights), Broken(), faces).scores(reader, SUITE, driven)
    assert f"{planned.driver}: has no LSE" in caplog.text


def test_the_command_measures_every_row(reader: ShardReader, weights: Path, tmp_path: Path) -> None:
    words = ["--suite", "audio", "--model", "bases", "--recogniser", "none", "--shards", str(reader.storage.root)]
    main([*words, "--out", str(tmp_path / "with"), "--syncnet", str(weights), "--config", f"size={SIZE}"])
    results = read_results(tmp_path / "with" / "audio.json")
    (one,) = results.pairs
    assert results.methods[0] == NETWORK and results.methods[-1] == OWN and REGRESSION in results.methods
    closures = {"closure", "closure_chance"} & {metric.name for metric in results.metrics}  # if words are understood in made voices
    assert len(results.missing) == (0 if closures else 1)
    assert all(set(one.values[method]) == {metric.name for metric in results.metrics} for method in results.methods[:-1])
    assert set(one.values[OWN]) == {"lse_c", "lse_d"} | closures
    assert all(0 < one.values[method]["lse_d"] < 100 and one.values[method]["lse_c"] > 0 for method in results.methods)
    text = (tmp_path / "with" / "audio.md").read_text()
    assert "| LSE-C" in text and "syncnet_v2.model; sha256" in text and "LSE-D" in (tmp_path / "with" / "audio.html").read_text()
    main([*words, "--out", str(tmp_path / "without")])
    missing = read_results(tmp_path / "without" / "audio.json").missing[0]
    assert missing.title == "LSE-C, LSE-D" and "--syncnet FILE" in missing.remedy and "MIT" in missing.remedy
    for name in ("none.model", "other.model"):
        torch.save({"a": torch.zeros(1)}, tmp_path / "other.model")
        with pytest.raises(AssetError, match=name):
            main([*words, "--out", str(tmp_path / "wrong"), "--syncnet", str(tmp_path / name)])


def test_the_jaw_opens_the_mouth_as_far_as_asked() -> None:
    """In face heights, on another clip's neutral face; what the blendshape does not reach is its end."""
    face_model, clip = FaceModel(), voice_clip(1.0, 3)
    corners = face_model.displacement(torch.eye(face_model.expression_size))[:, list(OPENING_VERTICES)]

    def opening(expression: Tensor) -> Tensor:
        return opening_of(clip.points + torch.einsum("te,evk->tvk", expression, corners))

    closed, wide = opening(torch.stack([score * torch.eye(face_model.expression_size)[JAW] for score in (0.0, 1.0)])).tolist()
    wanted = torch.linspace(closed, wide, 20)
    found = jaw_expression(wanted, clip, face_model)
    torch.testing.assert_close(opening(found), wanted, atol=2e-4, rtol=0)
    assert found[:, JAW].tolist() == sorted(found[:, JAW].tolist()) and not found[:, :JAW].any() and not found[:, JAW + 1 :].any()
    assert jaw_expression(torch.tensor([-1.0, 9.0]), clip, face_model)[:, JAW].tolist() == [0, 1]


@given(rate=st.floats(8, 60), count=st.integers(2, 90), start=st.floats(0, 5), longest=st.floats(0.2, 2))
@settings(deadline=None, max_examples=60)
def test_real_frames_are_the_nearest_in_time(rate: float, count: int, start: float, longest: float) -> None:
    times = start + np.arange(count) / rate
    rows = nearest(times, longest)
    assert len(rows) <= LONGEST * 25 and len(rows) == pytest.approx(min(times[-1] - start + 0.04, longest) * 25, abs=1)
    for number, row in enumerate(rows):
        assert abs(times[row] - start - number / 25) <= min(abs(times - start - number / 25)) + 1e-9
    if rate == 25:
        np.testing.assert_array_equal(rows, np.arange(len(rows)))


def test_a_frame_without_a_face_has_the_place_of_its_neighbour() -> None:
    from annotator_scenes import small_crop

    crop = small_crop()
    other = replace(crop, landmarks=crop.landmarks + 1)
    pictures = [np.full_like(crop.image, number) for number in range(6)]
    found = filled([None, crop, None, None, other, None], pictures)
    assert [one.image[0, 0, 0] for one in found] == list(range(6))
    assert [one.landmarks is crop.landmarks for one in found] == [True, True, True, False, False, False]
    assert filled([None] * 6, pictures) == []
