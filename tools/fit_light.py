"""Fit what faces have in common under light, ``mggtalk/assets/face_light.safetensors``, on the training people of a data set.

    python tools/fit_light.py --shards FOLDER --output mggtalk/assets/face_light.safetensors

Pairs of frames of one clip are compared at the vertices of the tracked mesh (:mod:`mggtalk.geometry.light` has the letters). The
pattern p is what vertices show about the frame's mean, averaged over frames in which they face the camera; the trust of a vertex falls with
the variance about it. Then L and g are least squares of what logarithms of brightness change by, clipped, over all pairs and vertices. No
renderer and no network has part in it. Printed is the share of that change (energy) which they explain, on training people and on others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from datasets_toolkit.cli import run
from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.shards.storage import Storage
from mggtalk.data.augment import PairTransform
from mggtalk.data.batches import EveryPair, Share
from mggtalk.data.loader import PairLoader, Workers
from mggtalk.data.packed import unpack_frame
from mggtalk.data.pairs import FrameTable, Pairs, frame_table
from mggtalk.geometry.face_model import FaceModel
from mggtalk.geometry.light import FACING, camera_normals, fitted_light, log_brightness
from mggtalk.types import TensorRecord, cat

CLIPPED = 0.5
"""Largest change of a logarithm that counts: what changes more is a hand, a shadow, a mouth."""
SPREAD = 0.02
"""Variance about the pattern at which a vertex is trusted half as much as one that never varies."""


@dataclass(frozen=True, kw_only=True)
class Seen(TensorRecord):
    """Both frames of pairs, source first."""

    brightness: Float[Tensor, "n 2 v"]  # logarithms
    normals: Float[Tensor, "n 2 v 3"]

    @property
    def facing(self) -> Bool[Tensor, "n 2 v"]:
        """Which vertices are seen well."""
        return self.normals[..., 2] < -FACING


def chosen(table: FrameTable, count: int, seed: int = 0) -> Pairs:
    """``count`` pairs of different frames of each clip that has two.

    Raises:
        UserError: there is none.
    """
    generator = np.random.default_rng(seed)
    source, target = [], []
    for span in table.spans():
        length = span.stop - span.start
        if length > 1:
            first = generator.integers(0, length, count)
            source.append(table.rows[span][first])
            target.append(table.rows[span][(first + generator.integers(1, length, count)) % length])
    if not source:
        raise UserError("index.parquet: no clip of two frames; build more")
    return Pairs(source=np.concatenate(source), target=np.concatenate(target))


def look(reader: ShardReader, split: str, count: int, size: int) -> Seen:
    """Pairs of a split."""
    face = FaceModel()
    requests = EveryPair(chosen(frame_table(reader.index, reader.clips, split), count), Share(16, 0, 1), 0)
    loader = PairLoader(reader, requests, PairTransform(size=size).plain(), Workers(count=0), (), ())

    def batches() -> Iterator[Seen]:
        for batch in tqdm(loader, desc=split, unit="batch", dynamic_ncols=True):
            frames = [unpack_frame(packed, face)[batch.valid] for packed in (batch.source, batch.target)]
            yield Seen(
                brightness=torch.stack([log_brightness(frame.image, frame.mesh, frame.camera) for frame in frames], 1),
                normals=torch.stack([camera_normals(frame.mesh, frame.camera, face.triangles) for frame in frames], 1),
            )

    return cat(list(batches()))


def pattern(seen: Seen) -> tuple[Float[Tensor, " v"], Float[Tensor, " v"]]:
    """What vertices show about the mean of their frame, and the trust that each deserves."""
    facing = seen.facing[:, 0].double()
    brightness = seen.brightness[:, 0].double()
    centred = brightness - (facing * brightness).sum(1, keepdim=True) / facing.sum(1, keepdim=True).clamp(min=1)
    count = facing.sum(0).clamp(min=1)
    mean = (facing * centred).sum(0) / count
    variance = (facing * (centred - mean).square()).sum(0) / count
    return mean.float(), (SPREAD / (SPREAD + variance) * (facing.sum(0) > 0)).float()


def changes(seen: Seen, mean: Tensor, trust: Tensor) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n v 4"]]:
    """What changes, and what by: normals, along three axes and along each source's own light; 0 where a vertex is not seen twice."""
    twice = seen.facing.all(1)
    own = fitted_light(seen.brightness[:, 0] - mean, seen.normals[:, 0], trust * seen.facing[:, 0])
    turned = seen.normals[:, 1] - seen.normals[:, 0]
    causes = torch.cat([turned, (turned * own[:, None]).sum(-1, keepdim=True)], -1)
    change = (seen.brightness[:, 1] - seen.brightness[:, 0]).clamp(-CLIPPED, CLIPPED)
    return change * twice, causes * twice[..., None]


def solved(change: Float[Tensor, "n v"], causes: Float[Tensor, "n v 4"]) -> Float[Tensor, " 4"]:
    """L and g, by least squares."""
    flat = causes.flatten(0, 1).double()
    return torch.linalg.solve(flat.mT @ flat, flat.mT @ change.flatten().double()).float()


def explained(change: Tensor, causes: Tensor, solution: Tensor) -> float:
    """Share of the energy."""
    return 1 - float((change - causes @ solution).square().sum() / change.square().sum())


def fit(parsed: argparse.Namespace) -> None:
    """Fit and write."""
    reader = ShardReader(Storage(str(parsed.shards)))
    seen = look(reader, "train", parsed.pairs, parsed.size)
    mean, trust = pattern(seen)
    change, causes = changes(seen, mean, trust)
    solution = solved(change, causes)
    print(f"L = {[round(value, 3) for value in solution[:3].tolist()]}, g = {float(solution[3]):.3f}; {len(change)} pairs")
    print(f"explained on train: {explained(change, causes, solution):.3f}")
    if parsed.check:
        change, causes = changes(look(reader, parsed.check, parsed.pairs, parsed.size), mean, trust)
        print(f"explained on {parsed.check}: {explained(change, causes, solution):.3f}")
    tensors = {"pattern": mean, "trust": trust, "common": solution[:3].contiguous(), "gain": solution[3].clone()}
    try:
        write_whole(parsed.output, save(tensors))
    except OSError as error:
        raise UserError(f"{parsed.output}: cannot be written ({error.strerror}); choose another --output") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="data set of mggdata build")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file")
    parser.add_argument("--pairs", type=int, default=64, help="of each clip (default %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (default %(default)s)")
    parser.add_argument("--check", default="val", help="split that it is tried on, or nothing (default %(default)s)")
    parser.set_defaults(function=fit)
    parsed = parser.parse_args(arguments)
    return run(parsed.function, parsed)


if __name__ == "__main__":
    raise SystemExit(main())
