"""A data set as a whole: samples by byte range, the index, ``dataset.json``, other readers, other places."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shard_scenes import frame_meta, frame_sample, make_dataset
from test_storage import bucket, s3_server  # noqa: F401 (fixtures)

from datasets_toolkit.annotators.pictures import COLOURS
from datasets_toolkit.faces.head_pose import euler_degrees
from datasets_toolkit.sample import SCHEMA_VERSION, FrameMeta, FrameSample
from datasets_toolkit.schema import Region
from datasets_toolkit.shards.codecs import COLUMNS, decode_depth, decode_image, decode_parsing, encode_sample
from datasets_toolkit.shards.dataset_info import MANIFESTS, DatasetInfo, ShardInfo, encode_info, file_sha256, read_info, write_info
from datasets_toolkit.shards.shard_reader import ShardReader, read_table
from datasets_toolkit.shards.storage import Storage, StorageError
from datasets_toolkit.shards.tars import ShardError, iterate_tar, scan_tar
from datasets_toolkit.shards.writer import index_row, pack, write_index, write_table

SIZE = 48


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return make_dataset(tmp_path_factory.mktemp("data") / "set", clips=2, frames=5, size=SIZE, gaps=(2,))


def assert_same(first: FrameSample, second: FrameSample) -> None:
    for one in fields(FrameSample):
        if one.name != "meta":
            np.testing.assert_array_equal(getattr(first, one.name), getattr(second, one.name))
    for one in fields(FrameMeta):
        np.testing.assert_array_equal(getattr(first.meta, one.name), getattr(second.meta, one.name))


def decoded(sample: FrameSample) -> FrameSample:
    """What a sample becomes through its codecs."""
    values: dict[str, Any] = {name: column.decode(column.encode(getattr(sample, name)), SIZE) for name, column in COLUMNS.items()}
    assert sample.depth is not None
    known = values["depth"] > 0
    vectors = decode_image(COLUMNS["normals"].encode(sample.normals)) / 127.5 - 1
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-3)
    values["normals"] = np.where(known[..., None], unit, 0).astype(np.float32)
    return FrameSample(**values)


def test_samples_come_back_by_byte_range(dataset: ShardReader) -> None:
    assert len(dataset) == 8
    for row in range(len(dataset)):
        clip, index = dataset.index["clip"][row].as_py(), dataset.index["index"][row].as_py()
        expected, found = decoded(frame_sample(clip, index, SIZE, person=clip.split("-")[0])), dataset.sample(row)
        assert found.normals is not None and found.normals.dtype == np.float32
        np.testing.assert_allclose(found.normals, expected.normals, atol=1e-5)
        assert_same(replace(found, normals=None), replace(expected, normals=None))


def test_only_the_columns_asked_for_are_decoded(dataset: ShardReader) -> None:
    whole, some = dataset.sample(3), dataset.sample(3, ["depth", "image"])
    assert_same(some, FrameSample(meta=whole.meta, image=whole.image, depth=whole.depth))
    assert_same(dataset.sample(3, []), FrameSample(meta=whole.meta))
    alone = dataset.sample(3, ["normals"]).normals
    assert alone is not None and whole.normals is not None
    both = (np.abs(alone).max(-1) > 0) & (np.abs(whole.normals).max(-1) > 0)
    np.testing.assert_array_equal(alone[both], whole.normals[both])
    assert both.sum() > 0.98 * (np.abs(whole.normals).max(-1) > 0).sum()


def test_encoded_members_are_those_of_the_tar(dataset: ShardReader) -> None:
    rows = {dataset.key(row): row for row in range(len(dataset))}
    for shard in dataset.info.shards:
        for key, members in iterate_tar(dataset.storage, shard.name):
            found = dataset.members(rows[key])
            assert [(COLUMNS[name].member, data) for name, data in found.items()] == members


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    reader = make_dataset(tmp_path / "set", clips=1, frames=1, size=SIZE, columns=("image", "parsing"))
    assert reader.columns == ("image", "parsing", "meta")
    assert reader.sample(0).depth is None
    with pytest.raises(KeyError, match="depth"):
        reader.sample(0, ["depth"])


def test_the_index_tells_of_every_sample(dataset: ShardReader) -> None:
    table = dataset.index.to_pydict()
    assert table["index"] == [0, 1, 3, 4] * 2  # frame 2 is a gap
    assert table["key"] == [f"{clip}_{index:06d}" for clip, index in zip(table["clip"], table["index"], strict=True)]
    np.testing.assert_allclose(table["time"], np.array(table["index"]) / 25)
    np.testing.assert_allclose(table["yaw"], [euler_degrees(dataset.sample(row, []).meta.head_to_camera)[0] for row in range(8)], atol=1e-4)
    np.testing.assert_allclose(table["mouth"], [index % 10 / 10 for index in table["index"]], atol=1e-6)
    np.testing.assert_allclose(table["expression"], [dataset.sample(row, []).meta.blendshapes for row in range(8)], atol=1e-6)
    spans = {entry.key: entry.members for shard in dataset.info.shards for entry in scan_tar(dataset.storage, shard.name)}
    for row, key in enumerate(table["key"]):
        for column in COLUMNS.values():
            assert spans[key][column.member] == (table[f"{column.name}.offset"][row], table[f"{column.name}.size"][row])


def test_the_record_of_the_set_proves_its_files(dataset: ShardReader) -> None:
    info = dataset.info
    assert sum(shard.samples for shard in info.shards) == len(dataset) == info.counts["samples"]
    for shard in info.shards:
        assert shard.sha256 == file_sha256(dataset.storage, shard.name)
        assert shard.bytes == dataset.storage.size(shard.name)
    assert info.manifests == {name: file_sha256(dataset.storage, name) for name in MANIFESTS}
    assert [column["member"] for column in info.columns] == [column.member for column in COLUMNS.values()]
    assert dataset.clips.num_rows == dataset.sources.num_rows == 2


def test_the_same_input_gives_the_same_files(dataset: ShardReader, tmp_path: Path) -> None:
    again = make_dataset(tmp_path / "other", clips=2, frames=5, size=SIZE, gaps=(2,))
    assert again.storage.list() == dataset.storage.list()
    for name in dataset.storage.list():
        assert again.storage.read(name) == dataset.storage.read(name), name


def test_packing_fills_shards_one_after_the_other(tmp_path: Path) -> None:
    samples = [(f"s_{number}", [("json", b"{}")]) for number in range(7)]
    packed = list(pack(Storage(tmp_path), "val", iter(samples), samples_per_shard=3))
    assert [(shard.name, shard.samples) for shard, _ in packed] == [(f"shards/val-{n:06d}.tar", count) for n, count in enumerate((3, 3, 1))]
    assert [entry.key for _, entries in packed for entry in entries] == [key for key, _ in samples]
    assert list(pack(Storage(tmp_path), "test", iter([]), samples_per_shard=3)) == []
    with pytest.raises(ValueError):
        list(pack(Storage(tmp_path), "val", iter(samples), samples_per_shard=0))


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    storage, meta = Storage(tmp_path), frame_meta("a-b_00", 0, SIZE)
    shard = ShardInfo(name="shards/train-000000.tar", split="train", samples=1, bytes=1, sha256="0" * 64)
    ((_, (entry,)),) = pack(storage, "train", [(meta.key, [("json", b"{}")])], samples_per_shard=1)
    with pytest.raises(ValueError, match="members"):
        write_index(storage, [index_row(meta, entry, shard)], ["image", "meta"])
    with pytest.raises(ValueError, match="does not belong"):
        index_row(replace(meta, key="other"), entry, shard)
    write_index(storage, [index_row(replace(meta, scores={}), entry, shard)], ["meta"])
    assert np.isnan(read_table(storage, "index.parquet")["mouth"][0].as_py())


def damaged(dataset: ShardReader, folder: Path, row: int, column: str, data: bytes) -> ShardReader:
    """A copy of the data set with other bytes at the start of a member."""
    for name in dataset.storage.list():
        Storage(folder).write(name, dataset.storage.read(name))
    path = folder / dataset.index["shard"][row].as_py()
    raw, offset = bytearray(path.read_bytes()), dataset.index[f"{column}.offset"][row].as_py()
    raw[offset : offset + len(data)] = data
    path.write_bytes(raw)
    return ShardReader(folder)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_damaged_member_names_shard_sample_and_member(dataset: ShardReader, tmp_path: Path, column: str) -> None:
    reader = damaged(dataset, tmp_path, 4, column, b"\xff" * 40)
    with pytest.raises(ShardError) as caught:
        reader.sample(4)
    message = str(caught.value)
    assert "\n" not in message and reader.key(4) in message and COLUMNS[column].member in message
    assert str(tmp_path / dataset.index["shard"][4].as_py()) in message
    reader.sample(0)


def test_an_index_of_other_shards_is_found_out(dataset: ShardReader, tmp_path: Path) -> None:
    for name in dataset.storage.list():
        Storage(tmp_path).write(name, dataset.storage.read(name))
    swapped = dataset.index.set_column(0, dataset.index.schema.field("key"), [dataset.index["key"].to_pylist()[::-1]])
    write_table(Storage(tmp_path), "index.parquet", swapped)
    with pytest.raises(ShardError, match="do not belong together"):
        ShardReader(tmp_path).sample(0, [])


def test_a_missing_shard_or_table_is_told(dataset: ShardReader, tmp_path: Path) -> None:
    for name in dataset.storage.list():
        Storage(tmp_path).write(name, dataset.storage.read(name))
    (tmp_path / dataset.info.shards[0].name).unlink()
    with pytest.raises(StorageError, match="no such file"):
        ShardReader(tmp_path).sample(0)
    (tmp_path / "index.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(StorageError, match="Parquet"):
        len(ShardReader(tmp_path))
    (tmp_path / "index.parquet").unlink()
    with pytest.raises(StorageError, match="no such file"):
        len(ShardReader(tmp_path))


INFO = DatasetInfo(
    config={"size": 512, "scores": [1.5]}, columns=[], annotators=[{"family": "depth"}],
    shards=[ShardInfo(name="shards/train-000000.tar", split="train", samples=3, bytes=10240, sha256="ab" * 32)],
    counts={"samples": 3}, manifests={"index.parquet": "cd" * 32},
)  # fmt: skip


def test_the_record_of_the_set_comes_back(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_info(storage, INFO)
    assert read_info(storage) == INFO
    assert storage.read("dataset.json") == encode_info(replace(INFO, config={"scores": [1.5], "size": 512}))
    with pytest.raises(ValueError):
        write_info(storage, replace(INFO, config={"size": float("nan")}))
    assert read_info(storage) == INFO


def test_another_schema_is_refused_with_advice(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_info(storage, replace(INFO, schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(StorageError, match="install a newer version"):
        read_info(storage)
    with pytest.raises(StorageError, match="install a newer version"):
        len(ShardReader(tmp_path))
    write_info(storage, replace(INFO, schema_version=SCHEMA_VERSION - 1))
    with pytest.raises(StorageError, match="build the data set again"):
        ShardReader(tmp_path).sample(0)


RECORD = json.loads(encode_info(INFO))


def with_shard(**changes: object) -> dict[str, object]:
    return RECORD | {"shards": [RECORD["shards"][0] | changes]}


@pytest.mark.parametrize(
    "record",
    [
        None, [], {}, {"schema_version": SCHEMA_VERSION}, RECORD | {"more": 1}, RECORD | {"counts": []}, RECORD | {"shards": [{}]},
        with_shard(name="../../x.tar"), with_shard(name="/x.tar"), with_shard(name=5), with_shard(samples=-1), with_shard(samples="3"),
        with_shard(sha256="x"), with_shard(sha256=5), with_shard(split="nowhere"), RECORD | {"shards": [5]},
    ],
)  # fmt: skip
def test_other_records_are_refused(tmp_path: Path, record: object) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    with pytest.raises(StorageError, match="not the record of a data set") as caught:
        read_info(Storage(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_unfinished_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no finished data set"):
        ShardReader(tmp_path).info  # noqa: B018


def _read_rows(reader: ShardReader, rows: list[int], queue: Any) -> None:
    queue.put([int(reader.sample(row, ["image"]).image.sum()) for row in rows])  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_reader_already_in_use(dataset: ShardReader, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    sums = [int(dataset.sample(row, ["image"]).image.sum()) for row in range(8)]  # type: ignore[union-attr]
    context = multiprocessing.get_context(method)
    queues = [context.Queue() for _ in range(2)]
    wanted = [[0, 3, 5], [7, 2, 2]]
    children = [context.Process(target=_read_rows, args=(dataset, *one), daemon=True) for one in zip(wanted, queues, strict=True)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for queue in queues] == [[sums[row] for row in rows] for rows in wanted]
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def test_a_pickled_reader_holds_no_tables(dataset: ShardReader) -> None:
    len(dataset)
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    assert_same(pickle.loads(data).sample(1), dataset.sample(1))


def same_elsewhere(dataset: ShardReader, storage: Storage) -> None:
    reader = make_dataset(storage, clips=2, frames=5, size=SIZE, gaps=(2,))
    assert storage.list() == dataset.storage.list()
    for name in storage.list():
        assert storage.read(name) == dataset.storage.read(name)
    fresh = ShardReader(storage)
    assert fresh.info == dataset.info
    for row in range(len(reader)):
        assert_same(fresh.sample(row), dataset.sample(row))


def test_the_same_set_in_memory(dataset: ShardReader, tmp_path: Path) -> None:
    same_elsewhere(dataset, Storage(f"memory://{tmp_path.name}/set"))


def test_the_same_set_in_an_object_store(dataset: ShardReader, bucket: Storage) -> None:  # noqa: F811
    same_elsewhere(dataset, bucket)
    with pytest.raises(StorageError, match="no such file"):
        bucket.read("shards/train-000099.tar")


def shard_paths(dataset: ShardReader) -> list[str]:
    return [dataset.storage.address(shard.name) for shard in dataset.info.shards]


def same_as_json(record: dict[str, Any], meta: FrameMeta) -> None:
    assert (record["key"], record["index"], record["time"]) == (meta.key, meta.index, meta.time)
    np.testing.assert_array_equal(record["head_to_camera"], meta.head_to_camera)
    np.testing.assert_array_equal(record["blendshapes"], meta.blendshapes)
    assert record["scores"] == meta.scores


def test_stock_webdataset_reads_the_same_values(dataset: ShardReader) -> None:
    """With its own decoders for jpg, png, npy and json; png labels come in the palette's colours."""
    wds = pytest.importorskip("webdataset")
    rows = {dataset.key(row): row for row in range(len(dataset))}
    found = list(wds.WebDataset(shard_paths(dataset), shardshuffle=False, empty_check=False).decode("rgb8"))
    assert [sample["__key__"] for sample in found] == list(rows)
    palette = np.array([COLOURS[region] for region in Region])
    for sample in found:
        ours = dataset.sample(rows[sample["__key__"]])
        assert ours.parsing is not None and ours.matte is not None
        np.testing.assert_array_equal(sample["jpg"], ours.image)
        np.testing.assert_array_equal(sample["parsing.png"], palette[ours.parsing])
        np.testing.assert_array_equal(sample["matte.png"], np.repeat(ours.matte[..., None], 3, 2))
        for name in ("landmarks", "audio", "mel"):
            np.testing.assert_array_equal(sample[f"{name}.npy"], getattr(ours, name))
        np.testing.assert_array_equal(sample["normals.jpg"], decode_image(dataset.members(rows[sample["__key__"]])["normals"]))
        same_as_json(sample["json"], ours.meta)
        np.testing.assert_array_equal(decode_depth(sample["depth.dsz"]), ours.depth)


def test_webdataset_with_our_decoders(dataset: ShardReader) -> None:
    wds = pytest.importorskip("webdataset")
    handlers = [wds.handle_extension("parsing.png", decode_parsing), wds.handle_extension("depth.dsz", decode_depth)]
    found = list(wds.WebDataset(shard_paths(dataset), shardshuffle=False, empty_check=False).decode(*handlers, "rgb8"))
    for row, sample in enumerate(found):
        np.testing.assert_array_equal(sample["parsing.png"], dataset.sample(row, ["parsing"]).parsing)
        np.testing.assert_array_equal(sample["depth.dsz"], dataset.sample(row, ["depth"]).depth)


def test_hugging_face_datasets_reads_the_same_values(dataset: ShardReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(
        "webdataset", data_files={"train": shard_paths(dataset)}, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert found["__key__"] == dataset.index["key"].to_pylist()
    for row, sample in enumerate(found):
        ours = dataset.sample(row)
        np.testing.assert_array_equal(np.asarray(sample["jpg"]), ours.image)
        np.testing.assert_array_equal(np.asarray(sample["parsing.png"]), ours.parsing)
        np.testing.assert_array_equal(np.asarray(sample["matte.png"]), ours.matte)
        for name in ("landmarks", "audio", "mel"):
            np.testing.assert_array_equal(np.asarray(sample[f"{name}.npy"], getattr(ours, name).dtype), getattr(ours, name))
        same_as_json(sample["json"], ours.meta)
        np.testing.assert_array_equal(decode_depth(sample["depth.dsz"]), ours.depth)


def test_pillow_and_numpy_read_extracted_members(dataset: ShardReader) -> None:
    members, ours = dataset.members(0), dataset.sample(0)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(members["image"]))), ours.image)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(members["parsing"]))), ours.parsing)
    np.testing.assert_array_equal(np.load(io.BytesIO(members["mel"]), allow_pickle=False), ours.mel)


def test_tables_do_not_abort_a_process_that_ends_at_once(dataset: ShardReader) -> None:
    code = "import sys; from datasets_toolkit.shards.shard_reader import ShardReader; print(len(ShardReader(sys.argv[1])))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code, dataset.storage.root], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout == "8\n"


def encoded_once() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    sample = frame_sample("ball", 0, SIZE)
    yield sample.meta.key, encode_sample(sample)
    raise RuntimeError("stop here")


def test_a_set_that_failed_half_way_has_whole_shards_only(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        list(pack(Storage(tmp_path), "train", encoded_once(), samples_per_shard=1))
    assert Storage(tmp_path).list() == ["shards/train-000000.tar"]
    assert len(scan_tar(Storage(tmp_path), "shards/train-000000.tar")) == 1
