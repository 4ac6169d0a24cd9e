"""Purging takes away all of a source or a person, touches nothing else, and can be killed anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

from curated_scenes import CLIPS, Clip, make_curated, traces  # noqa: E402

from datasets_toolkit.build.clip_frames import ClipNames  # noqa: E402
from datasets_toolkit.build.config import AnnotatorConfig  # noqa: E402
from datasets_toolkit.build.pipeline import AnnotatorFacts, unit_keys  # noqa: E402
from datasets_toolkit.build.purge import BEGUN, purge  # noqa: E402
from datasets_toolkit.build.work import UnitStore  # noqa: E402
from datasets_toolkit.checks.verify import verify  # noqa: E402
from datasets_toolkit.errors import UserError  # noqa: E402
from datasets_toolkit.shards.dataset_info import FILE, read_info, write_info  # noqa: E402
from datasets_toolkit.shards.shard_reader import ShardReader  # noqa: E402
from datasets_toolkit.shards.storage import Storage  # noqa: E402
from datasets_toolkit.shards.tars import iterate_tar  # noqa: E402

ALICE, BOB, CAROL, DAVE, EVE = CLIPS


def samples(storage: Storage) -> dict[str, list[tuple[str, bytes]]]:
    """All packed samples by key, as the tars hold them."""
    return {key: members for shard in read_info(storage).shards for key, members in iterate_tar(storage, shard.name)}


def faults(storage: Storage) -> dict[str, tuple[str, ...]]:
    return {check.name: check.examples for check in verify(ShardReader(storage)) if check.faults}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    import pyarrow.parquet

    assert pyarrow.parquet is not None
    return make_curated(tmp_path / "set").storage


def test_a_source_goes_without_a_trace_and_nothing_else_changes(storage: Storage) -> None:
    before = samples(storage)
    shards = {shard.name: shard for shard in read_info(storage).shards}
    assert traces(storage.local, [ALICE.source])  # type: ignore[arg-type]
    done = purge(storage, sources=[ALICE.source])
    assert (done.sources, done.clips, done.samples) == (1, 1, 4)
    assert traces(storage.local, ["alice", ALICE.source]) == []  # type: ignore[arg-type]
    assert samples(storage) == {key: members for key, members in before.items() if "alice" not in key}
    assert faults(storage) == {}
    after = {shard.name: shard for shard in read_info(storage).shards}
    assert (done.rewritten, done.removed) == (1, 1)  # four frames of alice filled one shard and a third of the next
    assert set(shards) - set(after) == {"shards/train-000000.tar"}
    assert [name for name in after if after[name] != shards[name]] == ["shards/train-000001.tar"]


def test_the_purge_is_counted_and_not_named(storage: Storage) -> None:
    purge(storage, sources=[ALICE.source])
    purge(storage, people=["dave"])
    counts = read_info(storage).counts
    assert counts == {
        "sources": 3, "sources_ok": 3, "clips": 3, "clips_kept": 2, "people": 2, "samples": 8,
        "purged_sources": 2, "purged_clips": 2, "purged_samples": 7,
    }  # fmt: skip


def test_a_person_goes_with_all_sources(tmp_path: Path) -> None:
    second = replace(ALICE, name="set-more-00abcdef", frames=(5, 6))
    storage = make_curated(tmp_path, (*CLIPS, second)).storage
    done = purge(storage, people=["alice", "eve"])
    assert (done.sources, done.clips, done.samples) == (3, 3, 6)
    assert traces(tmp_path, ["alice", "set-eve", "set-more-00abcdef"]) == []
    assert faults(storage) == {}


def test_a_rejected_clip_can_be_purged_without_touching_a_shard(storage: Storage) -> None:
    shards = read_info(storage).shards
    done = purge(storage, people=["eve"])
    assert (done.sources, done.clips, done.samples, done.rewritten, done.removed) == (1, 1, 0, 0, 0)
    assert read_info(storage).shards == shards
    assert faults(storage) == {}


def test_everything_can_be_purged(storage: Storage) -> None:
    done = purge(storage, people=["alice", "bob", "carol", "dave", "eve"])
    assert (done.samples, done.removed, done.rewritten) == (15, 6, 0)
    assert read_info(storage).shards == []
    assert storage.list("shards/") == []
    assert len(ShardReader(storage)) == 0


@pytest.mark.parametrize(
    ("sources", "people", "reason"),
    [(["set-nobody"], [], "has no source 'set-nobody'"), ([], ["mallory"], "has no person 'mallory'"), ([], [""], "has no person ''")],
)
def test_unknown_names_are_refused_and_change_nothing(storage: Storage, sources: list[str], people: list[str], reason: str) -> None:
    before = {path: path.read_bytes() for path in storage.local.rglob("*.*") if path.is_file() and path.name != ".building"}  # type: ignore[union-attr]
    with pytest.raises(UserError, match=reason):
        purge(storage, sources=[ALICE.source, *sources], people=people)
    assert {path: path.read_bytes() for path in before} == before
    assert faults(storage) == {}


def test_purged_twice_is_told(storage: Storage) -> None:
    purge(storage, sources=[BOB.source])
    with pytest.raises(UserError, match="it was purged before, or has another name"):
        purge(storage, sources=[BOB.source])


class Killed(BaseException):
    """Stands for the end of the process."""


class Fragile(Storage):
    """Dies before or after its n-th change."""

    def __init__(self, root: str, changes: int, after: bool) -> None:
        super().__init__(root)
        self.left, self.after = changes, after

    def _change(self, act: Callable[[], None]) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        act()
        if self.left == 0:
            raise Killed

    def publish(self, local: Path, name: str) -> None:
        self._change(lambda: super(Fragile, self).publish(local, name))

    def remove(self, name: str) -> None:
        self._change(lambda: super(Fragile, self).remove(name))


def test_a_purge_killed_anywhere_is_finished_by_the_same_command(tmp_path: Path) -> None:
    whole = make_curated(tmp_path / "whole").storage
    purge(whole, sources=[ALICE.source])
    assert whole.local is not None
    wanted = {path.relative_to(whole.local): path.read_bytes() for path in whole.local.rglob("*") if path.is_file() and path.name[0] != "."}
    kills = 0
    for changes in range(1, 30):
        root = tmp_path / f"killed {changes}"
        make_curated(root)
        try:
            purge(Fragile(str(root), changes, after=bool(changes % 2)), sources=[ALICE.source])
        except Killed:
            kills += 1
            if not (root / FILE).exists():
                with pytest.raises(UserError, match="no finished data set"):
                    read_info(Storage(root))
        else:
            break
        purge(Storage(root), sources=[ALICE.source])
        found = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name[0] != "."}
        found[Path("sources.parquet")] = wanted[Path("sources.parquet")]  # paths in it differ
        found[Path(FILE)] = _without_sources(found[Path(FILE)])
        assert found == {**wanted, Path(FILE): _without_sources(wanted[Path(FILE)])}, f"killed at change {changes}"
        assert not (root / BEGUN).exists()
        assert faults(Storage(root)) == {}
    assert kills >= 8


def _without_sources(data: bytes) -> bytes:
    record = json.loads(data)
    record["manifests"].pop("sources.parquet")
    return json.dumps(record).encode()


def test_another_purge_after_a_killed_one_leaves_a_sound_data_set(tmp_path: Path) -> None:
    for changes in (3, 4, 5, 6):
        root = tmp_path / str(changes)
        make_curated(root)
        with pytest.raises(Killed):
            purge(Fragile(str(root), changes, after=True), sources=[ALICE.source])
        purge(Storage(root), sources=[CAROL.source])
        purge(Storage(root), sources=[ALICE.source])
        assert faults(Storage(root)) == {}
        assert {key.split("-")[1] for key in samples(Storage(root))} == {"bob", "dave"}


def test_a_damaged_shard_stops_the_purge_with_one_line(storage: Storage) -> None:
    assert storage.local is not None
    shard = storage.local / "shards/train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"train-000001\.tar"):
        purge(storage, sources=[ALICE.source])


def _track(clip: Clip, row: dict[str, Any]) -> list[tuple[str, list[tuple[str, bytes]]]]:
    place = {name: row[name] for name in ("first", "last", "start", "end", "frames", "gaps")}
    scores = {name: row[name] for name in ("face_size", "yaw_min", "yaw_max", "motion", "jitter", "sharpness", "brightness")}
    facts = {"track": 0, "first_row": row["first"], "last_row": row["last"], **place, "scores": scores}
    info = {"width": 640, "height": 480, "duration": float(clip.frames[-1] + 1) / 25}
    return [("track", [("json", json.dumps({"info": info, "clips": [facts], "tracks": 1}).encode())])]


def test_the_work_folder_keeps_what_others_need_and_nothing_more(storage: Storage) -> None:
    assert storage.local is not None
    work = storage.local / "work"
    store, info = UnitStore(work), read_info(storage)
    annotator = {"family": "depth", "name": "tests.Sphere", "version": 3, "parameters": {"a": 1}, "provenance": {"licence": "CC0"}}
    write_info(storage, replace(info, annotators=[{**annotator, "family": family} for family in ("parsing", "depth")]))
    recipe, config = {"class_path": "tests.Sphere", "version": 3, "settings": {"a": 1}}, AnnotatorConfig("tests.Sphere")
    facts = {
        family: AnnotatorFacts(config=config, family=family, recipe=recipe, provenance={"licence": "CC0"})
        for family in ("parsing", "depth")
    }
    mine: dict[str, set[Path]] = {clip.person: set() for clip in CLIPS}
    rows = {row["clip"]: row for row in ShardReader(storage).clips.to_pylist()}
    for number, clip in enumerate(CLIPS):
        track = f"{number:064x}"
        store.write("track", track, _track(clip, rows[clip.id]))
        mine[clip.person].add(store.path("track", track))
        names = ClipNames(clip=clip.id, source=clip.source, person=clip.person)
        for family, key in unit_keys(names, track, [0, clip.frames[0], clip.frames[-1]], 96, facts).items():
            store.write(family, key, [("000000", [("jpg", b"face")])])
            mine[clip.person].add(store.path(family, key))
        key = f"{100 + number:064x}"
        store.write("content", key, [("content", [("json", json.dumps(clip.source[-8:] * 8).encode())])])
        mine[clip.person].add(store.path("content", key))
        store.write("packed", key, [("packed", [("json", b"{}"), ("arrow", clip.id.encode())])])
        mine[clip.person].add(store.path("packed", key))
    store.write("depth", "f" * 64, [("000000", [("dsz", b"made with other settings")])])
    assert all(len(paths) == 7 for paths in mine.values())
    done = purge(storage, people=["alice", "eve"], work=work)
    left = set(work.glob("*/*/*.tar"))
    assert left == mine["bob"] | mine["carol"] | mine["dave"]
    assert done.units == 15
    purge(storage, people=["bob"], work=None)
    assert set(work.glob("*/*/*.tar")) == left


def test_a_unit_that_may_be_anybodys_goes_too(tmp_path: Path) -> None:
    scores = {"sharpness": 50.0}
    clips = (replace(ALICE, scores=scores), replace(BOB, scores=scores), CAROL)
    storage = make_curated(tmp_path, clips).storage
    rows = {row["clip"]: row for row in ShardReader(storage).clips.to_pylist()}
    store = UnitStore(tmp_path / "work")
    for number, clip in enumerate(clips):
        store.write("track", f"{number:064x}", _track(clip, rows[clip.id]))
    purge(storage, people=["alice"], work=tmp_path / "work")
    assert [path.stem for path in (tmp_path / "work").glob("track/*/*.tar")] == [f"{2:064x}"]


def test_a_file_that_another_source_shares_is_still_known(tmp_path: Path) -> None:
    twin = replace(ALICE, name="set-twin-" + ALICE.source[-8:], person="alice2", split="train")
    storage = make_curated(tmp_path, (*CLIPS, twin)).storage
    work = tmp_path / "work"
    UnitStore(work).write("content", "a" * 64, [("content", [("json", json.dumps(ALICE.source[-8:] * 8).encode())])])
    purge(storage, sources=[ALICE.source], work=work)
    assert len(list(work.glob("content/*/*.tar"))) == 1
    purge(storage, people=["alice2"], work=work)
    assert not list(work.glob("content/*/*.tar"))


def test_the_index_still_leads_to_every_byte(storage: Storage) -> None:
    purge(storage, sources=[BOB.source])
    reader = ShardReader(storage)
    for row in range(len(reader)):
        sample = reader.sample(row)
        assert sample.meta.key == reader.key(row)
    assert np.isfinite(reader.index.column("time").to_numpy()).all()


def test_behind_an_address(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    storage = make_curated(Storage("memory://purge-me")).storage
    purge(storage, people=["bob"])
    assert {key.split("-")[1] for key in ShardReader(storage).index.column("key").to_pylist()} == {"alice", "carol", "dave"}
