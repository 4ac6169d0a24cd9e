"""``mggdata`` as its users run it, and the pictures it draws."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from datasets_toolkit import cli
from datasets_toolkit.annotators.pictures import COLOURS, contact_sheet, spread, write_png
from datasets_toolkit.assets import ASSETS, ENVIRONMENT
from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.images import read_image
from datasets_toolkit.schema import ByteImage, Region

ROOT = Path(__file__).resolve().parents[1]


def mggdata(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in its own process, as a user starts it."""
    command = [sys.executable, "-m", "datasets_toolkit.cli", *map(str, arguments)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory, astronaut: ByteImage) -> Path:
    path = tmp_path_factory.mktemp("portrait") / "portrait.png"
    write_png(path, astronaut)
    return path


def test_inspect_draws_six_panels(portrait: Path, tmp_path: Path, astronaut: ByteImage) -> None:
    output = tmp_path / "panels.png"
    done = mggdata("inspect", portrait, "-o", output, "--size", 128)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(output)
    assert output.read_bytes().startswith(b"\x89PNG")
    sheet = read_image(output)
    assert sheet.shape == (256, 6 * 256, 3)
    panels = np.split(sheet, 6, axis=1)
    assert min(panel.std() for panel in panels) > 10  # none is empty
    for one in range(6):
        assert all(np.abs(panels[one].astype(int) - panels[other]).mean() > 2 for other in range(one))
    assert os.listdir(tmp_path) == ["panels.png"]


@pytest.mark.parametrize(
    ("source", "output", "options", "reason"),
    [
        ("missing.png", "out.png", (), "missing.png: no such image file"),
        ("missing.mp4", "out.png", (), "missing.mp4: no such video file"),
        ("notes.png", "out.png", (), "notes.png: not an image that can be read"),
        ("notes.txt", "out.png", (), "notes.txt"),
        ("plain.png", "out.png", (), "plain.png: no face found"),
        ("portrait.png", "nowhere/out.png", (), "nowhere does not exist; create it first"),
        ("portrait.png", "out.jpg", (), "out.jpg: the picture is a PNG"),
        ("portrait.png", "portrait.png", (), "portrait.png: is the source itself"),
        ("portrait.png", "folder.png", (), "folder.png: is a folder"),
        ("portrait.png", "out.png", ("--size", "0"), "--size 0: must be from 64 to 2048"),
        ("portrait.png", "out.png", ("--frames", "0"), "--frames 0: at least one frame is needed"),
        ("portrait.png", "out.png", ("--face", "-1"), "there is no face -1"),
        ("portrait.png", "out.png", ("--face", "3"), "there is no face 3"),
        ("portrait.png", "out.png", ("--assets", "nowhere"), "nowhere: this folder of model files does not exist"),
    ],
)
def test_bad_input_ends_in_one_line(
    tmp_path: Path,
    portrait: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    output: str,
    options: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("notes.png", "notes.txt"):
        Path(name).write_text("no picture at all\n" * 50)
    write_png(Path("plain.png"), np.full((200, 200, 3), 100, np.uint8))
    Path("portrait.png").write_bytes(portrait.read_bytes())
    Path("folder.png").mkdir()
    before = sorted(os.listdir())
    assert cli.main(["inspect", source, "-o", output, *options]) == 2
    printed = capfd.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert reason in printed.err
    assert printed.out == ""
    assert sorted(os.listdir()) == before
    assert Path("portrait.png").read_bytes() == portrait.read_bytes()


@pytest.mark.parametrize("content", [b"", b"no picture at all\n" * 50, None])
def test_bad_input_in_a_process_of_its_own(tmp_path: Path, content: bytes | None) -> None:
    source = tmp_path / "in.png"
    if content is None:
        write_png(source, np.full((200, 200, 3), 100, np.uint8))
    else:
        source.write_bytes(content)
    done = mggdata("inspect", source, "-o", tmp_path / "out.png")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {source}: ")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["in.png"]


def test_inspect_shows_frames_of_a_video(tmp_path: Path, astronaut: ByteImage) -> None:
    from datasets_toolkit.media.video import VideoWriter

    with VideoWriter(tmp_path / "talk.mp4", Fraction(25), (512, 512)) as video:
        for step in range(5):
            video.write(np.roll(astronaut, 4 * step, 1))
    arguments = ["inspect", str(tmp_path / "talk.mp4"), "-o", str(tmp_path / "out.png"), "--frames", "3", "--size", "64"]
    assert cli.main(arguments) == 0
    assert read_image(tmp_path / "out.png").shape == (3 * 256, 6 * 256, 3)


def test_assets_lists_every_model_file(tmp_path: Path) -> None:
    done = mggdata("assets", "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for asset, (first, second) in zip(ASSETS, zip(lines[::2], lines[1::2], strict=True), strict=True):
        assert first.startswith(f"{asset.name}: ")
        assert asset.sha256 in second
        assert asset.licence in second


def test_assets_tells_ready_missing_and_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets_toolkit.assets import locate

    good, wrong, missing = ASSETS
    (tmp_path / good.name).write_bytes(locate(good.name).read_bytes())
    (tmp_path / wrong.name).write_bytes(b"something else")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert cli.main(["assets", "--folder", str(tmp_path)]) == 0
    first, second, third = capsys.readouterr().out.splitlines()[::2]
    assert first == f"{good.name}: ready  {tmp_path / good.name}"
    assert "not the expected model file" in second
    assert third == f"{missing.name}: missing"


def test_help_and_version_need_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "--version"):
        with pytest.raises(SystemExit) as ended:
            cli.main([option])
        assert ended.value.code == 0
    assert "inspect" in capsys.readouterr().out


def test_ctrl_c_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(parsed: object) -> None:
        raise KeyboardInterrupt

    assert cli.run(stopped, cli.argparse.Namespace()) == 130
    assert capsys.readouterr().err == "stopped\n"


# Pictures


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    with pytest.raises(MediaError, match=r"b\.png: cannot be written"):
        write_png(tmp_path / "nowhere" / "b.png", image)

    def fail(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets_toolkit.local_files.os.replace", fail)
    with pytest.raises(MediaError, match="No space left"):
        write_png(tmp_path / "a.png", 255 - image)
    assert os.listdir(tmp_path) == ["a.png"]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)


def test_a_contact_sheet_is_rows_on_white() -> None:
    red, green = (np.full((20, 30, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0)))
    sheet = contact_sheet([[red, green], [np.full((40, 40, 3), 7, np.uint8)]], height=10)
    assert sheet.shape == (20, 30, 3)
    assert (sheet[:10, :15] == [255, 0, 0]).all()
    assert (sheet[:10, 15:] == [0, 255, 0]).all()
    assert (sheet[10:, :10] == 7).all()
    assert (sheet[10:, 10:] == 255).all()


@pytest.mark.parametrize(
    ("count", "shown", "expected"), [(1, 6, [0]), (3, 6, [0, 1, 2]), (9, 3, [0, 4, 8]), (100, 2, [0, 99]), (5, 1, [0])]
)
def test_spread(count: int, shown: int, expected: list[int]) -> None:
    assert spread(count, shown) == expected


def test_every_region_has_its_own_colour() -> None:
    assert set(COLOURS) == set(Region)
    assert len(set(COLOURS.values())) == len(Region)


# What native libraries say


NOTES = """
import os, sys
from datasets_toolkit.native import quiet_stderr
mode = sys.argv[1]
try:
    with quiet_stderr():
        os.write(2, b"native note\\n")
        if sys.stderr:
            print("python note", file=sys.stderr)
        if mode == "fail":
            raise RuntimeError("broken")
except RuntimeError:
    pass
if sys.stderr:
    print("after", file=sys.stderr)
print("done")
"""


@pytest.mark.parametrize(("mode", "expected"), [("pass", "after\n"), ("fail", "native note\npython note\nafter\n")])
def test_native_notes_are_shown_only_after_a_failure(mode: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", NOTES, mode], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, expected)


@pytest.mark.skipif(sys.platform == "win32", reason="closing a standard stream is written in the language of a POSIX shell")
def test_a_process_without_stderr_has_nothing_to_hold_back() -> None:
    script = NOTES.replace('os.write(2, b"native note\\n")', "pass")
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" pass 2>&-', sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "done\n")
