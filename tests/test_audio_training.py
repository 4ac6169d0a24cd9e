"""The stage of speech: its experiment runs, goes on after a stop as if nothing had happened, learns, and ends in a model that drives."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from speech_scenes import voice_clip
from training_commands import EXPERIMENTS, curve_of
from training_scenes import quietly

from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.synthetic.dataset import build_synthetic
from mggtalk.audio.driver import AudioDriver
from mggtalk.audio.files import TINY, load_audio
from mggtalk.cli import main as command_line
from mggtalk.data.speech import SpeechDataModule
from mggtalk.data.speech_clips import clip_rows, read_clips, read_motion
from mggtalk.evaluation.command import main
from mggtalk.evaluation.results import read_results
from mggtalk.evaluation.speech import NETWORK, REGRESSION, drive, row_of
from mggtalk.geometry.face_model import FaceModel
from mggtalk.metrics.speech import correlation
from mggtalk.modules.speech import LogMel
from mggtalk.training import make_cli

STEPS = 6


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Runs change variables of the process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic heads that speak, three people to train on."""
    folder = tmp_path_factory.mktemp("speech") / "data"
    build_synthetic(folder, clips=5, frames=32, size=32, persons=5)
    return folder


def words(root: Path, folder: Path, **changes: object) -> list[str]:
    settings = {
        "data.init_args.root": root, "data.init_args.batch_size": 2, "data.init_args.seconds": 0.6, "data.init_args.agreement": -1.0,
        "model.init_args.model.init_args.hidden": 4, "trainer.max_steps": STEPS, "trainer.val_check_interval": 3,
        "trainer.log_every_n_steps": 1,
        "trainer.default_root_dir": folder, "trainer.enable_progress_bar": "false", "trainer.enable_model_summary": "false", **changes,
    }  # fmt: skip
    return ["--config", str(EXPERIMENTS / "audio.yaml"), *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert quietly(command_line, ["fit", *words(root, folder)]) == 0
    return folder


def test_the_experiment_runs_and_tells_what_it_measures(run: Path) -> None:
    names = {point.name for point in curve_of(run)}
    assert {"train/loss", "train/expression", "train/opening", "train/velocity", "train/closure"} <= names
    assert {"val/loss", "val/correlation", "val/lag", "val/error"} <= names
    assert (run / "best.ckpt").exists() and json.loads((run / "provenance.json").read_text())[0]["data"]["samples"]["train"] > 0
    again = yaml.safe_load((run / "config.yaml").read_text())
    assert again["model"]["class_path"] == "mggtalk.stages.audio.AudioStage"


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(root: Path, tmp_path: Path) -> None:
    schedule = {"model.init_args.optimiser.warmup": 100}  # while it warms up, the rate does not depend on the length of the run
    short = words(root, tmp_path / "short", **{"trainer.max_steps": 3, **schedule})
    assert quietly(command_line, ["fit", *short]) == 0
    assert torch.load(tmp_path / "short" / "last.ckpt", weights_only=True)["SpeechDataModule"] == {"done": 3, "seed": 0}
    for folder, extra in (("long", []), ("short", ["--ckpt_path", str(tmp_path / "short" / "last.ckpt")])):
        assert quietly(command_line, ["fit", *words(root, tmp_path / folder, **schedule), *extra]) == 0
    assert curve_of(tmp_path / "short") == curve_of(tmp_path / "long")
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("short", "long"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_its_checkpoint_becomes_a_model_that_drives(run: Path, root: Path, tmp_path: Path) -> None:
    assert command_line(["export", str(run / "last.ckpt"), "-o", str(tmp_path / "model")]) == 0
    weights = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(tensor, weights[f"model.{name}"]) for name, tensor in written.items())
    network, _ = load_audio(tmp_path / "model")
    driver = AudioDriver.from_pretrained(tmp_path / "model")
    assert len(driver.motion_of([torch.zeros(16000)]).times) == 25 and network.linear.weight.any()
    assert quietly(command_line, ["validate", *words(root, tmp_path / "measured"), "--ckpt_path", str(run / "last.ckpt")]) == 0


def test_clips_are_read_as_the_shards_hold_them(root: Path) -> None:
    reader, face_model = ShardReader(root), FaceModel()
    clips = read_clips(reader, "train", LogMel(), face_model)
    name, person, rows = next(iter(clip_rows(reader, "train")))
    motion = read_motion(reader, rows, face_model)
    assert (clips[0].name, clips[0].person) == (name, person) and clips[0].rows.tolist() == [rows[0], rows[-1]]
    sound = np.concatenate(motion.sound)
    at_once = LogMel()(torch.from_numpy(np.pad(sound, (0, 16000)) / np.float32(32768)))
    torch.testing.assert_close(clips[0].features, at_once[: len(clips[0].features)])
    frame = int(np.argmin(np.abs(motion.times - motion.times[0] - 0.4)))
    shown = face_model.displacement(motion.expression[frame])[[13, 14]] + motion.neutral[[13, 14]]
    torch.testing.assert_close(shown, motion.mesh[frame, [13, 14]], atol=0.3, rtol=0)
    assert clips[0].features.abs().sum() > 0 and clips[0].opening.std() > 0


def test_data_without_speech_is_told(root: Path, tmp_path: Path) -> None:
    class Deaf(ShardReader):
        columns = ("image", "landmarks", "meta")

    with pytest.raises(UserError, match="no column 'audio'"):
        read_clips(Deaf(root), "train", LogMel(), FaceModel())
    with pytest.raises(UserError, match=r"dataset\.json"):
        SpeechDataModule(str(tmp_path / "nowhere")).train_dataloader()
    with pytest.raises(ValueError, match="at least"):
        SpeechDataModule(str(root), batch_size=0)


def test_the_stage_learns_a_jaw_that_follows_the_voice(root: Path, tmp_path: Path) -> None:
    """Clips whose answer is known: people that it has not seen are followed after a few steps."""
    changes: dict[str, object] = {
        "trainer.max_steps": 60,
        "trainer.val_check_interval": 60,
        "data.init_args.batch_size": 8,
        "data.init_args.seconds": 1.5,
    }
    changes |= {
        "model.init_args.optimiser.warmup": 5,
        "data.init_args.agreement": 0.3,
        "trainer.callbacks": "[]",
        "trainer.logger": "false",
    }
    built = quietly(make_cli, words(root, tmp_path, **changes), run=False)
    built.datamodule.use("train", [voice_clip(5.0, seed) for seed in range(8)])
    built.datamodule.use("val", [voice_clip(5.0, seed) for seed in (20, 21)])
    quietly(built.trainer.fit, built.model, built.datamodule)
    assert float(built.trainer.callback_metrics["val/correlation"]) > 0.75
    assert float(built.trainer.callback_metrics["val/lag"]) < 0.04
    clip = voice_clip(5.0, 33)
    network = built.model.model.eval()
    with torch.inference_mode():
        padded = torch.nn.functional.pad(clip.features, (0, 0, 12, 12))[None]
        driven = built.model.opening(network(padded, torch.zeros(1, 4)), clip.points[None])[0]
    assert correlation(driven, clip.opening) > 0.75


def test_an_export_of_sound_is_what_the_stage_hears(root: Path) -> None:
    """The wav of ``mggdata export`` and the shards are one sound."""
    from datasets_toolkit.export.files import joined

    reader = ShardReader(root)
    _, _, rows = next(iter(clip_rows(reader, "train")))
    motion = read_motion(reader, rows, FaceModel())
    whole = joined(list(zip(motion.times.tolist(), motion.sound, strict=True)))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(whole.tobytes())
    assert buffer.tell() == 44 + 2 * sum(len(piece) for piece in motion.sound)


def test_the_benchmark_and_the_measured_behaviour_read_the_data(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, name, arguments in (
        ("benchmarks", "audio", ["--shards", root, "--quick", "--phones", "--json", tmp_path / "all.json"]),
        ("tools", "fit_behaviour", ["--shards", root, "--output", tmp_path / "behaviour.yaml"]),
    ):
        spec = importlib.util.spec_from_file_location(f"{folder}_{name}", EXPERIMENTS.parent / folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        script = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = script
        spec.loader.exec_module(script)
        if name == "audio":
            script.main([str(argument) for argument in arguments])
        else:
            with pytest.raises(SystemExit, match="no training clip of 2 s"):
                script.main([str(argument) for argument in arguments])
    out = capsys.readouterr().out
    assert "| regression on loudness |" in out and "| network |" in out and "silence, opening: 0.0" in out
    report = json.loads((tmp_path / "all.json").read_text())
    assert {row["method"] for row in report["clips"]} >= {"regression on loudness", "network"}
    assert "| method | closures heard |" in out and all(row["closures"]["kept"] <= row["closures"]["seen"] for row in report["closures"])


def test_the_suite_of_speech_says_what_the_script_says(root: Path, tmp_path: Path) -> None:
    """The same clips, correlations and errors, by person; and other suites' words that it has no use for do no harm."""
    main(["--suite", "audio", "--shards", str(root), "--out", str(tmp_path)])
    results = read_results(tmp_path / "audio.json")
    driven = drive(ShardReader(root), "val", AudioDriver.from_pretrained(TINY), None)
    rows = [row_of(one.method, one.clip, one.opening) for one in driven]
    assert results.methods[0] == NETWORK and set(results.methods) == {row.method for row in rows}
    for row in rows:
        (pair,) = [pair for pair in results.pairs if pair.name == row.clip]
        values = pair.values[row.method]
        assert pair.source_person == row.person and values["lag"] == pytest.approx(1000 * abs(row.lag), nan_ok=True)
        assert values["correlation"] == pytest.approx(row.correlation, nan_ok=True) and values["error"] == pytest.approx(row.error)
    assert REGRESSION in (tmp_path / "audio.md").read_text() and "LSE-C" in (tmp_path / "audio.html").read_text()
    for wrong, message in (("people=[nobody]", "no person 'nobody'"), ("skip=[nothing]", "no clip 'nothing'")):
        with pytest.raises(UserError, match=message):
            main(["--suite", "audio", "--shards", str(root), "--out", str(tmp_path), "--config", wrong])
