"""The loader: the same batches whoever reads them, resumed anywhere, shared by processes, and safe memory."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_scenes import frame_sample, make_dataset

from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.codecs import CodecError, decode_image, encode_image
from datasets_toolkit.shards.reader import AddressBook, CachedStorage, decode_image_into
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.shards.storage import Storage, StorageError
from mggtalk.data.augment import PairTransform, Photometric
from mggtalk.data.batches import Cursor, EveryPair, Share, TrainBatches
from mggtalk.data.buffers import BlockWriter, BufferPool, Placed, ShapeError, tensors_of
from mggtalk.data.loader import PairLoader, Workers
from mggtalk.data.packed import PackedBatch
from mggtalk.data.pair_reader import Failure, PairReader, Work
from mggtalk.data.pairs import PairPlan, PairRule, Pairs, frame_table
from mggtalk.types import Camera

CLIPS, FRAMES, SIZE, SEED = 3, 8, 64, 5
RANDOM = PairTransform(size=48, flip=0.5, scale=0.2, shift=0.1)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return make_dataset(tmp_path_factory.mktemp("data"), CLIPS, FRAMES, SIZE, samples_per_shard=5)


def batches(reader: ShardReader, share: Share, pairs: int = 24) -> TrainBatches:
    return TrainBatches(PairPlan(frame_table(reader.index, reader.clips, "train"), PairRule(), pairs), share, SEED)


def same(first: PackedBatch, second: PackedBatch) -> bool:
    equal = all(torch.equal(left, right) for left, right in zip(tensors_of(first), tensors_of(second), strict=True))
    return equal and (first.epoch, first.number) == (second.epoch, second.number)


def joined(parts: tuple[PackedBatch, ...]) -> list[torch.Tensor]:
    return [torch.cat(tensors) for tensors in zip(*map(tensors_of, parts), strict=True)]


SPAWNED, FORKED = Workers(count=1, start="spawn"), Workers(count=2, start="fork")


@pytest.mark.parametrize("workers", [SPAWNED, FORKED, replace(FORKED, ahead=1)])
def test_workers_change_nothing(reader: ShardReader, workers: Workers) -> None:
    """Two epochs each: the first batches come by pickling, the later ones through lent memory."""
    transform = replace(RANDOM, photometric=Photometric()) if workers.start == "spawn" else RANDOM
    alone = PairLoader(reader, batches(reader, Share(4)), transform)
    others = PairLoader(reader, batches(reader, Share(4)), transform, workers)
    for _ in range(2):
        found = list(others)
        assert all(same(*both) for both in zip(alone, found, strict=True)) and len(found) == len(others) == 6
    assert others.state_dict() == alone.state_dict() and others.requests.cursor == Cursor(SEED, 1, 6)
    assert len(others._pool) >= 2


def test_resumes_in_mid_epoch_at_another_world_size(reader: ShardReader) -> None:
    unbroken = PairLoader(reader, batches(reader, Share(4)), RANDOM)
    expected = [*unbroken, *unbroken]
    broken = PairLoader(reader, batches(reader, Share(4)), RANDOM, Workers(count=1, start="fork"))
    for batch in broken:
        if batch.number == 2:
            break
    state = broken.state_dict()
    assert state["global_batch"] == 3, "the worker has read further, the trainer has not"
    ranks = [PairLoader(reader, batches(reader, Share(4, rank, 2)), RANDOM, Workers(count=rank, start="fork")) for rank in range(2)]
    for rank in ranks:
        rank.requests.cursor = Cursor(77)
        rank.load_state_dict(state)
    for step, parts in enumerate([*zip(*ranks, strict=True), *zip(*ranks, strict=True)], start=3):
        both = list(tensors_of(expected[step]))
        assert all(torch.equal(*pair) for pair in zip(joined(parts), both, strict=True)), step
    assert step == 11 and ranks[0].state_dict() == ranks[1].state_dict() == unbroken.state_dict()


class Counting(Storage):
    """Counts the bytes read of shards."""

    read_bytes = 0

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        data = super().read(name, offset, size)
        Counting.read_bytes += len(data) * name.endswith(".tar")
        return data


def test_skipped_samples_are_not_read(reader: ShardReader) -> None:
    counted = ShardReader(Counting(reader.storage.root))

    def cost(start: int) -> int:
        loader = PairLoader(counted, batches(counted, Share(4)))
        loader.load_state_dict({**loader.state_dict(), "global_batch": start})
        Counting.read_bytes = 0
        iterator = iter(loader)
        assert Counting.read_bytes == 0, "nothing is read before it is asked for"
        assert next(iterator).number == start
        return Counting.read_bytes

    assert 0.5 < cost(5) / cost(0) < 2


def test_a_state_loaded_after_iter_still_counts(reader: ShardReader) -> None:
    """Frameworks make the iterator early; where it starts is decided when the first batch is asked for."""
    loader = PairLoader(reader, batches(reader, Share(4)))
    iterator = iter(loader)
    loader.load_state_dict({**loader.state_dict(), "epoch": 2, "global_batch": 4})
    assert [batch.number for batch in iterator] == [4, 5]


def run_rank(rank: int, world: int, root: str, port_file: str, results: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=world)
    own = ShardReader(root)
    share = Share(6, torch.distributed.get_rank(), torch.distributed.get_world_size())
    train, val = PairLoader(own, batches(own, share)), PairLoader(own, EveryPair(Pairs(source=np.arange(7), target=np.arange(7)), share))
    steps = torch.tensor([len(list(train)), len(list(val))])
    torch.distributed.all_reduce(steps)  # hangs if a rank makes fewer steps than another
    rows = [batch.rows.tolist() for batch in train], [batch.rows[batch.valid].tolist() for batch in val]
    results.put((rank, steps.tolist(), *rows))
    torch.distributed.destroy_process_group()


def test_ranks_share_the_plan(reader: ShardReader, tmp_path: Path) -> None:
    """Two processes of a gloo group read disjoint parts of every global batch, whose union is the plan."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    options = (2, reader.storage.root, str(tmp_path / "group"), results)
    processes = [context.Process(target=run_rank, args=(rank, *options)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=100) for _ in processes)
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert [steps for _, steps, _, _ in found] == [[8, 4], [8, 4]]
    plan = batches(reader, Share(6)).plan.epoch(SEED, 1)  # the second pass is what they return
    whole = [batch for batches_of_ranks in zip(found[0][2], found[1][2], strict=True) for part in batches_of_ranks for batch in part]
    assert whole == np.stack([plan.source, plan.target], 1).tolist()
    shown = [row for _, _, _, val in found for batch in val for row in batch]
    assert sorted(shown) == [[row, row] for row in range(7)]


def test_validation_fills_the_last_batch_and_says_so(reader: ShardReader) -> None:
    pairs = Pairs(source=np.arange(5), target=np.arange(5)[::-1].copy())
    found = list(PairLoader(reader, EveryPair(pairs, Share(4))))
    assert [batch.valid.tolist() for batch in found] == [[True] * 4, [True] + [False] * 3]
    assert found[1].rows.tolist() == [[4, 0]] * 4 and torch.equal(found[1].source.image[0], found[1].source.image[3])


def test_what_is_random_depends_on_seed_epoch_and_position(reader: ShardReader) -> None:
    """The same two frames again and again, each time in another crop, and each time the same one."""

    def windows(seed: int, epoch: int) -> list[bytes]:
        one = PairReader(reader.storage, RANDOM)
        book, rows = AddressBook(reader, ("image", "landmarks", "meta")), np.zeros(4, np.int64)
        request = replace(next(iter(EveryPair(Pairs(source=rows, target=rows + 1), Share(4), seed))), epoch=epoch)
        batch = one[Work(request=request, source=[book[0]] * 4, target=[book[1]] * 4, block=None)]
        return [bytes(matrix.numpy()) for matrix in batch.source.source_to_crop]

    found = [windows(seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({window for one in found for window in one}) == 12
    assert windows(0, 1) == found[1]


def test_what_is_read_is_what_was_packed(reader: ShardReader) -> None:
    (batch,) = PairLoader(reader, EveryPair(Pairs(source=np.array([3]), target=np.array([12])), Share(1)))
    for row, frame in ((3, batch.source), (12, batch.target)):
        sample = reader.sample(row)
        torch.testing.assert_close(frame.image[0].numpy(), sample.image)
        np.testing.assert_array_equal(frame.parsing[0], sample.parsing)
        np.testing.assert_array_equal(frame.matte[0], sample.matte)
        np.testing.assert_array_equal(frame.landmarks[0], sample.landmarks)
        np.testing.assert_allclose(frame.camera.head_to_camera[0], sample.meta.head_to_camera, atol=1e-5)
        made = frame_sample(sample.meta.clip, sample.meta.index, SIZE)
        assert np.abs(sample.image.astype(int) - made.image).mean() < 3
    np.testing.assert_array_equal(batch.source.depth[0], reader.sample(3).depth)
    assert batch.target.depth is None and batch.target.normals is None, "targets need no surface"


def copied(reader: ShardReader, tmp_path: Path) -> Path:
    shutil.copytree(reader.storage.root, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("count", [0, 1])
def test_a_damaged_sample_is_one_line(reader: ShardReader, tmp_path: Path, count: int) -> None:
    root = copied(reader, tmp_path)
    row = 4
    address = AddressBook(reader, ("image",))[row]
    with (root / address.shard).open("r+b") as file:
        file.seek(address.spans["image"][0] + 30)
        file.write(bytes(200))
    broken = ShardReader(root)
    listed = EveryPair(Pairs(source=np.array([0, row]), target=np.array([1, 2])), Share(1))
    iterator = iter(PairLoader(broken, listed, workers=Workers(count=count, start="fork")))
    next(iterator)
    with pytest.raises(UserError, match=rf"{address.shard}: sample {address.key}, member jpg: .*build it again") as caught:
        next(iterator)
    assert "Traceback" not in str(caught.value)


def test_a_missing_column_is_told(reader: ShardReader, tmp_path: Path) -> None:
    small = make_dataset(tmp_path, 1, 4, 32, columns=("image", "landmarks"))
    with pytest.raises(UserError, match="has no column 'parsing', only image, landmarks, meta; ask for others"):
        PairLoader(small, batches(small, Share(2), 4))


def test_crops_of_different_sizes_are_told(tmp_path: Path) -> None:
    """With and without lent memory."""
    small, large = (make_dataset(tmp_path / name, 1, 2, size) for name, size in (("a", 32), ("b", 48)))
    shutil.copy(tmp_path / "b/shards/train-000000.tar", tmp_path / "a/shards/other.tar")
    columns = ("image", "landmarks", "meta")
    first, second = AddressBook(small, columns)[0], replace(AddressBook(large, columns)[0], shard="shards/other.tar")
    (request,) = EveryPair(Pairs(source=np.arange(2), target=np.arange(2)), Share(2))
    pool = BufferPool()
    for addresses, sound in (([first, first], True), ([first, second], False)):
        for block in (None, pool.lend()):
            work = Work(request=request, source=addresses, target=addresses, block=block)
            found = PairReader(small.storage, PairTransform())[work]
            if sound and block is None:
                pool.learn(found)
            elif not sound:
                assert isinstance(found, Failure) and "different" in found.message and found.message.endswith("set the transform's size")
    resized = PairReader(small.storage, PairTransform(size=40))[replace(work, block=None)]
    assert resized.source.image.shape == (2, 40, 40, 3)


def test_a_block_holds_the_records_that_were_placed() -> None:
    cameras = [Camera(intrinsics=torch.full((3, 3), value), head_to_camera=torch.full((4, 4), -value)) for value in (1.0, 2.0)]
    pool = BufferPool()
    assert pool.lend() is None, "the size of the blocks is not known yet"
    pool.learn(Camera(intrinsics=torch.zeros(2, 3, 3), head_to_camera=torch.zeros(2, 4, 4)))
    name = pool.lend()
    places = BlockWriter().place(lambda number, _: cameras[number], 2, name)
    opened = pool.open(Placed(block=name, places=places, values={}))
    assert opened.intrinsics[:, 0, 0].tolist() == [1, 2] and opened.head_to_camera[:, 3, 3].tolist() == [-1, -2]
    with pytest.raises(ShapeError, match="does not fit"):
        BlockWriter().place(lambda *_: cameras[0], 9, name)
    with pytest.raises(TypeError, match="one process"):
        pickle.dumps(pool)


def test_memory_is_lent_again_only_when_no_tensor_looks_into_it(reader: ShardReader) -> None:
    loader = PairLoader(reader, batches(reader, Share(4)), RANDOM, Workers(count=1, start="fork"))
    expected = [batch.map(torch.clone) for batch in loader]
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "global_batch": 0})
    kept, views = [], []
    for batch in loader:
        (kept if batch.number % 2 else views).append(batch if batch.number % 2 else batch.source.image[1:, ::2].permute(0, 3, 1, 2))
    del batch
    gc.collect()
    assert all(same(batch, expected[batch.number]) for batch in kept), "kept batches were not overwritten"
    assert all(torch.equal(view, expected[2 * place].source.image[1:, ::2].permute(0, 3, 1, 2)) for place, view in enumerate(views))
    blocks = len(loader._pool)
    assert blocks >= 5
    kept.clear()
    views.clear()
    for _ in range(3):
        Counter(batch.number for batch in loader)
    assert len(loader._pool) <= blocks, "blocks come back when their tensors are gone"


def test_leaving_an_epoch_early_loses_no_memory(reader: ShardReader) -> None:
    loader = PairLoader(reader, batches(reader, Share(4)), RANDOM, Workers(count=2, start="fork"))
    sizes = []
    for _ in range(8):
        for batch in loader:
            if batch.number == 4:
                break
        sizes.append(len(loader._pool))
        loader.requests.set_epoch(loader.requests.cursor.epoch + 1)
    assert sizes[-1] == sizes[3] <= 8


@pytest.fixture
def remote(reader: ShardReader) -> Iterator[str]:
    """The data set in fsspec's memory."""
    fsspec = pytest.importorskip("fsspec")
    files, root = fsspec.filesystem("memory"), f"/remote-{threading.get_ident()}"
    for path in Path(reader.storage.root).rglob("*"):
        if path.is_file():
            files.pipe(f"{root}/{path.relative_to(reader.storage.root).as_posix()}", path.read_bytes())
    yield f"memory:/{root}"
    files.rm(root, recursive=True)


def test_remote_shards_are_copied_once(reader: ShardReader, remote: str, tmp_path: Path) -> None:
    cached = ShardReader(CachedStorage(remote, tmp_path / "cache"))
    plain = PairLoader(reader, batches(reader, Share(4)), RANDOM)
    near = PairLoader(cached, batches(cached, Share(4)), RANDOM)
    assert all(same(*both) for both in zip(plain, near, strict=True))
    copies = sorted(path for path in (tmp_path / "cache").iterdir() if path.suffix == ".tar")
    assert [path.stem for path in copies] == sorted(shard.sha256 for shard in reader.info.shards)
    before = [path.stat().st_mtime_ns for path in copies]
    again = ShardReader(CachedStorage(remote, tmp_path / "cache"))
    assert again.sample(0).meta.key == reader.sample(0).meta.key
    assert [path.stat().st_mtime_ns for path in copies] == before
    straight = PairLoader(ShardReader(remote), batches(cached, Share(4)), RANDOM)
    assert same(next(iter(straight)), next(iter(PairLoader(reader, batches(reader, Share(4)), RANDOM))))


def test_a_wrong_remote_shard_is_not_kept(reader: ShardReader, remote: str, tmp_path: Path) -> None:
    import fsspec

    name = reader.info.shards[0].name
    fsspec.filesystem("memory").pipe(f"{remote.removeprefix('memory:/')}/{name}", b"other bytes")
    with pytest.raises(StorageError, match=f"{name}: is not the shard that dataset.json lists; copy it again"):
        CachedStorage(remote, tmp_path).read(name, 0, 4)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_pictures_decode_into_given_memory() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    data = encode_image(image)
    memory = np.zeros((40, 56, 3), np.uint8)
    assert decode_image_into(data, memory) is memory
    np.testing.assert_array_equal(memory, decode_image(data))
    for wrong, out in ((data, np.zeros((56, 40, 3), np.uint8)), (data[:300], memory), (b"", memory)):
        with pytest.raises(CodecError, match="build it again"):
            decode_image_into(wrong, out)


def test_a_worker_gets_back_what_it_has_mapped() -> None:
    pool = BufferPool()
    pool.learn(Camera(intrinsics=torch.zeros(2, 3, 3), head_to_camera=torch.zeros(2, 4, 4)))
    lent = {worker: pool.lend(worker) for worker in (0, 1, 2)}
    pool.reclaim()
    assert {worker: pool.lend(worker) for worker in (1, 2, 0)} == lent
    pool.reclaim()
    assert pool.lend(7) in lent.values()  # another's before a new one
    assert len(pool) == 3
    pool.close()
