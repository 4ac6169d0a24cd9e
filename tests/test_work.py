"""The work folder: units by their keys, what is left of the dead, and one builder at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datasets_toolkit.build.work import UnitStore, WorkError, alive, key_of, only_builder

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = [("000001", [("a.npy", b"one"), ("json", b"{}")]), ("000007", [("a.npy", b""), ("json", b"[]")])]


def test_a_unit_gives_back_what_was_written(tmp_path: Path) -> None:
    store, key = UnitStore(tmp_path), key_of({"b": 1, "a": [2, "x"]})
    assert not store.has("depth", key)
    store.write("depth", key, SAMPLES)
    assert store.has("depth", key)
    assert not store.has("normals", key)
    assert store.read("depth", key) == {"000001.a.npy": b"one", "000001.json": b"{}", "000007.a.npy": b"", "000007.json": b"[]"}
    assert store.first("depth", key) == b"one"
    data = store.path("depth", key).read_bytes()
    for name, (offset, size) in store.index("depth", key).items():
        assert data[offset : offset + size] == store.read("depth", key)[name]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_key_depends_on_values_and_not_on_their_order() -> None:
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    assert len({key_of(value) for value in ({"a": 1}, {"a": "1"}, {"a": [1]}, {"b": 1}, [], None)}) == 6


def test_the_same_unit_has_the_same_bytes(tmp_path: Path) -> None:
    first, second = UnitStore(tmp_path / "1"), UnitStore(tmp_path / "2")
    for store in (first, second):
        store.write("depth", "k", iter(SAMPLES))
    assert first.path("depth", "k").read_bytes() == second.path("depth", "k").read_bytes()


def test_a_unit_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> object:
        yield SAMPLES[0]
        raise RuntimeError("no more")

    store = UnitStore(tmp_path)
    with pytest.raises(RuntimeError, match="no more"):
        store.write("depth", "k", broken())  # type: ignore[arg-type]
    assert not store.has("depth", "k")
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no tar" * 200])
def test_a_damaged_unit_is_told(tmp_path: Path, content: bytes) -> None:
    store = UnitStore(tmp_path)
    path = store.path("depth", "k")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(WorkError, match=r"k\.tar: this unit of work is damaged .*; delete it and run the same command again"):
        store.first("depth", "k")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with pytest.raises(WorkError, match="cannot be written"):
        UnitStore(tmp_path / "work").write("depth", "k", SAMPLES)
    with pytest.raises(WorkError, match="cannot be written"), only_builder(tmp_path / "work"):
        pass


def test_only_the_dead_are_swept(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    mine, theirs = tmp_path / "tmp" / f"{os.getpid()}-abc", tmp_path / "tmp" / f"{ended.pid}-abc"
    for folder in (mine, theirs):
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"half")
    UnitStore(tmp_path).sweep()
    assert mine.exists()
    assert not theirs.exists()
    assert alive(os.getpid())
    assert not alive(ended.pid)


HOLD = """
import sys, time
from pathlib import Path
from datasets_toolkit.build.work import only_builder
with only_builder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(WorkError, match=f"process {other.pid} is building here"), only_builder(tmp_path):
            pass
        other.kill()
        other.wait()
    with only_builder(tmp_path) as before:
        assert before == other.pid
    with only_builder(tmp_path) as before:
        assert before is None
