"""Options of object stores reach the stores, also from processes that are started, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("pyarrow")

from fsspec.config import conf  # noqa: E402
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402

from datasets_toolkit.cli import main  # noqa: E402
from datasets_toolkit.errors import UserError  # noqa: E402
from datasets_toolkit.shards.shard_reader import ShardReader  # noqa: E402
from datasets_toolkit.shards.storage import Storage  # noqa: E402
from datasets_toolkit.shards.storage_options import hidden, storage_options  # noqa: E402

SECRET = "open-sesame-1234"


class Vault(MemoryFileSystem):  # type: ignore[misc]
    """A store that tells what it was given, and lets nobody in without the secret."""

    protocol = "vault"
    cachable = False
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def __init__(self, *, secret: str = "", **options: Any) -> None:
        super().__init__(**options)
        if secret != SECRET:
            raise PermissionError(13, f"the secret {secret!r} is wrong")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(str(path).removeprefix("vault://")))


@pytest.fixture
def vault() -> Iterator[type[Vault]]:
    fsspec.register_implementation("vault", Vault, clobber=True)
    yield Vault
    Vault.store.clear()
    Vault.pseudo_dirs[:] = [""]


def test_options_are_held_inside_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conf, "vault", {"region": "north", "client": {"a": 1}})
    monkeypatch.delenv("FSSPEC_VAULT", raising=False)
    words = ["secret=1234", "anon=false", "client.b=two", "other:key=x=y", 'client.list=["a"]']
    with storage_options(words, ["vault://set", "/a/folder", None, Path("p")]):
        assert conf["vault"] == {"region": "north", "secret": "1234", "anon": False, "client": {"a": 1, "b": "two", "list": ["a"]}}
        assert json.loads(os.environ["FSSPEC_VAULT"]) == conf["vault"]
        assert conf["other"] == {"key": "x=y"}
    assert conf["vault"] == {"region": "north", "client": {"a": 1}}
    assert "other" not in conf
    assert "FSSPEC_VAULT" not in os.environ
    with pytest.raises(RuntimeError), storage_options(words, ["vault://set"]):
        raise RuntimeError
    assert "secret" not in conf["vault"]


def test_processes_that_are_started_have_them() -> None:
    with storage_options([f"secret={SECRET}"], ["simplecache::vault://set"]):
        code = "from fsspec.config import conf; print(conf['vault']['secret'])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == SECRET


@pytest.mark.parametrize(
    ("words", "addresses", "reason"),
    [
        ([SECRET], ["vault://x"], "not of the form KEY=VALUE"),
        ([f"=={SECRET}"], ["vault://x"], "not of the form KEY=VALUE"),
        ([f"secret={SECRET}"], ["/data", "file:///data"], "no address such as s3"),
        ([f"secret={SECRET}"], ["vault://x", "s3://y"], "addresses of s3, vault are used; name the protocol"),
        (["client=1", f"client.secret={SECRET}"], ["vault://x"], "client has a value already"),
    ],
)
def test_mistakes_are_told_without_the_value(words: list[str], addresses: list[str], reason: str) -> None:
    before = dict(conf)
    with pytest.raises(UserError, match=reason) as caught, storage_options(words, addresses):
        raise AssertionError("must not come here")
    assert SECRET not in str(caught.value)
    assert dict(conf) == before


def test_every_command_takes_them_and_nothing_keeps_them(vault: type[Vault], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    option = ["--storage-option", f"secret={SECRET}"]
    made = ["synthesize", "--out", "vault://set", "--clips", "3", "--frames", "2", "--size", "64", "--persons", "3"]
    assert main([*made, *option]) == 0
    assert main(["stats", "vault://set", "--json", *option]) == 0
    assert main(["plan", "vault://set", "--policy", "strict", *option]) == 0
    assert main(["export", "vault://set", "--what", "motion", "--to", str(tmp_path / "motion"), *option]) == 0
    assert main(["preview", "vault://set", "--out", str(tmp_path / "preview"), "--frames", "1", *option]) == 0
    assert main(["verify", "vault://set", "--json", str(tmp_path / "checks.json"), *option]) in (0, 1)
    with storage_options(option[1:], ["vault://set"]):
        storage = Storage("vault://set")
        assert "open-sesame" not in repr(storage) + repr(storage.__getstate__())
        person = ShardReader(storage).clips.column("person").to_pylist()[0]
    assert main(["purge", "vault://set", "--person", person, *option]) == 0
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    files = [bytes(file.getvalue()) for file in vault.store.values()] + [
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    ]
    assert len(files) > 8
    assert not any(SECRET.encode() in data for data in files)


def test_a_store_that_talks_is_cut_short(vault: type[Vault], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "vault://set", "--storage-option", "secret=wrong-one"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert "***" in told
    assert "wrong-one" not in told


def test_what_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "key": "AKIA0123",
        "secret": "AKIA0123secret",
        "endpoint_url": "http://here:9000",
        "client_kwargs": {"token": "t0ken"},
        "n": "ab",
    }
    monkeypatch.setitem(conf, "vault", options)
    assert hidden("AKIA0123secret of AKIA0123 at http://here:9000 with t0ken, ab") == "*** of *** at http://here:9000 with ***, ab"
    assert hidden(ValueError("plain")) == "plain"
