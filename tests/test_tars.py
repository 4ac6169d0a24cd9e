"""Tars of samples: the same bytes for the same input, whole or not there, read by others, foreign ones with suspicion."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.shards.storage import Storage, StorageError
from datasets_toolkit.shards.tars import SampleEntry, ShardError, iterate_tar, read_members, scan_tar, write_tar
from datasets_toolkit.shards.writer import write_shard

keys = st.text("abcXYZ019_-", min_size=1, max_size=130)
suffixes = st.sampled_from(["jpg", "parsing.png", "depth.dsz", "json", "landmarks.npy"])
samples = st.dictionaries(keys, st.dictionaries(suffixes, st.binary(max_size=1500), max_size=4).map(lambda d: list(d.items())), max_size=5)
SAMPLES = [(f"clip_{number:06d}", [("jpg", bytes([number]) * (500 * number + 1)), ("json", b"{}")]) for number in range(5)]


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@settings(max_examples=60, deadline=None)
@given(samples)
def test_others_and_the_index_read_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, written: dict[str, list[tuple[str, bytes]]]
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    entries = write_tar(folder / "a.tar", written.items())
    expected = {f"{key}.{suffix}": data for key, members in written.items() for suffix, data in members}
    assert contents(folder / "a.tar") == expected
    raw = (folder / "a.tar").read_bytes()
    assert len(raw) % 10240 == 0
    for entry in entries:
        for suffix, (offset, size) in entry.members.items():
            assert raw[offset : offset + size] == expected[f"{entry.key}.{suffix}"]
    storage = Storage(folder)
    assert scan_tar(storage, "a.tar") == [entry for entry in entries if entry.members]
    assert dict(iterate_tar(storage, "a.tar")) == {key: members for key, members in written.items() if members}


def test_the_tar_program_reads_it(tmp_path: Path) -> None:
    program = shutil.which("tar")
    if program is None:
        pytest.skip("no tar program here")
    long = "k" * 150
    write_tar(tmp_path / "a.tar", [*SAMPLES, (long, [("jpg", b"long")])])
    (tmp_path / "out").mkdir()
    done = subprocess.run([program, "-xf", "../a.tar"], cwd=tmp_path / "out", capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert (tmp_path / "out" / f"{long}.jpg").read_bytes() == b"long"
    assert (tmp_path / "out" / "clip_000003.jpg").read_bytes() == SAMPLES[3][1][0][1]
    assert len(list((tmp_path / "out").iterdir())) == 11


def test_headers_tell_of_name_and_size_only(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", SAMPLES)
    with tarfile.open(tmp_path / "a.tar") as tar:
        for member in tar:
            fixed = (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode, member.type, member.pax_headers)
            assert fixed == (0, 0, 0, "", "", 0o644, tarfile.REGTYPE, {})


def test_python_writes_the_same_content_blocks(tmp_path: Path) -> None:
    """Headers equal those of Python's tarfile but for the device numbers, which newer versions leave empty."""
    write_tar(tmp_path / "a.tar", SAMPLES[:1])
    info = tarfile.TarInfo("clip_000000.jpg")
    info.size = 1
    ours, theirs = (tmp_path / "a.tar").read_bytes()[:512], info.tobuf(tarfile.USTAR_FORMAT)
    assert ours[:148] == theirs[:148] and ours[156:329] == theirs[156:329] and ours[345:] == theirs[345:]


WRITE = """
import os, sys
sys.path[:0] = {paths!r}
os.umask({umask})
from datasets_toolkit.shards.tars import write_tar
from pathlib import Path
write_tar(Path({out!r}), [(f"clip_{{n:06d}}", [("jpg", bytes([n]) * (500 * n + 1)), ("json", b"{{}}")]) for n in range(5)])
"""


def test_same_bytes_whoever_writes_when_and_where(tmp_path: Path) -> None:
    write_tar(tmp_path / "here.tar", SAMPLES)
    digests = {hashlib.sha256((tmp_path / "here.tar").read_bytes()).hexdigest()}
    for number, (umask, zone) in enumerate([("0o077", "Asia/Tokyo"), ("0o000", "America/Lima")]):
        folder = tmp_path / f"work{number}"
        folder.mkdir()
        code = WRITE.format(paths=sys.path, umask=umask, out=f"out{number}.tar")
        environment = os.environ | {"TZ": zone, "PYTHONHASHSEED": str(number), "SOURCE_DATE_EPOCH": str(number)}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
        os.utime(folder / f"out{number}.tar", (0, 0))
        digests.add(hashlib.sha256((folder / f"out{number}.tar").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_shard_records_are_true_and_stable(tmp_path: Path) -> None:
    info, entries = write_shard(Storage(tmp_path), "shards/val-000000.tar", "val", SAMPLES)
    raw = (tmp_path / "shards" / "val-000000.tar").read_bytes()
    assert (info.samples, info.bytes, info.sha256) == (5, len(raw), hashlib.sha256(raw).hexdigest())
    assert entries == scan_tar(Storage(tmp_path), info.name)
    remote = Storage(f"memory://{tmp_path.name}/set")
    assert write_shard(remote, info.name, "val", SAMPLES) == (info, entries)
    assert scan_tar(remote, info.name) == entries
    assert list(iterate_tar(remote, info.name)) == SAMPLES


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
        yield from SAMPLES
        raise RuntimeError("the camera is gone")

    write_tar(tmp_path / "a.tar", SAMPLES[:1])
    before = (tmp_path / "a.tar").read_bytes()
    for action in (
        lambda: write_tar(tmp_path / "a.tar", broken()),
        lambda: write_shard(Storage(tmp_path), "a.tar", "train", broken()),
        lambda: write_tar(tmp_path / "b.tar", broken()),
    ):
        with pytest.raises(RuntimeError, match="camera"):
            action()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    assert (tmp_path / "a.tar").read_bytes() == before


ENDLESS = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from datasets_toolkit.shards.writer import write_shard
from datasets_toolkit.shards.tars import write_tar
from datasets_toolkit.shards.storage import Storage
def samples():
    for number in range(10**9):
        yield f"clip_{{number:09d}}", [("jpg", bytes(100_000))]
        print(number, flush=True)
{call}
"""


@pytest.mark.parametrize("call", ["write_tar(Path('a.tar'), samples())", "write_shard(Storage('.'), 'a.tar', 'train', samples())"])
def test_a_killed_writer_leaves_no_file_under_its_name(tmp_path: Path, call: str) -> None:
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("this system has no kill -9")
    code = ENDLESS.format(paths=sys.path, call=call)
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(20):
            assert child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.tar").exists()
    assert Storage(tmp_path).list() == []
    (part,) = tmp_path.iterdir()
    assert part.stat().st_size > 0  # it was in the middle
    write_tar(tmp_path / "a.tar", SAMPLES)  # the next run is not in its way
    assert len(scan_tar(Storage(tmp_path), "a.tar")) == 5


def test_a_place_that_takes_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for action in (
        lambda: write_tar(tmp_path / "file" / "a.tar", SAMPLES),  # a file where a folder must be
        lambda: write_shard(Storage(tmp_path / "file"), "a.tar", "train", SAMPLES),
        lambda: Storage(tmp_path / "file").write("a.json", b"{}"),
    ):
        with pytest.raises(StorageError, match="cannot be written") as caught:
            action()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        [("a.b", [("jpg", b"")])], [("a/b", [("jpg", b"")])], [("", [("jpg", b"")])], [("../a", [("jpg", b"")])], [("ä", [("jpg", b"")])],
        [("a", [("", b"")])], [("a", [(".jpg", b"")])], [("a", [("j/pg", b"")])], [("a", [("jpg", b""), ("jpg", b"")])],
        [("a", [("jpg", b"")]), ("a", [("jpg", b"")])],
    ],
)  # fmt: skip
def test_names_that_would_not_come_back_are_refused(tmp_path: Path, wrong: list[tuple[str, list[tuple[str, bytes]]]]) -> None:
    with pytest.raises(ValueError):
        write_tar(tmp_path / "a.tar", wrong)
    assert list(tmp_path.iterdir()) == []


def foreign(path: Path, *members: tarfile.TarInfo, data: bytes = b"12345") -> Storage:
    with tarfile.open(path, "w") as tar:
        for member in members:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return Storage(path.parent)


def plain(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return info


def test_a_foreign_tar_keeps_its_folders_in_the_keys(tmp_path: Path) -> None:
    storage = foreign(tmp_path / "f.tar", plain("a", tarfile.DIRTYPE), plain("a/x.jpg"), plain("a/x.cls.txt"), plain("b/x.jpg"))
    entries = scan_tar(storage, "f.tar")
    assert [(entry.key, list(entry.members)) for entry in entries] == [("a/x", ["jpg", "cls.txt"]), ("b/x", ["jpg"])]
    assert read_members(storage, "f.tar", list(entries[0].members.values())) == [b"12345"] * 2


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


@pytest.mark.parametrize(
    ("member", "reason"),
    [(plain("x.jpg", kind), "no plain file") for kind in KINDS]
    + [(plain(name), "safe name") for name in ("/etc/x.jpg", "../x.jpg", "a/../../x.jpg", "a\\x.jpg", "C:x.jpg", "./x.jpg", "a\nb.jpg")]
    + [(plain(name), "KEY.SUFFIX") for name in ("x", ".jpg", "a/.jpg", "x.")],
)
def test_unsafe_members_are_refused(tmp_path: Path, member: tarfile.TarInfo, reason: str) -> None:
    storage = foreign(tmp_path / "f.tar", plain("good.jpg"), member)
    with pytest.raises(ShardError, match=reason) as caught:
        scan_tar(storage, "f.tar")
    assert "f.tar" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "reason"), [(["a.jpg", "a.jpg"], "twice"), (["a.jpg", "b.jpg", "a.png"], "side by side")]
)  # fmt: skip
def test_samples_that_webdataset_would_misread_are_refused(tmp_path: Path, names: list[str], reason: str) -> None:
    with pytest.raises(ShardError, match=reason):
        scan_tar(foreign(tmp_path / "f.tar", *map(plain, names)), "f.tar")


def test_a_tar_cut_short_anywhere_or_damaged_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", SAMPLES)
    raw = (tmp_path / "a.tar").read_bytes()
    end = max(offset + size for entry in scan_tar(Storage(tmp_path), "a.tar") for offset, size in entry.members.values())
    for length in range(0, end + 1, 256):
        (tmp_path / "b.tar").write_bytes(raw[:length])
        with pytest.raises(ShardError, match=r"b\.tar"):
            scan_tar(Storage(tmp_path), "b.tar")
    for position in (0, 600, 1100, 1600):  # in headers
        (tmp_path / "b.tar").write_bytes(raw[:position] + b"\xff" * 512 + raw[position + 512 :])
        with pytest.raises(ShardError):
            scan_tar(Storage(tmp_path), "b.tar")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.booleans())
def test_noise_is_no_tar(tmp_path_factory: pytest.TempPathFactory, noise: bytes, after_a_sample: bool) -> None:
    path = tmp_path_factory.mktemp("noise") / "n.tar"
    write_tar(path, SAMPLES[:1])
    path.write_bytes((path.read_bytes()[:2048] if after_a_sample else b"") + noise + b"\x01")
    with pytest.raises(ShardError):
        scan_tar(Storage(path.parent), "n.tar")


class Counting(Storage):
    """Notes each read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[tuple[int, int | None]] = []

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        self.reads.append((offset, size))
        return super().read(name, offset, size)


def spans_of(entries: list[SampleEntry], suffix: str) -> list[tuple[int, int]]:
    return [entry.members[suffix] for entry in entries]


def test_neighbours_are_fetched_by_one_read(tmp_path: Path) -> None:
    big = [(f"clip_{n:06d}", [("jpg", bytes([n]) * 3000), ("gap.bin", bytes(200_000)), ("json", b"%d" % n)]) for n in range(4)]
    entries = write_tar(tmp_path / "a.tar", big)
    storage = Counting(tmp_path)
    one = entries[1].members
    assert read_members(storage, "a.tar", [one["json"], one["jpg"]]) == [b"1", b"\x01" * 3000]
    assert len(storage.reads) == 2  # 200 kB lie between
    storage.reads.clear()
    assert read_members(storage, "a.tar", [entries[2].members["jpg"], one["json"], entries[2].members["jpg"]])[1] == b"1"
    assert len(storage.reads) == 1
    storage.reads.clear()
    assert read_members(storage, "a.tar", list(one.values())) == [data for _, data in big[1][1]]
    assert len(storage.reads) == 1
    assert read_members(storage, "a.tar", []) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300_000), st.integers(0, 90_000)), max_size=8))
def test_any_spans_give_the_bytes_there(tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.getbasetemp() / "spans"
    folder.mkdir(exist_ok=True)
    raw = b"".join(n.to_bytes(4, "little") for n in range(100_000))
    if not (folder / "a.bin").exists():
        (folder / "a.bin").write_bytes(raw)
    assert read_members(Storage(folder), "a.bin", spans) == [raw[offset : offset + size] for offset, size in spans]


def test_spans_beyond_the_file_are_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", SAMPLES)
    with pytest.raises(StorageError, match="cut short"):
        read_members(Storage(tmp_path), "a.tar", [(10**7, 10)])
    with pytest.raises(ShardError, match="negative"):
        read_members(Storage(tmp_path), "a.tar", [(-5, 10)])
