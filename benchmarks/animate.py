"""How fast an avatar is animated on a CPU, where a frame's time goes, and what each part must cost at least.

    python benchmarks/animate.py [--quick] [--threads 2] [--size 256 512] [--model MODEL] [--json FILE]

The portrait is scikit-image's astronaut, the motion that of the demonstration. Counted is the way from a prepared avatar and a motion to
uint8 frames. Three ways of the same frames take turns: *tensors*, without compiled loops, one frame after another on one thread, which is
what the others are compared with; *compiled*, the same with them; *workers*, as ``TalkingHead.animate`` does by default, on ``--threads``
threads. Wall-clock rates need idle cores; what a frame takes of the processor does not, and both are told.

The parts are those of the second way. A part's bound is the larger of two: its arithmetic (matrix products at the rate of a large one,
activations at that of a cached array; for splatting the pairs that are blended, see ``render_bound.py``), and the numbers that it must read
and write at the rate of a large copy. All rates are of one thread and taken in the same run. Tracking a frame of a video (decoding
included) and encoding one stand apart from the sum.

Without ``--model`` the layers that start at zero get small random numbers: zeros would be faster than a trained model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from render import machine
from render_bound import best, count_pairs, pair_costs
from skimage.data import astronaut

from datasets_toolkit.errors import UserError
from datasets_toolkit.media.video import VideoWriter
from datasets_toolkit.schema import ByteImage
from mggtalk.demo import MOTION
from mggtalk.drivers import Control, retarget
from mggtalk.export import BASES
from mggtalk.geometry import detail, layers
from mggtalk.modules import children, colours, deformation, gaussians
from mggtalk.modules.layers import MLP, ZeroConv, ZeroLinear
from mggtalk.motion_files import load_motion
from mggtalk.talking_head import Avatar, TalkingHead
from mggtalk.types import Camera, Motion

FRAMES, QUICK, ROUNDS = 40, 6, 3
PARTS = ("deformation", "decoders", "densifier", "splatting", "backdrop", "detail", "to bytes")
Timed = dict[str, float]


def wake(head: TalkingHead, amount: float = 0.02) -> None:
    """Give what starts at zero small random weights."""
    generator = torch.Generator().manual_seed(0)
    for layer in head.model.modules():
        if isinstance(layer, ZeroLinear | ZeroConv):
            torch.nn.init.normal_(layer.weight, std=amount, generator=generator)


def some_frames(motion: Motion, count: int) -> Motion:
    """So many frames, spread over the motion."""
    rows = torch.linspace(0, len(motion.times) - 1, count).long()
    return replace(motion, **{name: getattr(motion, name)[rows] for name in ("expression", "head_to_camera", "times", "found")})


@contextmanager
def tensors() -> Iterator[None]:
    """Without compiled loops but those of the renderer and of training."""
    with ExitStack() as stack:
        for module in (children, colours, deformation, gaussians, detail, layers):
            stack.enter_context(patch.object(module, "can_stream", lambda *_: False))
        yield


def animate(head: TalkingHead, avatar: Avatar, motion: Motion, workers: int) -> tuple[Timed, ByteImage]:
    """Seconds by the clock and of the processor for one frame, and the frames."""
    start, busy = time.perf_counter(), time.process_time()
    frames = np.stack(list(head.animate(avatar, motion, workers=workers)))
    seconds = {"wall": time.perf_counter() - start, "processor": time.process_time() - busy}
    return {name: value / len(frames) for name, value in seconds.items()}, frames


def rates(head: TalkingHead, avatar: Avatar, motion: Motion, threads: int, rounds: int) -> tuple[dict[str, Timed], ByteImage]:
    """The three ways, taking turns: the least of each; and the frames."""
    found: dict[str, list[Timed]] = defaultdict(list)
    for _ in range(rounds + 1):  # the first one compiles
        torch.set_num_threads(1)
        with tensors():
            seconds, plain = animate(head, avatar, motion, 1)
        found["tensors"].append(seconds)
        seconds, frames = animate(head, avatar, motion, 1)
        found["compiled"].append(seconds)
        torch.set_num_threads(threads)
        seconds, again = animate(head, avatar, motion, min(2, threads))
        found["workers"].append(seconds)
    torch.set_num_threads(1)
    if not np.array_equal(frames, again):
        raise SystemExit("error: the workers' frames are not those of one thread")
    ways = {name: {clock: min(one[clock] for one in times[1:]) for clock in times[0]} for name, times in found.items()}
    off = np.abs(frames.astype(int) - plain).max(-1)
    ways["compiled"] |= {"largest difference": float(off.max()), "share of pixels": float((off > 0).mean())}
    return ways, frames


def take_apart(head: TalkingHead, avatar: Avatar, motion: Motion, rounds: int) -> Timed:
    """Processor seconds of each part of a frame on this thread, of the best round."""
    seconds: Timed = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **settings: Any) -> Any:
            start = time.thread_time()
            result = function(*arguments, **settings)
            seconds[name] += time.thread_time() - start
            return result

        return run

    model, rows = head.model, retarget(motion, avatar.frame.camera[0], avatar.frame.expression[0], Control())
    decoders = [part for part in (model.visible_decoder, model.mirrored_decoder) if part is not None]
    watched: list[tuple[Any, str, str]] = [(part, "forward", "decoders") for part in decoders]
    watched += [(model.densifier, "forward", "densifier"), (model, "gaussians", "gaussians")]
    watched += [(model, "backdrop", "backdrop"), (model, "finished", "detail")]
    results = []
    with ExitStack() as stack:
        for part, method, name in watched:
            stack.enter_context(patch.object(part, method, timed(name, getattr(part, method))))
        stack.enter_context(patch.dict(model.__dict__, renderer=timed("splatting", model.renderer)))
        for _ in range(rounds):
            seconds.clear()
            for expression, pose in zip(*rows, strict=True):
                timed("whole", head.render)(avatar, expression, pose)
            results.append({name: value / len(rows[0]) for name, value in seconds.items()})
    least = min(results, key=lambda parts: parts["whole"])
    least["deformation"] = least["gaussians"] - least["decoders"] - least["densifier"]
    least["to bytes"] = least["whole"] - least["gaussians"] - sum(least[name] for name in ("splatting", "backdrop", "detail"))
    return {name: least[name] for name in PARTS}


def peaks() -> tuple[float, float, float]:
    """Seconds of a multiplication in a large matrix product, of an activation in the cache, and of a number in a large copy; one thread."""
    square, large, small = torch.randn(768, 768), torch.zeros(1 << 24), torch.randn(1 << 14)
    result, target, active = torch.empty_like(square), torch.empty_like(large), torch.empty_like(small)
    product = best(lambda: torch.mm(square, square, out=result)) / 768**3
    activation = best(lambda: torch.ops.aten.silu.out(small, out=active)) / len(small)
    return product, activation, best(lambda: target.copy_(large)) / (2 * len(large))


@torch.inference_mode()
def bounds(head: TalkingHead, avatar: Avatar, motion: Motion) -> Timed:
    """Seconds that each part of a frame takes at least on one thread."""
    model, known, pixels = head.model, avatar.prepared, head.size**2
    visible, points = avatar.identity.points.visible.mask.shape[1], known.points.mask.shape[1]
    count, (product, activation, number) = known.points.child_opacity.shape[-1], peaks()

    def network(body: MLP, points: int, numbers: int, shared: bool = False) -> float:
        """The first layer's lasting part is known; the changing one may be ``shared``; ``numbers`` are moved for a point besides."""
        width, outputs = len(torch.as_tensor(body[2].weight)), len(torch.as_tensor(body[4].weight))
        weights = (0 if shared else body.inputs[1] * width) + width * width + width * outputs
        return points * max(weights * product + 2 * width * activation, (width + numbers) * number)

    expressions, poses = retarget(motion, avatar.frame.camera[0], avatar.frame.expression[0], Control())
    middle = slice(len(poses) // 2, len(poses) // 2 + 1)
    camera = Camera(intrinsics=avatar.frame.camera.intrinsics, head_to_camera=poses[middle])
    dense = model.gaussians(avatar.identity, expressions[middle], camera, known)[1]
    pairs = count_pairs(dense, camera, (head.size, head.size))
    # numbers of a point: position 3, tangents 6, anchors 3 of 8 bytes, weights 3 and steps 6, head weight 1 and steps 2, correction 3; of a
    # Gaussian: mean 3, quaternion 4, scales 3, opacity 1, colour 3 and a mask; of a child what the source shows besides: 4
    stages = (model.visible_decoder, visible), (model.mirrored_decoder or model.visible_decoder, points - visible)
    return {
        "deformation": network(model.deformation.body, points, 30 + 6 + 15, shared=True),
        "decoders": sum(network(decoder.body, own, 15 + 11) for decoder, own in stages),
        "densifier": network(model.densifier.body, points, 15 + 6 + count * (4 + 15)),
        "splatting": max(pairs * pair_costs()[0], (points * count * 15 + pixels * 8) * number),
        "backdrop": pixels * (4 + 3 + 3 + 3) * number,
        "detail": pixels * (3 + 3 + 3 + 3) * number,  # inside and outline, the rendering and the sum
        "to bytes": pixels * (3 + 0.75) * number,
    }


def around(head: TalkingHead, frames: ByteImage, folder: Path) -> Timed:
    """Processor seconds of tracking a frame of a video (the portrait, which shakes), and of encoding one of the frames."""
    with VideoWriter(folder / "driver.mp4", Fraction(25), (512, 512)) as video:
        for row in range(len(frames)):
            video.write(np.roll(astronaut(), 3 * (row % 5), 1))
    start = time.process_time()
    head.track(folder / "driver.mp4")
    middle = time.process_time()
    with VideoWriter(folder / "result.mp4", Fraction(25), (head.size, head.size)) as video:
        for frame in frames:
            video.write(frame)
    return {"tracking": (middle - start) / len(frames), "encoding": (time.process_time() - middle) / len(frames)}


def measure(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one size."""
    rounds, motion = (1 if options.quick else ROUNDS), some_frames(load_motion(MOTION)[0], QUICK if options.quick else FRAMES)
    torch.set_num_threads(1)
    with TalkingHead.from_pretrained(options.model or BASES, size=size) as head, tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            wake(head)
        avatar = head.reconstruct(astronaut())
        ways, frames = rates(head, avatar, motion, options.threads, rounds)
        return {
            "size": size,
            "threads": options.threads,
            "points": avatar.prepared.points.mask.shape[1],
            "gaussians": avatar.prepared.points.child_opacity[0].numel(),
            "ways": ways,
            "parts": take_apart(head, avatar, motion, rounds),
            "bounds": bounds(head, avatar, motion),
            "apart": around(head, frames, Path(folder)),
        }


def report(row: dict[str, Any]) -> str:
    """Two tables."""
    slow, whole, least = row["ways"]["tensors"], sum(row["parts"].values()), sum(row["bounds"].values())
    lines = [f"{row['size']} x {row['size']}: {row['points']} points, {row['gaussians']} Gaussians", ""]
    lines += ["way       threads  frames/s (x tensors)  processor ms  frames/s on idle cores (x tensors)"]
    for name, way in row["ways"].items():
        threads, wall, busy = row["threads"] if name == "workers" else 1, way["wall"], way["processor"]
        rate = min(2, threads) / busy
        clock, idle = f"{1 / wall:9.1f} ({slow['wall'] / wall:4.2f}x)", f"{rate:14.1f} ({rate * slow['processor']:4.2f}x)"
        lines.append(f"{name:9s} {threads:7d} {clock} {1e3 * busy:16.2f} {idle}")
    off = row["ways"]["compiled"]
    lines += [
        f"compiled and tensors differ by {off['largest difference']:.0f} of 255 at most, in {off['share of pixels']:.5%} of the pixels",
        "",
    ]
    lines += ["part           ms a frame  share   bound ms"]
    for name, spent in row["parts"].items():
        bound = row["bounds"][name]
        lines.append(f"{name:14s} {1e3 * spent:10.2f} {spent / whole:6.1%} {1e3 * bound:10.2f} ({spent / bound:.1f}x)")
    lines += [f"{'sum':14s} {1e3 * whole:10.2f} {1:6.0%} {1e3 * least:10.2f} ({whole / least:.1f}x)", "", "apart from that"]
    return "\n".join(lines + [f"{name:14s} {1e3 * value:10.2f}" for name, value in row["apart"].items()]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 pixels only, few frames")
    parser.add_argument("--threads", type=int, default=2, help="of the third way (default %(default)s)")
    parser.add_argument("--size", type=int, nargs="+", help="pixels a side (default 256 512)")
    parser.add_argument("--model", help="exported model; by default the bases, with small random weights")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    options, rows = parser.parse_args(), list[dict[str, Any]]()
    try:
        for size in options.size or ([256] if options.quick else [256, 512]):
            rows.append(measure(size, options))
            print(report(rows[-1]), flush=True)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
