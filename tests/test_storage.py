"""Storage on a folder, in fsspec's memory and on an S3-like server: the same behaviour, and no file before it is whole."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from datasets_toolkit import local_files
from datasets_toolkit.errors import UserError
from datasets_toolkit.shards import storage
from datasets_toolkit.shards.storage import OPEN_FILES, Storage, StorageError, check_name, part_name

DATA = bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8))
UNSAFE = ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.", "..", "a\\..\\b", "C:/x", "a\nb", "a\0b"]


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "folder":
        yield Storage(tmp_path / "data")
    elif request.param == "memory":
        root = f"memory://{tmp_path.name}-{part_name('x')[1:]}"
        yield Storage(root)
        fsspec.filesystem("memory").store.clear()
    else:
        yield request.getfixturevalue("bucket")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """A server in a process of its own: threads of this one would not survive the forks below."""
    for package in ("moto.server", "s3fs"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            _wait_for(port, running)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.kill()


def _wait_for(port: int, server: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, "the S3 server has ended"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    pytest.fail("the S3 server does not answer")


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    options = {"endpoint_url": s3_server}
    name = f"bucket-{os.urandom(4).hex()}"
    fsspec.filesystem("s3", **options).mkdir(name)
    return Storage(f"s3://{name}/sets/faces", **options)


def test_what_is_written_is_read(place: Storage) -> None:
    place.write("a/b.bin", DATA)
    assert place.read("a/b.bin") == DATA
    assert place.read("a/b.bin", 100, 1000) == DATA[100:1100]
    assert place.read("a/b.bin", 4000) == DATA[4000:]
    assert place.read("a/b.bin", 10, 0) == b""
    assert place.size("a/b.bin") == len(DATA)
    with place.open("a/b.bin") as file:
        file.seek(7)
        assert file.read(5) == DATA[7:12]


def test_existence_listing_and_removal(place: Storage) -> None:
    assert place.list() == [] and not place.exists("a.bin")
    for name in ("b/2.bin", "a.bin", "b/1.bin", "bb.bin"):
        place.write(name, DATA)
    assert place.list() == ["a.bin", "b/1.bin", "b/2.bin", "bb.bin"]
    assert place.list("b/") == ["b/1.bin", "b/2.bin"]
    assert place.list("b") == ["b/1.bin", "b/2.bin", "bb.bin"]
    assert place.exists("b/1.bin") and not place.exists("b")
    place.remove("b/1.bin")
    place.remove("b/1.bin")
    assert not place.exists("b/1.bin") and place.exists("b/2.bin")


def test_a_new_file_replaces_the_old_one_for_new_reads(place: Storage) -> None:
    place.write("a.bin", DATA)
    assert place.read("a.bin", 0, 10) == DATA[:10]
    place.write("a.bin", DATA[::-1])
    assert place.read("a.bin", 0, 10) == DATA[::-1][:10]


def test_publishing_moves_the_local_file(place: Storage, tmp_path: Path) -> None:
    local = tmp_path / "elsewhere.tar"
    local.write_bytes(DATA)
    place.publish(local, "shards/x.tar")
    assert not local.exists()
    assert place.read("shards/x.tar") == DATA
    assert place.list() == ["shards/x.tar"]


def test_what_is_missing_or_short_is_told_in_one_line(place: Storage) -> None:
    place.write("a.bin", DATA)
    for action in (lambda: place.read("none.bin"), lambda: place.read("none.bin", 0, 5), lambda: place.size("none.bin")):
        with pytest.raises(StorageError, match="no such file") as caught:
            action()
        assert "none.bin" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(StorageError, match="no such file"), place.open("none.bin") as file:
        file.read()
    with pytest.raises(StorageError, match="cut short"):
        place.read("a.bin", 4990, 20)
    with pytest.raises(StorageError, match="cut short"):
        place.read("a.bin", 4990, 10**15)


@pytest.mark.parametrize("name", UNSAFE)
def test_names_stay_below_the_root(place: Storage, name: str) -> None:
    actions: list[Callable[[], Any]] = [lambda: place.read(name), lambda: place.write(name, b""), lambda: place.remove(name)]
    for action in [*actions, lambda: place.exists(name), lambda: place.open(name), lambda: place.size(name), lambda: check_name(name)]:
        with pytest.raises(StorageError, match="not a safe name"):
            action()


def test_it_survives_pickling(place: Storage) -> None:
    place.write("a.bin", DATA)
    place.read("a.bin", 0, 1)  # a handle is open now
    copy = pickle.loads(pickle.dumps(place))
    assert copy.read("a.bin", 3, 9) == DATA[3:12]
    assert (copy.root, copy.options, copy.local) == (place.root, place.options, place.local)


def _read_into(place: Storage, queue: Any) -> None:
    queue.put(place.read("a.bin", 3, 9))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_with_a_storage_already_in_use(place: Storage, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    if place.root.startswith("memory"):
        pytest.skip("memory belongs to its process")
    place.write("a.bin", DATA)
    assert place.read("a.bin", 0, 1) == DATA[:1]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_into, args=(place, queue), daemon=True)
    child.start()
    assert queue.get(timeout=60) == DATA[3:12]
    child.join(60)
    assert child.exitcode == 0


def test_a_forked_child_does_not_wait_for_a_lock_held_at_the_fork(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    place = Storage(tmp_path)
    place.write("a.bin", DATA)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with place._lock:
        child = context.Process(target=_read_into, args=(place, queue), daemon=True)
        child.start()
        assert queue.get(timeout=60) == DATA[3:12]
    child.join(60)


def test_threads_share_more_files_than_stay_open(tmp_path: Path) -> None:
    place = Storage(tmp_path)
    names = [f"{number}.bin" for number in range(2 * OPEN_FILES)]
    for number, name in enumerate(names):
        place.write(name, bytes([number]) * 100)
    wrong = []

    def read(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, len(names), 400):
            if place.read(names[number], 50, 10) != bytes([number]) * 10:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(place._handles) == OPEN_FILES
    if Path("/proc/self/fd").is_dir():
        inside = [one for one in Path("/proc/self/fd").iterdir() if one.exists() and one.resolve().is_relative_to(tmp_path.resolve())]
        assert len(inside) == OPEN_FILES


def test_positioned_reads_without_pread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.delattr(os, "pread", raising=False)
    place = Storage(tmp_path)
    place.write("a.bin", DATA)
    assert place.read("a.bin", 100, 1000) == DATA[100:1100]
    assert place.read("a.bin", 4000) == DATA[4000:]


def test_a_failed_upload_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Storage(f"memory://{tmp_path.name}-failed")
    place.write("a.bin", b"old")
    memory = fsspec.filesystem("memory")

    def half(local: str, remote: str, **_: Any) -> None:
        memory.pipe_file(remote, Path(local).read_bytes()[:10])
        raise OSError("the line broke")

    monkeypatch.setattr(type(memory), "put_file", lambda self, local, remote, **options: half(local, remote))
    with pytest.raises(StorageError, match="the line broke"):
        place.write("a.bin", DATA)
    assert place.read("a.bin") == b"old"
    assert memory.find(place.root) == [f"/{tmp_path.name}-failed/a.bin"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Storage(tmp_path / "data")
    place.write("a.bin", b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "sync", full)
    with pytest.raises(StorageError, match="No space left"):
        place.write("a.bin", DATA)
    assert place.read("a.bin") == b"old"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a.bin"]


def test_across_file_systems_a_copy_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, local, rename = Storage(tmp_path / "data"), tmp_path / "x.tar", os.replace
    local.write_bytes(DATA)

    def other_disk(source: Path, target: Path) -> None:
        if Path(source) == local:
            raise OSError(18, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(local_files.os, "replace", other_disk)
    place.publish(local, "shards/x.tar")
    assert place.read("shards/x.tar") == DATA
    assert not local.exists() and place.list() == ["shards/x.tar"]


def test_unfinished_files_are_not_listed(tmp_path: Path) -> None:
    place = Storage(tmp_path)
    place.write("a.bin", DATA)
    (tmp_path / part_name("a.bin")).write_bytes(b"half")
    assert place.list() == ["a.bin"]


@pytest.mark.parametrize("root", ["nosuchscheme://bucket/x", "nosuchscheme::s3://bucket"])
def test_an_address_that_nothing_reads_is_refused_at_once(root: str) -> None:
    with pytest.raises(UserError, match="cannot be used") as caught:
        Storage(root)
    assert "\n" not in str(caught.value)


def test_local_roots(tmp_path: Path) -> None:
    assert Storage(f"file://{tmp_path}").local == tmp_path
    assert Storage(str(tmp_path)).local == tmp_path
    assert Storage("C:\\data\\faces").local is not None
    assert Storage("memory://x").local is None
    assert Storage(tmp_path / "none").list() == []
