"""The curation commands as a command line runs them: status, output, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("omegaconf")

from curated_scenes import CLIPS, make_curated
from test_checks import flip_byte, scaled_pose

from datasets_toolkit.cli import main
from datasets_toolkit.cli_curate import WHAT
from datasets_toolkit.export.files import NEEDS
from datasets_toolkit.shards.shard_reader import ShardReader

ALICE = CLIPS[0]


def mggdata(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_curated(tmp_path / "set")
    return tmp_path / "set"


def test_the_commands_name_what_the_module_can_do() -> None:
    assert set(WHAT) == set(NEEDS)


def test_plan_prints_a_table_and_writes_a_page(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("minimum: {sharpness: 30}\nmaximum: {yaw_abs_p95: 8}\n")
    page = tmp_path / "plan.html"
    assert mggdata("plan", root, "--policy", tmp_path / "mine.yaml", "--html", page) == 0
    printed = capsys.readouterr().out
    assert "sharpness < 30" in printed
    assert printed.rstrip().endswith(str(page))
    assert page.read_text().count("data:image/jpeg") >= 3


def test_plan_needs_nothing_but_two_tables(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in root.rglob("*"):
        if path.is_file() and path.name not in ("clips.parquet", "sources.parquet"):
            path.unlink()
    assert mggdata("plan", root, "--html", root / "plan.html") == 0
    assert "rejected" in capsys.readouterr().out
    assert (root / "plan.html").is_file()


def test_plan_changes_nothing(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert mggdata("plan", root, "--policy", "strict") == 0
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_verify_tells_by_its_status(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mggdata("verify", root, "--json", tmp_path / "checks.json") == 0
    assert "all promises that were tested hold" in capsys.readouterr().out
    assert all(check["status"] != "fail" for check in json.loads((tmp_path / "checks.json").read_text()))
    flip_byte(root / "shards/train-000000.tar")
    assert mggdata("verify", root, "--sample", 100, "--json", tmp_path / "checks.json") == 1
    assert "shards/train-000000.tar: has SHA-256" in capsys.readouterr().out
    faults = {check["name"] for check in json.loads((tmp_path / "checks.json").read_text()) if check["status"] == "fail"}
    assert faults == {"shard hashes", "decoding"}


def test_verify_finds_wrong_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_curated(tmp_path, CLIPS[:1], change=scaled_pose)
    assert mggdata("verify", tmp_path) == 1
    assert "head_to_camera is not rigid" in capsys.readouterr().out


def test_stats_as_tables_and_as_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mggdata("stats", root) == 0
    assert "KiB a sample" in capsys.readouterr().out
    assert mggdata("stats", root, "--json") == 0
    assert json.loads(capsys.readouterr().out)["splits"]["val"]["samples"] == 4


def test_preview_prints_its_page(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mggdata("preview", root, "--out", tmp_path / "look", "--frames", 1, "--clips", 1) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "look" / "index.html")


def test_purge_clears_the_default_work_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = root / "work" / "depth" / "ff" / ("f" * 64 + ".tar")
    unit.parent.mkdir(parents=True)
    unit.write_bytes(bytes(10240))
    assert mggdata("purge", root, "--source", ALICE.source, "--person", "dave") == 0
    printed = capsys.readouterr().out
    assert "purged 2 sources, 2 clips, 7 samples" in printed
    assert "1 shards written anew, 2 removed; 1 units of work removed" in printed
    assert len(ShardReader(root)) == 8
    assert not unit.exists()
    assert mggdata("verify", root) == 0


def test_export_prints_its_folders(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what in WHAT:
        assert mggdata("export", root, "--what", what, "--clip", ALICE.id, "--to", tmp_path / "out") == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "out" / ALICE.id / what)


MISTAKES = {
    "no data set": (("verify", "{tmp}/nothing"), "nothing"),
    "no policy": (("plan", "{root}", "--policy", "lax"), "lax: cannot be read as a policy"),
    "a misspelt score": (("plan", "{root}", "--policy", "{tmp}/typo.yaml"), "typo.yaml: unknown key 'minimum.sharpnes'"),
    "no folder for the page": (("plan", "{root}", "--html", "{tmp}/no/plan.html"), "plan.html: cannot be written"),
    "no examples": (("plan", "{root}", "--examples", "0"), "--examples 0: must be at least 1"),
    "no samples": (("verify", "{root}", "--sample", "0"), "--sample 0: must be at least 1"),
    "a negative seed": (("verify", "{root}", "--sample", "1", "--seed", "-1"), "--seed -1: must be at least 0"),
    "no frames": (("preview", "{root}", "--out", "{tmp}/look", "--frames", "0"), "--frames 0"),
    "a preview that is there": (("preview", "{root}", "--out", "{tmp}"), "is there already"),
    "purging nobody": (("purge", "{root}"), "give --source ID, --person NAME or --video PATH"),
    "purging somebody else": (("purge", "{root}", "--person", "mallory"), "has no person 'mallory'"),
    "no work folder": (("purge", "{root}", "--person", "bob", "--work", "{tmp}/nowhere"), "nowhere: no such folder"),
    "no such clip": (("export", "{root}", "--what", "depth", "--clip", "x_00", "--to", "{tmp}/out"), "no samples of a clip 'x_00'"),
    "depth as PNG is no choice": (
        ("export", "{root}", "--what", "depth", "--png", "--to", "{tmp}/out"),
        "--png: says how frames are written",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_in_one_line_and_change_nothing(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    (tmp_path / "typo.yaml").write_text("minimum: {sharpnes: 3}\n")
    arguments, reason = MISTAKES[case]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert mggdata(*(argument.format(root=root, tmp=tmp_path) for argument in arguments)) == 2
    printed = capfd.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert reason in printed.err
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".building"}
    assert after == before
