"""The audio driver: what every driver promises, any file, silence, seeds and strengths, dubbing, files of models, and the command."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from scipy.signal import resample_poly
from skimage.data import astronaut
from speech_scenes import random_network, voice, write_wav

from datasets_toolkit.errors import MediaError, UserError
from datasets_toolkit.faces.head_pose import euler_degrees
from datasets_toolkit.media.audio_reader import read_audio
from datasets_toolkit.media.images import read_image
from datasets_toolkit.media.video import VideoWriter, probe, read_frames
from datasets_toolkit.schema import BLENDSHAPES
from mggtalk.audio.behaviour import Behaver, Behaviour, Strengths, blink_shape, read_behaviour
from mggtalk.audio.driver import AudioDriver, style_of
from mggtalk.audio.dub import MOUTH, mouth_share, with_mouth
from mggtalk.audio.files import TINY, load_audio, save_audio
from mggtalk.audio.stream import SpeechControl, Spoken, resampled
from mggtalk.cli import main as command_line
from mggtalk.drivers import check_motion
from mggtalk.geometry.face_model import FaceModel
from mggtalk.geometry.neck import PIVOT
from mggtalk.metrics.speech import correlation, mouth_opening
from mggtalk.motion_files import save_motion

CONFIG: dict[str, Any] = {"class_path": "mggtalk.modules.audio.AudioNetwork", "init_args": {"hidden": 8}}
STILL = Strengths(blink=0.0, gaze=0.0, head=0.0)
BLINK = [BLENDSHAPES.index(name) for name in ("eyeBlinkLeft", "eyeBlinkRight")]


@pytest.fixture(scope="module")
def driver() -> AudioDriver:
    return AudioDriver.from_pretrained()


def opening(driver: AudioDriver, expression: torch.Tensor) -> torch.Tensor:
    return mouth_opening(driver.face_model.mean + driver.face_model.displacement(expression))


def test_a_motion_of_speech_is_a_motion(driver: AudioDriver, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", voice(3.0).numpy())
    motion = driver.motion(path, fps=Fraction(30))
    check_motion(motion, driver.face_model.expression_size)
    assert len(motion.times) == 90 and float(motion.times[1]) == pytest.approx(1 / 30)
    assert motion.expression[:, :52].min() >= 0 and motion.expression[:, :52].max() <= 1
    said = opening(driver, motion.expression)
    assert said.std() > 0.003 and said.max() > 1.3 * opening(driver, torch.zeros(84))
    save_motion(tmp_path / "a.safetensors", motion, fps=Fraction(30), source="a.wav")


def test_silence_closes_the_lips_of_the_face_that_is_given(driver: AudioDriver, tmp_path: Path) -> None:
    """A neutral face has parted lips, each its own; and where a dubbed video outlasts its sound they are closed too."""
    model = driver.face_model
    faces = [model.mean + 0.7 * sign * model.identity[2] for sign in (-1, 1)]
    for face in faces:
        parted, closed = mouth_opening(face), mouth_opening(face + model.displacement(driver.rest(face)))
        assert float(closed) < 0.2 * float(parted)
        silent = driver.motion_of([torch.zeros(16000)], SpeechControl(strengths=STILL), face=face)
        torch.testing.assert_close(silent.expression, driver.rest(face).expand_as(silent.expression))
    base = driver.motion_of([torch.zeros(48000)], SpeechControl(strengths=STILL), face=faces[0])
    dubbed = driver.dub(base, write_wav(tmp_path / "a.wav", voice(1.0).numpy()), face=faces[0])
    torch.testing.assert_close(opening(driver, dubbed.expression)[35:], opening(driver, base.expression)[35:], atol=0.002, rtol=0)
    assert not torch.allclose(driver.rest(faces[0]), driver.rest(faces[1]))


def test_the_mouth_follows_a_voice_it_never_heard(driver: AudioDriver) -> None:
    """Of real speech it was taught; synthetic syllables are loud and low where a mouth is open."""
    samples = voice(8.0, 3)
    motion = driver.motion_of([samples], SpeechControl(strengths=STILL))
    loud = samples[: len(motion.times) * 640].reshape(-1, 640).square().mean(1).sqrt()
    assert correlation(opening(driver, motion.expression), loud) > 0.3


@given(cuts=st.lists(st.integers(1, 20000), min_size=1, max_size=20), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=8)
def test_a_stream_gives_what_the_whole_gives(cuts: list[int], seed: int) -> None:
    driver = AudioDriver(random_network(seed), read_behaviour(TINY / "behaviour.yaml"))
    samples, blocks, begin = voice(2.5, seed), [], 0
    for size in [*cuts, len(samples)]:
        blocks.append(samples[begin : begin + size])
        begin += size
    control = SpeechControl(seed=seed, style=(1.0, -1.0))
    whole, parts = driver.motion_of([samples], control), driver.motion_of(blocks, control)
    assert len(whole.times) == 63
    torch.testing.assert_close(parts.expression, whole.expression, atol=1e-4, rtol=0)
    torch.testing.assert_close(parts.head_to_camera, whole.head_to_camera, atol=1e-4, rtol=0)


def test_what_is_told_waits_for_no_more_than_it_says(driver: AudioDriver) -> None:
    samples = voice(3.0)
    changed = samples.clone()
    changed[24000:] = 0
    one, other = (driver.motion_of([given]).expression for given in (samples, changed))
    last = int((1.5 - driver.ahead) * 25)
    torch.testing.assert_close(one[: last + 1], other[: last + 1], atol=1e-6, rtol=0)
    assert (one - other)[last + 2 : last + 12].abs().max() > 1e-3


@pytest.mark.parametrize(("amplitude", "most"), [(0.0, 0.001), (3e-4, 0.003), (5e-3, 0.003)])
def test_silence_and_noise_keep_the_mouth_closed(driver: AudioDriver, amplitude: float, most: float) -> None:
    noise = amplitude * torch.randn(16000 * 12, generator=torch.Generator().manual_seed(0))
    said = opening(driver, driver.motion_of([noise], SpeechControl(strengths=STILL)).expression)
    closed = float(opening(driver, driver.rest()))
    assert closed < 0.002 and closed - 1e-6 <= float(said.mean()) < most
    assert float(said.diff().abs().max()) * 25 < 0.1, "face heights a second"
    spoken = torch.cat([voice(2.0), torch.zeros(32000)])
    after = opening(driver, driver.motion_of([spoken], SpeechControl(strengths=STILL)).expression)[60:]
    torch.testing.assert_close(after, torch.full_like(after, closed))


def test_no_gain_is_no_mouth_and_no_strength_no_motion(driver: AudioDriver) -> None:
    samples = voice(3.0)
    still = driver.motion_of([samples], SpeechControl(mouth_gain=0.0, strengths=STILL))
    torch.testing.assert_close(still.expression, driver.rest().expand_as(still.expression))
    torch.testing.assert_close(still.head_to_camera, still.head_to_camera[:1].expand(len(still.times), 4, 4))
    np.testing.assert_allclose(euler_degrees(still.head_to_camera[0].double().numpy()), 0, atol=1e-5)
    blinking = driver.motion_of([samples], SpeechControl(strengths=Strengths(blink=3.0, gaze=0.0, head=0.0)))
    torch.testing.assert_close(blinking.expression[:, 23:], driver.motion_of([samples], SpeechControl(strengths=STILL)).expression[:, 23:])


def test_seeds_decide_everything_random(driver: AudioDriver) -> None:
    samples = voice(4.0)
    one, again, other = (driver.motion_of([samples], SpeechControl(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(one.expression, again.expression) and torch.equal(one.head_to_camera, again.head_to_camera)
    assert not torch.equal(one.head_to_camera, other.head_to_camera)


BEHAVIOUR = Behaviour(
    blink_rate=0.5, blink_quiet=1.0, blink_pause=0.4, blink_duration=0.2, blink_amplitude=0.6, gaze_rate=1.0, gaze_deviation=(0.1, 0.05),
    gaze_counter=(0.0, 0.0), head_deviation=(3.0, 2.0, 1.0), head_speed=(9.0, 8.0, 5.0), head_rest=0.5, depth=100.0,
)  # fmt: skip


def test_behaviour_has_the_numbers_it_was_given() -> None:
    scores, turns = Behaver(BEHAVIOUR, Strengths(), 0)(np.full(40000, 2.0))
    degrees = np.degrees(turns)
    np.testing.assert_allclose(degrees.std(0), BEHAVIOUR.head_deviation, rtol=0.15)
    np.testing.assert_allclose((np.diff(degrees, axis=0) * 50).std(0), BEHAVIOUR.head_speed, rtol=0.1)
    lids = scores[:, BLINK[0]]
    begins = np.flatnonzero((lids[1:] > 0) & (lids[:-1] == 0))
    assert len(begins) / 800 == pytest.approx(0.5, rel=0.1) and np.diff(begins).min() >= 0.4 * 50
    assert lids.max() == pytest.approx(0.6, abs=0.03)
    looks = scores[:, BLENDSHAPES.index("eyeLookOutLeft")] - scores[:, BLENDSHAPES.index("eyeLookInLeft")]
    assert looks.std() == pytest.approx(0.1, rel=0.15)


def test_heads_rest_in_silence_and_eyes_turn_against_them() -> None:
    calm = np.degrees(Behaver(BEHAVIOUR, Strengths(), 0)(np.zeros(20000))[1])
    np.testing.assert_allclose(calm.std(0), 0.5 * np.array(BEHAVIOUR.head_deviation), rtol=0.15)
    keeping = replace(BEHAVIOUR, gaze_rate=0.0, gaze_counter=(0.02, 0.0))
    scores, turns = Behaver(keeping, Strengths(), 0)(np.ones(2000))
    left = scores[:, BLENDSHAPES.index("eyeLookOutLeft")] - scores[:, BLENDSHAPES.index("eyeLookInLeft")]
    np.testing.assert_allclose(left, -0.02 * np.degrees(turns[:, 0]), atol=1e-9)


def test_blinks_close_in_a_third_and_open_in_the_rest() -> None:
    assert blink_shape(0.0) == 0 and blink_shape(1 / 3) == pytest.approx(1) and blink_shape(1.0) == 0
    assert blink_shape(1 / 6) == pytest.approx(0.5) and blink_shape(2 / 3) == pytest.approx(0.5)


def test_heads_turn_about_the_neck(driver: AudioDriver) -> None:
    poses = driver.poses(torch.tensor([[0.0, 0.0, 0.0], [0.3, -0.2, 0.1]]))
    pivots = poses[:, :3, :3] @ torch.tensor(PIVOT) + poses[:, :3, 3]
    torch.testing.assert_close(pivots[0], pivots[1], atol=1e-4, rtol=0)
    np.testing.assert_allclose(np.radians(euler_degrees(poses[1].double().numpy())), [0.3, -0.2, 0.1], atol=1e-5)


@given(step=st.floats(0.4, 4.0), sizes=st.lists(st.integers(0, 7), min_size=1, max_size=8))
@settings(deadline=None)
def test_frames_are_resampled_as_numpy_does(step: float, sizes: list[int]) -> None:
    total = sum(sizes)
    values = torch.randn(total, 2, generator=torch.Generator().manual_seed(0))
    rows = iter(range(total))
    parts = []
    for size in sizes:
        row = [next(rows) for _ in range(size)]
        parts.append(Spoken(expression=values[row], angles=torch.zeros(size, 3)))
    found = [part.expression for part in resampled(parts, step)]
    places = step * np.arange(int(np.ceil(total / step - 1e-9)))
    if not total:
        assert not found
        return
    wanted = np.stack([np.interp(places, np.arange(total), values[:, k]) for k in range(2)], 1)
    np.testing.assert_allclose(torch.cat(found).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44100, 2), (48000, 6)])
def test_any_rate_and_number_of_channels(driver: AudioDriver, tmp_path: Path, rate: int, channels: int) -> None:
    samples = voice(2.0).numpy()
    there = np.repeat(resample_poly(samples, rate // 100, 160)[:, None], channels, 1)
    motion = driver.motion(write_wav(tmp_path / "a.wav", there, rate), SpeechControl(strengths=STILL))
    assert len(motion.times) == pytest.approx(50, abs=1)
    if rate > 16000:
        plain = driver.motion(write_wav(tmp_path / "b.wav", samples), SpeechControl(strengths=STILL))
        count = min(len(plain.times), len(motion.times)) - 1
        assert correlation(*(opening(driver, one.expression[:count]) for one in (plain, motion))) > 0.9


def test_files_that_cannot_drive_are_told(driver: AudioDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with VideoWriter(tmp_path / "mute.mp4", Fraction(25), (32, 32)) as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "text.wav").write_text("no sound at all " * 100)
    for name, words in (("mute.mp4", "has no sound"), ("text.wav", "no sound can be read"), ("none.wav", "no such")):
        with pytest.raises(MediaError, match=words):
            driver.motion(tmp_path / name)
    with pytest.raises(UserError, match="no sound at all"):
        driver.motion_of([])
    with caplog.at_level(logging.WARNING):
        driver.motion(write_wav(tmp_path / "silent.wav", np.zeros(16000)))
        driver.motion(write_wav(tmp_path / "clipped.wav", 40 * voice(1.0).numpy()))
        driver.motion(write_wav(tmp_path / "good.wav", voice(1.0).numpy()))
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and "is silent" in told[0] and "clipped" in told[1]


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in (
        {"mouth_gain": -1.0},
        {"mouth_gain": float("nan")},
        {"style": (0.0,) * 5},
        {"seed": -1},
        {"strengths": Strengths(blink=-1.0)},
    ):
        with pytest.raises(ValueError):
            SpeechControl(**wrong)
    impossible: list[dict[str, Any]] = [{"depth": 0.0}, {"blink_rate": -1.0}, {"head_deviation": (0.0, 1.0, 1.0)}]
    for wrong in impossible:
        with pytest.raises(ValueError):
            replace(BEHAVIOUR, **wrong)


def test_dubbing_keeps_the_upper_face_and_takes_the_mouth(driver: AudioDriver, tmp_path: Path) -> None:
    face_model, generator = driver.face_model, torch.Generator().manual_seed(0)
    seen, spoken = (0.2 * torch.rand(5, 84, generator=generator) for _ in range(2))
    mixed = with_mouth(seen, spoken, face_model)
    mouth = torch.tensor(MOUTH)
    assert torch.equal(mixed[:, :52][:, mouth], spoken[:, :52][:, mouth]) and torch.equal(mixed[:, :52][:, ~mouth], seen[:, :52][:, ~mouth])
    share = mouth_share(face_model)
    far = [
        face_model.displacement(mixed - other)[:, rows].norm(dim=-1).mean()
        for other in (seen, spoken)
        for rows in (share < 0.01, share > 0.99)
    ]
    assert far[0] < 0.5 * far[2] and far[3] < 0.5 * far[1]
    torch.testing.assert_close(with_mouth(seen, seen, face_model)[:, :52], seen[:, :52])
    base = driver.motion_of([torch.zeros(48000)])
    path = write_wav(tmp_path / "a.wav", voice(1.5).numpy())
    made = driver.dub(base, path)
    assert torch.equal(made.head_to_camera, base.head_to_camera) and torch.equal(made.times, base.times)
    torch.testing.assert_close(made.expression[:, BLINK], base.expression[:, BLINK])
    said, alone = opening(driver, made.expression), opening(driver, driver.motion(path, SpeechControl(strengths=STILL)).expression)
    assert correlation(said[:37], alone[:37]) > 0.95
    torch.testing.assert_close(said[42:], opening(driver, base.expression)[42:], atol=0.01, rtol=0)


def test_models_come_back_from_their_files(tmp_path: Path) -> None:
    network = random_network()
    save_audio(network, CONFIG, tmp_path / "model")
    loaded, behaviour = load_audio(tmp_path / "model")
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert behaviour == read_behaviour(TINY / "behaviour.yaml")
    weights = sum(path.stat().st_size for path in TINY.iterdir())
    assert weights < 500_000


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def describing(node: dict[str, Any]) -> Callable[[Path], object]:
    return holding("config.yaml", yaml.safe_dump({"format": "mggtalk-audio", "version": 1, "model": node}).encode())


BROKEN = {
    "no such file": without("config.yaml"), "cannot be read": holding("config.yaml", b"{"), "of version 1": holding("config.yaml", b"{}"),
    "not a part": describing({"class_path": "os.system"}), "unexpected": describing({**CONFIG, "init_args": {"deep": 3}}),
    "not an AudioNetwork": describing({"class_path": "mggtalk.modules.speech.LogMel"}),
    "no model.safetensors": without("model.safetensors"),
    "not a readable": holding("model.safetensors", b"torn"), "does not fit": holding("model.safetensors", save({"a": torch.zeros(1)})),
    "not the numbers": holding("behaviour.yaml", b"depth: 1"),
}  # fmt: skip


@pytest.mark.parametrize("words", BROKEN)
def test_broken_models_are_told(words: str, tmp_path: Path) -> None:
    save_audio(random_network(), CONFIG, tmp_path)
    BROKEN[words](tmp_path)
    with pytest.raises(UserError, match=words):
        load_audio(tmp_path)


def test_a_style_is_measured_on_a_motion(driver: AudioDriver) -> None:
    lively, calm = (driver.motion_of([voice(4.0)], SpeechControl(mouth_gain=gain)) for gain in (1.5, 0.4))
    assert style_of(lively, driver)[0] > style_of(calm, driver)[0]
    assert len(style_of(calm, driver)) == 4


def test_the_command_lets_a_portrait_speak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sound, length and the frame rate; what drives is needed; numbers that make no sense and files without sound are told in a line."""
    import cv2

    cv2.imwrite(str(tmp_path / "portrait.png"), astronaut()[:, :, ::-1])
    write_wav(tmp_path / "a.wav", voice(0.4).numpy())
    output = tmp_path / "out.mp4"
    source = ["animate", "--source", str(tmp_path / "portrait.png"), "--output", str(output), "--size", "64"]
    assert command_line([*source, "--audio", str(tmp_path / "a.wav"), "--style=1,0", "--blink", "0", "--head-motion", "0.5"]) == 0
    info = probe(output)
    assert (info.fps, info.has_audio) == (Fraction(25), True) and len(list(read_frames(output))) == 10
    assert abs(len(read_audio(output).samples) - 6400) < 1700 and "listening:" in capsys.readouterr().out
    assert read_image(tmp_path / "portrait.png").shape == (512, 512, 3)
    for words, told in (
        ([], "nothing drives the portrait"),
        (["--audio", str(tmp_path / "none.wav")], "no such"),
        (["--audio", str(tmp_path / "a.wav"), "--mouth-gain", "-1"], "mouth_gain must be finite"),
        (["--audio", str(tmp_path / "a.wav"), "--style", "loud"], "neither numbers"),
        (["--audio", str(tmp_path / "a.wav"), "--audio-model", str(tmp_path)], "no such file"),
    ):
        assert command_line([*source, *words]) == 2
        assert told in capsys.readouterr().err


def test_the_command_dubs_a_motion(driver: AudioDriver, tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "portrait.png"), astronaut()[:, :, ::-1])
    save_motion(tmp_path / "m.safetensors", driver.motion_of([torch.zeros(3200)], fps=Fraction(20)), fps=Fraction(20), source="test")
    write_wav(tmp_path / "a.wav", voice(0.4).numpy())
    words = ["--motion", str(tmp_path / "m.safetensors"), "--audio", str(tmp_path / "a.wav"), "--no-audio", "--size", "64"]
    assert command_line(["animate", "--source", str(tmp_path / "portrait.png"), "--output", str(tmp_path / "o.mp4"), *words]) == 0
    info = probe(tmp_path / "o.mp4")
    assert (info.fps, info.has_audio) == (Fraction(20), False) and len(list(read_frames(tmp_path / "o.mp4"))) == 4


def test_the_default_basis_is_the_drivers() -> None:
    assert AudioDriver(random_network(), BEHAVIOUR).face_model.expression_size == FaceModel().expression_size


SPEAK_WITH_LITTLE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in (
            "pyarrow", "zstandard", "simplejpeg", "scenedetect", "omegaconf", "webdataset", "lightning", "jsonargparse", "torchmetrics",
            "albumentations", "wandb", "pocketsphinx", "transformers", "skimage", "dlib",
        ):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from mggtalk.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_portrait_speaks_where_nothing_optional_is_installed(tmp_path: Path) -> None:
    """What the project depends on is enough for ``--audio``; packages for data sets and training are not asked for."""
    import cv2

    cv2.imwrite(str(tmp_path / "portrait.png"), astronaut()[:, :, ::-1])
    write_wav(tmp_path / "speech.wav", voice(0.5).numpy())
    output = tmp_path / "speaking.mp4"
    words = ["animate", "--source", tmp_path / "portrait.png", "--audio", tmp_path / "speech.wav", "--output", output, "--size", 64]
    done = subprocess.run([sys.executable, "-c", SPEAK_WITH_LITTLE, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert probe(output).has_audio
