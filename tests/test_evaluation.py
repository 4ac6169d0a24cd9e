"""The benchmark: suites, what is read for a pair, methods, scores, and the command from end to end on synthetic heads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from torch_weights import ALEXNET, convolutions, inception, write

from datasets_toolkit.annotators.identity_dlib import INSTALL, SHA256, DlibIdentity, installed
from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.synthetic import build_synthetic
from mggtalk.evaluation import command, protocol
from mggtalk.evaluation.cases import Studio
from mggtalk.evaluation.command import _recogniser, main, write_inputs
from mggtalk.evaluation.methods import BASES, REPEATED, WARP, Method, Model, Predictions, Repeated, Warp
from mggtalk.evaluation.protocol import SUITES, Suite, checked, load_suite, plan
from mggtalk.evaluation.results import read_results
from mggtalk.evaluation.runner import OWN, people_of_splits
from mggtalk.evaluation.scoring import Scorer, Weights, wrapped_psnr
from mggtalk.export import load_model
from mggtalk.geometry.face_model import FaceModel
from mggtalk.rendering.factory import make_renderer

SIZE = 128
TRAIN = {"name": "here", "kind": "self", "split": "train", "size": SIZE}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Two people to train on, one in each other split; 8 frames of each."""
    return build_synthetic(tmp_path_factory.mktemp("heads"), clips=4, frames=8, size=SIZE, persons=4)


@pytest.fixture(scope="module")
def studio(reader: ShardReader) -> Studio:
    return Studio(reader, SIZE, FaceModel())


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer(Weights()) as opened:
        yield opened


def pair(reader: ShardReader, kind: str = "self") -> protocol.PlannedPair:
    values = {"name": "here", "kind": kind, "split": "train", "frames": 3, "size": SIZE}
    return plan(reader.index, reader.clips, checked(values, "here"))[0]


def tables(clips: dict[str, tuple[str, str, int]]) -> tuple[pa.Table, pa.Table]:
    """Index and clips of clips by name: split, person, frames; rows of the index are shuffled."""
    rows = [(clip, split, 0.04 * frame) for clip, (split, _, frames) in clips.items() for frame in range(frames)]
    order = np.random.default_rng(0).permutation(len(rows))
    index = pa.table({name: [rows[row][column] for row in order] for column, name in enumerate(("clip", "split", "time"))})
    return index, pa.table({"clip": list(clips), "person": [person for _, person, _ in clips.values()]})


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_suites_of_the_project_are_read_by_name_and_by_path(path: Path) -> None:
    assert load_suite(path.stem) == load_suite(path)
    assert load_suite(path).name == path.stem


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: self\nframe: 3", "frame is nothing"),
        ("frames: 3", "kind is None"),
        ("kind: self\nframes: 0", "frames is 0"),
        ("kind: self\nsize: 100", "size is 100"),
        ("kind: self\npeople: 16", "people is 16, expected a list"),
        ("kind: self\nskip: palm", "skip is 'palm', expected a list"),
        ("kind: [self", "YAML"),
        ("- self", "nothing that a suite says"),
    ],
)
def test_what_no_suite_can_mean_is_told_with_its_name(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        load_suite(path)
    assert "mine.yaml" in str(caught.value)


def test_an_unknown_suite_is_told_with_those_that_are_there() -> None:
    with pytest.raises(UserError, match="cross, self"):
        load_suite("selv")


def test_skipped_clips_are_left_out() -> None:
    index, clips = tables({"a0": ("val", "anna", 3), "a1": ("val", "anna", 3), "b0": ("val", "bert", 3)})
    suite = Suite(name="self", kind="self", skip=("a0",))
    assert [pair.driver for pair in plan(index, clips, suite)] == ["a1", "b0"]
    crossed = plan(index, clips, replace(suite, kind="cross"))
    assert {pair.driver for pair in crossed} == {"a1", "b0"} and all("a0" not in pair.name for pair in crossed)
    with pytest.raises(UserError, match="split 'val' has no clip 'c0'"):
        plan(index, clips, replace(suite, skip=("c0",)))


@settings(deadline=None)
@given(frames=st.lists(st.integers(2, 40), min_size=1, max_size=6), wanted=st.integers(1, 9), run=st.integers(0, 12))
def test_a_clip_drives_its_own_first_frame(frames: list[int], wanted: int, run: int) -> None:
    index, clips = tables({f"c{number}": ("val", f"p{number}", count) for number, count in enumerate(frames)})
    pairs = plan(index, clips, Suite(name="self", kind="self", frames=wanted, run=run))
    times = index["time"].to_numpy()
    for one, count in zip(pairs, frames, strict=True):
        assert one.source == one.rows[0] and times[one.source] == 0
        np.testing.assert_allclose(times[one.rows], 0.04 * np.arange(count))
        assert 0 not in one.compared and len(one.compared) == min(wanted, count - 1)
        assert wanted == 1 or one.compared[-1] == count - 1
        assert len(one.run) == (run if 3 <= run <= count - 2 else 0) and (np.diff(one.run) == 1).all() and 0 not in one.run


@settings(deadline=None)
@given(people=st.lists(st.integers(0, 4), min_size=2, max_size=9), drivers=st.integers(1, 3), seed=st.integers(0, 5))
def test_people_are_crossed_with_others_only(people: list[int], drivers: int, seed: int) -> None:
    index, clips = tables({f"c{number}": ("val", f"p{person}", 3) for number, person in enumerate(people)})
    suite = Suite(name="cross", kind="cross", drivers=drivers, seed=seed)
    if len(set(people)) < 2:
        with pytest.raises(UserError, match="crossed"):
            plan(index, clips, suite)
        return
    pairs = plan(index, clips, suite)
    assert [one.name for one in pairs] == [one.name for one in plan(index, clips, suite)]
    assert all(one.source_person != one.driver_person for one in pairs)
    assert len(pairs) == len(set(people)) * min(drivers, len(set(people)) - 1)


def test_a_plan_that_cannot_be_made_is_told() -> None:
    index, clips = tables({"a": ("val", "anna", 3), "b": ("val", "bert", 1)})
    suite = Suite(name="self", kind="self")
    assert [one.driver for one in plan(index, clips, suite)] == ["a"]
    for wrong, told in ((replace(suite, split="test"), "split 'test'"), (replace(suite, people=("anna", "zoe")), "no person 'zoe'")):
        with pytest.raises(UserError, match=told):
            plan(index, clips, wrong)


def test_the_frame_that_is_the_source_drives_to_the_source(studio: Studio, reader: ShardReader) -> None:
    case = studio.case(pair(reader))
    torch.testing.assert_close(case.expressions[0], case.source.expression[0])
    torch.testing.assert_close(case.poses[0], case.source.camera.head_to_camera[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(case.targets[0], case.landmarks, atol=1e-3)
    near = studio.near(case, [0, 3])
    truth = studio.truth(case.plan.rows[[0, 3]], case.plan.source)
    assert (near - truth.landmarks).norm(dim=-1).mean() < 1.0  # pixels of 128: basis and tracker do not agree exactly
    assert (truth.landmarks[1] - truth.landmarks[0]).norm(dim=-1).mean() > 1.0


def test_across_people_the_head_turns_as_the_drivers(studio: Studio, reader: ShardReader) -> None:
    case = studio.case(pair(reader, "cross"))
    rows = case.plan.rows[[0, 5]]
    metas = [reader.sample(int(row), ()).meta for row in rows]
    for pose, meta in zip(case.poses[[0, 5]], metas, strict=True):
        np.testing.assert_allclose(pose[:3, :3], meta.head_to_camera[:3, :3], atol=1e-5)
    np.testing.assert_allclose(case.targets[0], case.landmarks, atol=1e-3)


def methods(folder: Path, studio: Studio, reader: ShardReader) -> list[Method]:
    """One of each kind; the predictions are the truth itself."""
    for kind in ("self", "cross"):
        planned = pair(reader, kind)
        for number, picture in enumerate(studio.truth(planned.rows, planned.source if kind == "self" else None).pictures):
            (folder / planned.name).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / planned.name / f"{number:03d}.png"), picture[..., ::-1])
    model = load_model("bases")
    model.renderer = make_renderer("cpu", "cpu")
    return [Model(BASES, model, "bases"), Repeated(), Warp(), Predictions("theirs", folder)]


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_every_method_makes_a_picture_for_each_frame(kind: str, studio: Studio, reader: ShardReader, tmp_path: Path) -> None:
    case = studio.case(pair(reader, kind))
    for method in methods(tmp_path, studio, reader):
        pictures = method.pictures(case, [4, 1])
        assert [picture.shape for picture in pictures] == [case.picture.shape] * 2, method.name
        assert all(picture.dtype == np.uint8 for picture in pictures) and method.name and method.about
        again = method.pictures(case, [1])
        np.testing.assert_array_equal(again[0], pictures[1], err_msg=method.name)  # no frame depends on those before it


def test_the_truth_scores_as_well_as_anything_can(studio: Studio, reader: ShardReader, scorer: Scorer) -> None:
    planned = pair(reader)
    truth = studio.truth(planned.rows[planned.compared], planned.source)
    seen = scorer.see(truth.pictures, truth.intrinsics, truth.landmarks)
    values = {**scorer.pictures(truth.pictures, truth), **scorer.motion(seen, seen, True), **scorer.jitter(seen, seen)}
    assert values == {
        "psnr": 60, "psnr_head": 60, "ssim": pytest.approx(1), "ssim_head": pytest.approx(1), "psnr_wrapped": values["psnr_wrapped"],
        "aed": 0, "apd": 0, "akd": 0, "found": 1, "jitter": 1,
    }  # fmt: skip
    own = scorer.see(truth.pictures[:1], truth.intrinsics[:1], truth.landmarks[:1])
    assert scorer.identity(own, own) == {"shape": 0}


@pytest.mark.skipif(not installed(), reason=f"dlib's recogniser is not installed: {INSTALL}")
def test_dlib_measures_identity_where_it_is_installed(studio: Studio, reader: ShardReader) -> None:
    """Against the annotator itself on the same crops; without a word on the command line its weights are found."""
    mine, other = (plan(reader.index, reader.clips, checked({**TRAIN, "frames": 3}, "here"))[row] for row in (0, 1))
    truths = [studio.truth(one.rows[one.compared], one.source) for one in (mine, other)]
    with Scorer(Weights(dlib=_recogniser(None))) as measuring, DlibIdentity() as network:
        output, source = (measuring.see(truth.pictures, truth.intrinsics, truth.landmarks) for truth in truths)
        source = replace(source, faces=source.faces[:1], neutral=source.neutral[:1], crops=source.crops[:1])
        values = measuring.identity(output, source)
        found, (wanted,) = ([network.descriptor(crop) for crop in seen.crops if crop is not None] for seen in (output, source))
        described = {metric.name: metric for metric in measuring.described("cross", jitter=False)[0]}
        again = measuring.identity(source, source)
    assert len(found) == 3
    assert values["id_distance"] == pytest.approx(np.mean([np.linalg.norm(one - wanted) for one in found]), abs=1e-5)
    assert values["csim_dlib"] == pytest.approx(np.mean([1 - cosine(one, wanted) for one in found]), abs=1e-5)
    assert again["id_distance"] == 0 and again["csim_dlib"] == pytest.approx(1)
    assert described["csim_dlib"].model["sha256"] == SHA256 and "CC0" in described["id_distance"].model["licence"]
    assert described["csim_dlib"].title != "CSIM" and described["id_distance"].better == "lower"


def test_the_recogniser_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _recogniser("none") is None
    assert _recogniser(str(tmp_path / "own.dat")) == tmp_path / "own.dat"
    with pytest.raises(UserError, match=r"own\.dat: no such weights"):
        Scorer(Weights(dlib=tmp_path / "own.dat"))
    monkeypatch.setattr(command, "dlib_installed", lambda: False)
    assert _recogniser(None) is None


def test_wrapped_psnr_is_that_of_eight_bit_arithmetic() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 256, (2, 2, 3, 8, 8), np.uint8)
    error = np.square(first - second).mean((1, 2, 3))  # both operations wrap
    expected = 10 * np.log10(255**2 / error)
    np.testing.assert_allclose(wrapped_psnr(torch.from_numpy(first), torch.from_numpy(second)), expected)


def test_predictions_that_do_not_fit_are_told(studio: Studio, reader: ShardReader, tmp_path: Path) -> None:
    case = studio.case(pair(reader))
    theirs = Predictions("theirs", tmp_path)
    with pytest.raises(UserError, match="no video of that name"):
        theirs.pictures(case, [1])
    folder = tmp_path / case.plan.name
    folder.mkdir()

    def give(count: int, size: int) -> None:
        for file in folder.iterdir():
            file.unlink()
        for number in range(count):
            cv2.imwrite(str(folder / f"{number}.png"), np.zeros((size, size, 3), np.uint8))

    give(3, SIZE)
    with pytest.raises(UserError, match=r"has 3 pictures, the driver .* 8 frames"):
        theirs.pictures(case, [1])
    give(8, 64)
    with pytest.raises(UserError, match="expected \\(128, 128\\)"):
        theirs.pictures(case, [1])
    with pytest.raises(UserError, match="no such folder"):
        Predictions("theirs", tmp_path / "nowhere")


def test_the_command_measures_draws_and_writes_what_can_be_read_back(reader: ShardReader, tmp_path: Path) -> None:
    """With a small AlexNet for LPIPS, and the truth as another system's pictures."""
    root, theirs = str(reader.storage.root), tmp_path / "theirs"
    suite = load_suite("self")
    write_inputs(reader, replace(suite, split="train", size=SIZE), tmp_path / "inputs")
    for one in json.loads((tmp_path / "inputs" / "pairs.json").read_text()):
        theirs.mkdir(exist_ok=True)
        (tmp_path / "inputs" / one["pair"] / "driving.mp4").rename(theirs / f"{one['pair']}.mp4")
        assert cv2.imread(str(tmp_path / "inputs" / one["pair"] / "source.png")).shape == (SIZE, SIZE, 3)
    write(tmp_path / "alexnet.pth", convolutions(ALEXNET))
    changes = ["--config", "split=train", "--config", "frames=2", "--config", f"size={SIZE}", "--config", "run=3", "--config", "films=1"]
    out = tmp_path / "out"
    weights = ["--alexnet", str(tmp_path / "alexnet.pth"), "--recogniser", "none"]
    main(
        ["--suite", "self", "--model", "bases", "--shards", root, "--predictions", f"copy={theirs}", "--out", str(out), *weights, *changes]
    )
    results = read_results(out / "self.json")
    assert results.methods == (BASES, REPEATED, WARP, "copy") and len(results.pairs) == 2 and not results.refused
    assert results.data["people of the training split among them"] == people_of_splits(reader)["train"]
    assert [missing.title for missing in results.missing] == ["CSIM", "CSIM dlib, ID distance", "FID"]
    for one in results.pairs:
        assert set(one.values[BASES]) == {metric.name for metric in results.metrics} and len(one.frames) == 2
        assert one.values["copy"]["psnr"] > 40 and one.values["copy"]["akd"] < 1 < one.values[REPEATED]["akd"]
        assert one.values[BASES]["psnr_head"] > one.values[REPEATED]["psnr_head"]
        assert one.values["copy"]["lpips"] < one.values[BASES]["lpips"]
        assert one.values["copy"]["shape"] < 0.5 * one.values[REPEATED]["shape"]  # of the truth's face, not of the source's
    page = (out / "self.html").read_text()
    assert page.count("data:video/mp4;base64,") == 2 and len(list((out / "media").glob("*.mp4"))) == 2
    assert "| PSNR head" in (out / "self.md").read_text()


def test_fid_is_of_the_pictures_of_the_pairs_that_were_measured(reader: ShardReader, tmp_path: Path) -> None:
    """Another system has pictures of one pair alone: the other is refused, and none of its pictures counts."""
    suite = Suite(name="cross", kind="cross", split="train", size=SIZE)
    first, second = plan(reader.index, reader.clips, suite)
    (tmp_path / "theirs").mkdir()
    write_inputs(reader, suite, tmp_path / "inputs")
    (tmp_path / "inputs" / first.name / "driving.mp4").rename(tmp_path / "theirs" / f"{first.name}.mp4")
    weights = ["--inception", str(write(tmp_path / "inception.pth", inception())), "--recogniser", "none"]
    settings = [f"--config={word}" for word in ("split=train", "frames=3", f"size={SIZE}", "drivers=1", "films=0")]
    words = ["--suite", "cross", "--model", "bases", "--shards", str(reader.storage.root), "--predictions", str(tmp_path / "theirs")]
    main([*words, "--out", str(tmp_path / "out"), *weights, *settings])
    results = read_results(tmp_path / "out" / "cross.json")
    assert results.methods[-1] == OWN and set(results.pairs[0].values[OWN]) == {"shape"}
    assert list(results.refused) == [second.name] and "FID" not in [missing.title for missing in results.missing]
    (found,) = results.sets
    assert (
        found.pictures == dict.fromkeys((BASES, REPEATED, WARP, "theirs"), 3) and found.real == 3 + 3
    )  # the source's clip and the driver's
    assert found.values["theirs"] < found.values[REPEATED] and all(value > 0 for value in found.values.values())
    for report in ("cross.md", "cross.html"):
        text = (tmp_path / "out" / report).read_text()
        assert "Real pictures: 6." in text and "Chong and Forsyth" in text and f"{found.values[WARP]:.4g}" in text


def test_settings_that_no_suite_has_are_refused(reader: ShardReader, tmp_path: Path) -> None:
    root = str(reader.storage.root)
    for words, told in ((["frame=2"], "frame is nothing"), (["frames"], "KEY=VALUE")):
        with pytest.raises(UserError, match=told):
            main(["--suite", "self", "--shards", root, "--out", str(tmp_path), "--config", *words])
    with pytest.raises(UserError, match="two methods are called"):
        main(["--suite", "self", "--shards", root, "--out", str(tmp_path), "--predictions", f"{WARP}={tmp_path}"])
