"""Time our loader of pairs (two pictures, parsing and depth) against decoding alone, webdataset and litdata, all on the same frames.

    python benchmarks/loader.py [--quick] [--workers 2] [--data DATASET] [--json results.json]

The floor is what the same number of processes decode in a bare loop over bytes in memory, with the same decoders, and throw away. Read the
ratios, which are medians over rounds that run everything once. Where other programs run too, the processor time that all processes of a
loader spend on a pair tells more than the rate.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from loader_data import PNG_STEPS, make_dataset, pair_members, pairs_of, write_litdata, write_webdataset

from datasets_toolkit.shards.codecs import decode_depth, decode_image, decode_parsing
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.data.batches import Share, TrainBatches
from mggtalk.data.loader import PairLoader, Workers, start_worker
from mggtalk.data.pairs import PairPlan, PairRule, frame_table

FLOOR = "floor"
OURS = "ours"
Sample = dict[str, Any]


def decode(members: dict[str, bytes]) -> Sample:
    """A pair as every loader gives it."""
    return {
        "source": decode_image(members["source"]),
        "target": decode_image(members["target"]),
        "parsing": decode_parsing(members["parsing"]),
        "depth": decode_png(members["png"]) if "png" in members else decode_depth(members["depth"]),
    }


def decode_png(data: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) * np.float32(1 / PNG_STEPS))


class Measured(NamedTuple):
    """Pairs a second, and milliseconds of processor time for each pair, all processes together."""

    rate: float
    cost: float


def spin(members: list[dict[str, bytes]], count: int, barrier: Any, results: Any) -> None:
    """One process of the floor."""
    start_worker()
    for one in members[:8]:
        decode(one)
    barrier.wait()
    begin, spent = time.perf_counter(), time.process_time()
    for number in range(count):
        one = members[number % len(members)]
        decode_image(one["source"])
        decode_image(one["target"])
        decode_parsing(one["parsing"])
        decode_depth(one["depth"])
    results.put((time.perf_counter() - begin, time.process_time() - spent))


def floor(members: list[dict[str, bytes]], workers: int, count: int) -> Measured:
    """Bare decoding."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=spin, args=(members, count // workers, barrier, results)) for _ in range(workers)]
    for process in processes:
        process.start()
    times = [results.get() for _ in processes]
    for process in processes:
        process.join()
    each = count // workers
    return Measured(sum(each / seconds for seconds, _ in times), 1000 * sum(spent for _, spent in times) / (each * workers))


def measure_loader(batches: Callable[[], Iterable[Any]], batch: int, warm: int, count: int) -> Measured:
    """A loader once ``warm`` batches have come: then all workers run and nothing waits that was prepared before."""
    number, last = 0, warm + -(-count // batch)
    while True:
        for _ in batches():
            number += 1
            if number == warm:
                begin, spent = time.perf_counter(), processor_time()
            if number == last:
                pairs = (last - warm) * batch
                return Measured(pairs / (time.perf_counter() - begin), 1000 * (processor_time() - spent) / pairs)


def processor_time() -> float:
    """Seconds that this process and its workers have computed so far; NaN where the system has no /proc."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if not stat.exists():
            return math.nan
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def ours(root: str, split: str, batch: int, workers: int, start: str) -> Callable[[], Iterable[Any]]:
    reader = ShardReader(root)
    plan = PairPlan(frame_table(reader.index, reader.clips, split), PairRule())
    loader = PairLoader(
        reader,
        TrainBatches(plan, Share(batch)),
        workers=Workers(count=workers, start=start),  # type: ignore[arg-type]
        source_labels=("parsing", "depth"),
        target_labels=(),
    )
    return lambda: loader


def web(paths: list[str], batch: int, workers: int, start: str) -> Callable[[], Iterable[Any]]:
    """Stock webdataset over tars of pairs: its own tar reader, shuffle, batching and loader."""
    import webdataset

    data = webdataset.WebDataset(paths, shardshuffle=len(paths), seed=1, empty_check=False, workersplitter=webdataset.split_by_worker)
    data = data.shuffle(16).map(decode_web).batched(batch, collation_fn=collate, partial=False)
    loader = webdataset.WebLoader(data, batch_size=None, num_workers=workers, multiprocessing_context=start, persistent_workers=True)
    return lambda: loader


def decode_web(sample: Sample) -> Sample:
    names = {"source": "source.jpg", "target": "target.jpg", "parsing": "parsing.png", "depth": "depth.dsz", "png": "depth.png"}
    return decode({name: sample[member] for name, member in names.items() if member in sample})


def collate(samples: list[Sample]) -> Sample:
    return dict(torch.utils.data.default_collate(samples))


def lit(folder: str, batch: int, workers: int, start: str) -> Callable[[], Iterable[Any]]:
    """Stock litdata over its own chunks of pairs."""
    import litdata

    class Pairs(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Sample:
            return decode(super().__getitem__(index))

    globals()["Pairs"] = Pairs  # spawned processes look it up by name
    Pairs.__qualname__ = "Pairs"
    data = Pairs(folder, shuffle=True, seed=1, drop_last=True)
    options = {"num_workers": workers, "multiprocessing_context": start, "persistent_workers": True}
    loader = litdata.StreamingDataLoader(data, batch_size=batch, **options)
    return lambda: loader


def contestants(reader: ShardReader, folder: Path, parsed: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Iterable[Any]]]]:
    """Every loader by name, its data written."""
    split = parsed.split
    options = (parsed.batch, parsed.workers, parsed.start)
    yield OURS, ours(reader.storage.root, split, *options)
    yield "webdataset, same codecs", web(write_webdataset(reader, folder / "web", split, png=False), *options)
    yield "webdataset, PNG16 depth", web(write_webdataset(reader, folder / "png", split, png=True), *options)
    try:
        yield "litdata", lit(write_litdata(reader, folder / "lit", split), *options)
    except ImportError as error:
        print(f"litdata is left out: {error}", file=sys.stderr)


def arguments_of(line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few small frames, one round: shows that it runs, measures nothing")
    parser.add_argument("--data", help="a built data set (default: made frames of 512 pixels a side)")
    parser.add_argument("--split", default="train")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, help="measured for each loader and round (default 600; with --quick 32)")
    parser.add_argument("--rounds", type=int, help="(default 5; with --quick 1)")
    parser.add_argument("--start", choices=("spawn", "fork", "forkserver"), default="fork", help="of the workers of all loaders")
    parser.add_argument("--json", type=Path, help="file for the results")
    parsed = parser.parse_args(line)
    parsed.pairs = parsed.pairs or (32 if parsed.quick else 600)
    parsed.rounds = parsed.rounds or (1 if parsed.quick else 5)
    return parsed


def measure(parsed: argparse.Namespace, folder: Path) -> dict[str, list[Measured]]:
    """Each loader in each round."""
    count, size = (40, 128) if parsed.quick else (240, 512)
    reader = ShardReader(parsed.data) if parsed.data else make_dataset(folder / "ours", count, size)
    members = [pair_members(reader, pair) for pair in pairs_of(reader, parsed.split)[:48]]
    sizes = {name: round(statistics.mean(len(one[name]) for one in members) / 1024) for name in members[0]}
    print(f"KiB of a pair's members: {sizes}", file=sys.stderr)
    loaders = dict(contestants(reader, folder, parsed))
    rates: dict[str, list[Measured]] = {FLOOR: [], **{name: [] for name in loaders}}
    warm = 12 * parsed.workers
    for _ in range(parsed.rounds):
        rates[FLOOR].append(floor(members, parsed.workers, parsed.pairs))
        for name, batches in loaders.items():
            rates[name].append(measure_loader(batches, parsed.batch, warm, parsed.pairs))
    return rates


def table(rates: dict[str, list[Measured]]) -> str:
    head = ("loader", "pairs/s, best", "share of the floor's rate", "processor ms a pair, least", "floor's share of it")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, values in rates.items():
        both = list(zip(values, rates[FLOOR], strict=True))
        rate, cost = (statistics.median(shares) for shares in ([v.rate / f.rate for v, f in both], [f.cost / v.cost for v, f in both]))
        lines.append(f"| {name} | {max(v.rate for v in values):.0f} | {rate:.2f} | {min(v.cost for v in values):.2f} | {cost:.2f} |")
    return "\n".join(lines)


def main(line: Sequence[str] | None = None) -> None:
    parsed = arguments_of(line)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="loader-"))
    try:
        rates = measure(parsed, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(rates))
    if parsed.json:
        settings = {name: getattr(parsed, name) for name in ("workers", "batch", "pairs", "rounds", "start", "data")}
        results = {name: [one._asdict() for one in values] for name, values in rates.items()}
        parsed.json.write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
