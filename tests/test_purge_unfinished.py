"""A purge of a build that was interrupted: what it has made goes, and the build that goes on does not take it in again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("omegaconf")

from build_scenes import digests, face_picture, source, talking, write_video  # noqa: E402
from build_scenes import small_build as build_anything  # noqa: E402
from curated_scenes import traces  # noqa: E402

from datasets_toolkit.build import labelling, pack_stage  # noqa: E402
from datasets_toolkit.build.purge_everywhere import purge_everywhere  # noqa: E402
from datasets_toolkit.build.tombstones import FILE as GRAVES  # noqa: E402
from datasets_toolkit.build.tombstones import Tombstones  # noqa: E402
from datasets_toolkit.build.unfinished import FOLDER  # noqa: E402
from datasets_toolkit.cli import main  # noqa: E402
from datasets_toolkit.errors import UserError  # noqa: E402
from datasets_toolkit.recipes.base import Source  # noqa: E402
from datasets_toolkit.schema import ByteImage  # noqa: E402
from datasets_toolkit.shards.shard_reader import ShardReader  # noqa: E402
from datasets_toolkit.shards.storage import Storage  # noqa: E402


def small_build(sources: list[Source], out: Path, **options: object) -> None:
    """A build with a parsing annotator that costs nothing."""
    build_anything(sources, out, "annotators=[{class_path: build_annotators.Picky}]", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, astronaut: ByteImage) -> list[Source]:
    """Two videos of ann and one of bob, whose names occur nowhere else."""
    folder, face = tmp_path_factory.mktemp("videos"), face_picture(astronaut)
    videos = {"orange": ("ann", 4), "lemon": ("bob", 5), "cherry": ("ann", 6)}
    return [source(write_video(folder / f"{name}.mp4", talking(face, frames)), person) for name, (person, frames) in videos.items()]


@pytest.fixture(scope="module")
def without_ann(sources: list[Source], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a data set that ann was never in."""
    out = tmp_path_factory.mktemp("without")
    small_build(sources[1:2], out)
    return digests(out)


def interrupted(sources: list[Source], out: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that is stopped before the second job of a step."""
    module, name = {"annotate": (labelling, "annotate_source"), "pack": (pack_stage, "pack_shard")}[step]
    work, calls = getattr(module, name), []

    def stop_at_second(job: object) -> object:
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(job)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            small_build(sources, out)
    assert not (out / "dataset.json").exists()


def words_of(one: Source) -> list[str]:
    return [Path(one.path).stem, hashlib.sha256(Path(one.path).read_bytes()).hexdigest()]


@pytest.mark.parametrize("step", ["annotate", "pack"])
def test_the_build_goes_on_without_the_purged(
    step: str, sources: list[Source], without_ann: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet

    assert pyarrow.parquet is not None
    interrupted(sources, tmp_path, step, monkeypatch)
    anns = [*words_of(sources[0]), *words_of(sources[2]), '"ann"']
    assert traces(tmp_path, anns)
    kept = {path for path in (tmp_path / "work").glob("*/*/*.tar") if words_of(sources[1])[1].encode() in path.read_bytes()}
    done = purge_everywhere(Storage(tmp_path), people=["ann"], work=tmp_path / "work")
    assert (done.sources, done.clips) == (2, 2)
    assert done.units >= 4  # their contents and tracks at least
    assert traces(tmp_path, anns) == []
    assert kept
    assert all(path.exists() for path in kept)
    tracks = list((tmp_path / "work/track").glob("*/*.tar"))
    assert len(tracks) == 1
    before = {path: path.stat().st_mtime_ns for path in tracks}
    small_build(sources, tmp_path)  # the same command again
    assert digests(tmp_path) == without_ann
    assert {path: path.stat().st_mtime_ns for path in tracks} == before
    assert traces(tmp_path, anns) == []
    assert not list((tmp_path / "work" / FOLDER).iterdir())


def test_one_source_and_its_copies_go(sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(Path(sources[0].path).read_bytes())
    out, given = tmp_path / "out", [*sources[1:], sources[0], source(copy, "nobody")]
    interrupted(given, out, "annotate", monkeypatch)
    content = words_of(sources[0])[1]
    done = purge_everywhere(Storage(out), sources=[f"tiny-orange-{content[:8]}"], work=out / "work")
    assert done.sources == 2
    small_build(given, out)
    assert sorted(ShardReader(out).sources.column("person").to_pylist()) == ["ann", "bob"]
    assert traces(out, [content]) == []


def test_a_video_is_known_by_place_and_by_content(sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(sources, tmp_path / "out", "annotate", monkeypatch)
    moved = tmp_path / "elsewhere.mp4"
    moved.write_bytes(Path(sources[2].path).read_bytes())
    assert main(["purge", str(tmp_path / "out"), "--video", str(moved), "--video", sources[0].path]) == 0
    small_build(sources, tmp_path / "out")
    assert ShardReader(tmp_path / "out").sources.column("person").to_pylist() == ["bob"]


def test_scores_lose_the_purged_too(sources: list[Source], tmp_path: Path) -> None:
    small_build(sources, tmp_path, until="scores")
    purge_everywhere(Storage(tmp_path), people=["ann"], work=tmp_path / "work")
    for table in ("sources", "clips"):
        assert pa.parquet.read_table(tmp_path / f"{table}.parquet").column("person").to_pylist() == ["bob"]


def test_unknown_names_change_nothing(sources: list[Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_build(sources, tmp_path, until="scores")
    before = digests(tmp_path)
    for option, name, kind in (("--person", "mallory", "person"), ("--source", "tiny-x-00000000", "source"), ("--video", "x.mp4", "video")):
        assert main(["purge", str(tmp_path), "--person", "ann", option, name]) == 2
        told = capsys.readouterr().err
        assert f"has no {kind} " in told
        assert told.count("\n") == 1
    assert digests(tmp_path) == before
    assert not (tmp_path / "work" / GRAVES).exists()
    purge_everywhere(Storage(tmp_path), people=["ann"], work=tmp_path / "work")
    with pytest.raises(UserError, match="has no person 'ann'; it was purged before"):
        purge_everywhere(Storage(tmp_path), people=["ann"], work=tmp_path / "work")


def test_a_finished_set_remembers_as_well(sources: list[Source], tmp_path: Path, without_ann: dict[str, str]) -> None:
    small_build(sources[:2], tmp_path)
    done = purge_everywhere(Storage(tmp_path), people=["ann"], work=tmp_path / "work")
    assert (done.sources, done.samples) == (1, 4)
    small_build(sources, tmp_path)  # one more video of ann has come in between
    assert digests(tmp_path) == without_ann


def test_a_finished_set_in_the_middle_of_a_larger_build(
    sources: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_ann: dict[str, str]
) -> None:
    small_build(sources[:1], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(labelling, "annotate_source", lambda job: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            small_build(sources, tmp_path)
    assert (tmp_path / "dataset.json").exists()
    done = purge_everywhere(Storage(tmp_path), people=["ann"], work=tmp_path / "work")
    assert done.sources == 2
    assert len(ShardReader(tmp_path)) == 0
    assert len(list((tmp_path / "work/track").glob("*/*.tar"))) == 1  # bob's, though the finished set knows nothing of him
    small_build(sources, tmp_path)
    assert digests(tmp_path) == without_ann


def test_nothing_to_purge_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["purge", str(tmp_path), "--person", "ann"]) == 2
    assert "neither a finished data set nor an unfinished build" in capsys.readouterr().err


def test_tombstones_hold_no_name(tmp_path: Path) -> None:
    one = Source(path="a.mp4", source_hint="a", dataset="d", start=1.0, end=2.0)
    Tombstones(tmp_path).bury(["ann", ""], [("c" * 64, one), ("", one)])
    text = (tmp_path / GRAVES).read_text()
    assert "ann" not in text
    assert "cccc" not in text
    kept = Tombstones(tmp_path)
    assert len(kept.digests) == 2
    assert kept.person("ann")
    assert not kept.person("")
    assert kept.stretch("c" * 64, one)
    assert not kept.stretch("c" * 64, Source(path="a.mp4", source_hint="a", dataset="d"))
    assert Tombstones(tmp_path / "other").digests == frozenset()
    Tombstones(tmp_path / "other").bury(["ann"], [])
    assert not Tombstones(tmp_path / "other").digests & kept.digests  # another salt
    (tmp_path / GRAVES).write_text("{")
    with pytest.raises(UserError, match=r"purged\.json: the list of what was purged is damaged"):
        Tombstones(tmp_path)
