"""Fit what faces have in common under light, ``mggtalk/assets/face_light.safetensors``, on the training people of a data set.

    python tools/fit_light.py --shards FOLDER --output mggtalk/assets/face_light.safetensors

Pairs of frames of one clip are compared at the vertices of the tracked mesh (:mod:`mggtalk.geometry.light` has the letters). The
pattern p is what vertices show about the frame's mean, averaged over frames in which they face the camera; the trust of a vertex falls with
the variance about it. Then L and g are least squares of what logarithms of brightness change by, clipped, over all pairs and vertices. What
that leaves, less :data:`SHARE` of it as it ships, is what the folds f explain: a ridge on the movement of the mesh, in which vertices count
the less the farther they are, of all pairs and of their mirror images. No renderer and no network has part in it. Printed is the share of
the change (energy) that is explained, on training people and on others.
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
from mggtalk.geometry.light import FACING, LIMIT, SHARE, camera_normals, fitted_light, log_brightness, log_channels
from mggtalk.types import TensorRecord, cat

CLIPPED = 0.5
"""Largest change of a logarithm that counts: what changes more is a hand, a shadow, a mouth."""
SPREAD = 0.02
"""Variance about the pattern at which a vertex is trusted half as much as one that never varies."""
NEAR, FAR = 1.5, 0.02
"""How far (cm) a vertex is near another, as a standard deviation; and how much any counts."""
STIFF = 3.0
"""Weight of the belief that there are no folds; the larger, the fewer. Between 1 and 10 other people's are explained alike."""


@dataclass(frozen=True, kw_only=True)
class Seen(TensorRecord):
    """Both frames of pairs, source first."""

    brightness: Float[Tensor, "n 2 v"]  # logarithms
    channels: Float[Tensor, "n 2 v 3"]  # likewise
    normals: Float[Tensor, "n 2 v 3"]
    expression: Float[Tensor, "n 2 e"]

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
                channels=torch.stack([log_channels(frame.image, frame.mesh, frame.camera) for frame in frames], 1),
                normals=torch.stack([camera_normals(frame.mesh, frame.camera, face.triangles) for frame in frames], 1),
                expression=torch.stack([frame.expression for frame in frames], 1),
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


def left(seen: Seen, change: Float[Tensor, "n v"], causes: Float[Tensor, "n v 4"], solution: Tensor) -> Float[Tensor, "n v"]:
    """What :data:`SHARE` of that light leaves."""
    return change - seen.facing.all(1) * (SHARE * (causes @ solution)).clamp(-LIMIT, LIMIT)


def folds(seen: Seen, missed: Float[Tensor, "n v"], face: FaceModel) -> Float[Tensor, "e v"]:
    """f, of everybody and of their mirror images: least squares of ``missed = f . (e' - e)`` with a prior for each vertex.

    A priori f is a random linear function of how the mesh moves, more so near the vertex: :data:`NEAR` and :data:`STIFF`.
    """
    basis = face.displacement(torch.eye(face.expression_size)).double()  # e v 3
    mirrored = (basis[:, face.mirror] * basis.new_tensor([-1, 1, 1])).flatten(1)
    mirror = torch.linalg.lstsq(basis.flatten(1).mT, mirrored.mT, driver="gelsd").solution.mT
    turned = (seen.expression[:, 1] - seen.expression[:, 0]).double()
    changes, weights = torch.cat([turned, turned @ mirror]), seen.facing.all(1).double()
    missed, weights = (torch.cat([field, field[:, face.mirror]]) for field in (missed.double(), weights))
    near = torch.exp(-torch.cdist(face.mean.double(), face.mean.double()).square() / (2 * NEAR**2)) + FAR
    found, unit = [], torch.eye(len(basis), dtype=torch.float64)
    for vertex, share in enumerate(near / near.sum(1, keepdim=True)):
        prior = torch.linalg.cholesky((basis * share[:, None]).flatten(1) @ basis.flatten(1).mT + 1e-9 * unit)
        inputs = changes @ prior
        weighted = (inputs * weights[:, vertex, None]).mT
        found.append(prior @ torch.linalg.solve(weighted @ inputs + STIFF * unit, weighted @ missed[:, vertex]))
    return torch.stack(found, -1).float()


def explained(change: Float[Tensor, "n v"], missed: Float[Tensor, "n v"]) -> float:
    """Share of the energy."""
    return 1 - float(missed.square().sum() / change.square().sum())


def unfolded(seen: Seen, missed: Float[Tensor, "n v"], fold: Float[Tensor, "e v"]) -> Float[Tensor, "n v"]:
    """What :data:`SHARE` of folds leaves of what was missed."""
    made = (SHARE * (seen.expression[:, 1] - seen.expression[:, 0]) @ fold).clamp(-LIMIT, LIMIT)
    return missed - seen.facing.all(1) * made


def tint(seen: Seen, predicted: Float[Tensor, "n v"], trust: Float[Tensor, " v"]) -> Float[Tensor, " 3"]:
    """t: how much of a predicted change each channel takes part in, about their mean; least squares."""
    change = (seen.channels[:, 1] - seen.channels[:, 0]).clamp(-CLIPPED, CLIPPED)
    slopes = ((trust * predicted)[..., None] * change).sum((0, 1))
    return slopes / slopes.mean()


def fit(parsed: argparse.Namespace) -> None:
    """Fit and write."""
    reader, face = ShardReader(Storage(str(parsed.shards))), FaceModel()
    seen = look(reader, "train", parsed.pairs, parsed.size)
    mean, trust = pattern(seen)
    change, causes = changes(seen, mean, trust)
    solution = solved(change, causes)
    print(f"L = {[round(value, 3) for value in solution[:3].tolist()]}, g = {float(solution[3]):.3f}; {len(change)} pairs")
    missed = left(seen, change, causes, solution)
    fold = folds(seen, missed, face)
    share = tint(seen, change - unfolded(seen, missed, fold), trust)
    print(f"t = {[round(value, 3) for value in share.tolist()]}")
    for split in ("train", parsed.check) if parsed.check else ("train",):
        if split != "train":
            seen = look(reader, split, parsed.pairs, parsed.size)
            change, causes = changes(seen, mean, trust)
            missed = left(seen, change, causes, solution)
        whole, part, both = (explained(change, rest) for rest in (change - causes @ solution, missed, unfolded(seen, missed, fold)))
        print(f"explained on {split}: {whole:.3f} by the light, {part:.3f} by {SHARE:.0%} of it, {both:.3f} with as much of the folds")
    light = {"pattern": mean, "trust": trust, "common": solution[:3].contiguous(), "gain": solution[3].clone()}
    tensors = {**light, "folds": fold.half(), "tint": share}
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
