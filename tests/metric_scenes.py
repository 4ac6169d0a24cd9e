"""For every mean of a per-image metric six made inputs, and its six values by another implementation: what the contract is run on.

A new subclass of PerImageMetric joins the contract by an entry in :data:`EXAMPLES`; a metric of sets of pictures one of its own by an entry
in :data:`SETS`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import cosine
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from mggtalk import metrics
from mggtalk.metrics.fid import FID
from mggtalk.metrics.per_image import Sums
from mggtalk.metrics.states import AED, AKD, APD, CSIM, LPIPS, PSNR, PSNR_LIMIT, SSIM, FoundShare, Jitter, Mean, PerImageMetric

COUNT = 6
Rows = Sequence[int]
FloatArray = npt.NDArray[np.float64]
Member = TypeVar("Member", bound=Sums)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A metric and six inputs.

    Attributes:
        make: a fresh metric.
        inputs: arguments of ``update``, six rows each.
        values: what each row is worth.
        clips: whether a row is a clip, which is given alone, and filled up with frames that are not found.
        spoilable: whether an input can be NaN.
    """

    make: Callable[[], PerImageMetric]
    inputs: dict[str, Tensor]
    values: FloatArray
    clips: bool = False
    spoilable: bool = True

    def feed(self, metric: PerImageMetric, rows: Rows, padding: int = 0) -> None:
        """Update with one batch of rows, filled up with rubbish that is marked as such."""
        batch = {name: values[list(rows)] for name, values in self.inputs.items()}
        if self.clips:
            for clip in batch["landmarks"]:
                found = torch.arange(len(clip) + padding) < len(clip)
                metric.update(torch.cat([clip, torch.full_like(clip[:1], torch.nan).expand(padding, -1, -1)]), found)
            return
        if padding:
            batch = {name: torch.cat([values, rubbish(values[:1]).expand(padding, *values.shape[1:])]) for name, values in batch.items()}
            batch["valid"] = torch.arange(len(rows) + padding) < len(rows)
        metric.update(**batch)


def rubbish(values: Tensor) -> Tensor:
    """NaN, which no mean survives; an empty mask; no face."""
    return torch.full_like(values, torch.nan) if values.is_floating_point() else torch.zeros_like(values)


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pictures() -> dict[str, Tensor]:
    """Six pairs, the worse the later; the first are equal."""
    image = uniform(0, COUNT, 3, 24, 20)
    noise = torch.arange(COUNT)[:, None, None, None] * 0.1 * (uniform(1, *image.shape) - 0.5)
    return {"image": image, "target": (image + noise).clamp(0, 1)}


def masked_pictures() -> dict[str, Tensor]:
    mask = uniform(2, COUNT, 1, 24, 20) * (torch.arange(24) > 8)[:, None]
    return {**pictures(), "mask": mask}


def pairs(inputs: dict[str, Tensor]) -> list[tuple[FloatArray, ...]]:
    return [tuple(values[row].double().numpy() for values in inputs.values()) for row in range(COUNT)]


def outside_psnr(image: FloatArray, target: FloatArray, mask: FloatArray | None = None) -> float:
    with np.errstate(divide="ignore"):
        if mask is None:
            return min(float(peak_signal_noise_ratio(target, image, data_range=1)), PSNR_LIMIT)
        error = np.average((image - target) ** 2, weights=np.broadcast_to(mask, image.shape))
        return min(float(-10 * np.log10(error)), PSNR_LIMIT)


def outside_ssim(image: FloatArray, target: FloatArray, mask: FloatArray | None = None) -> float:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0, "data_range": 1.0}
    _, whole = structural_similarity(image, target, full=True, **options)
    weights = np.ones_like(image) if mask is None else np.broadcast_to(mask, image.shape)
    return float(np.average(whole[:, 5:-5, 5:-5], weights=weights[:, 5:-5, 5:-5]))


class Mixed(nn.Module):
    """A made embedder and a made distance: a convolution of one corner, and the mean difference of that."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(uniform(3, 4, 3, 1, 1) - 0.5)

    def embed(self, image: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(image, self.mixing)[..., :5, :4].flatten(1)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        return (self.embed(image) - self.embed(target)).abs().mean(1)


def mixed(image: FloatArray) -> FloatArray:
    mixing = uniform(3, 4, 3, 1, 1)[..., 0, 0].double().numpy() - 0.5
    return np.einsum("ck,khw->chw", mixing, image)[:, :5, :4].ravel()


def of(metric: Callable[[], PerImageMetric], inputs: dict[str, Tensor], outside: Callable[..., float], **options: bool) -> Example:
    return Example(make=metric, inputs=inputs, values=np.array([outside(*row) for row in pairs(inputs)]), **options)


def two(seed: int, *shape: int, names: Sequence[str], scale: float = 1.0) -> dict[str, Tensor]:
    return {name: scale * uniform(seed + step, COUNT, *shape) for step, name in enumerate(names)}


def outside_apd(pose: FloatArray, target: FloatArray) -> float:
    return float(np.degrees(np.abs(np.angle(np.exp(1j * np.radians(pose - target)))).mean()))


def outside_jitter(landmarks: FloatArray) -> float:
    return float(np.hypot(*np.moveaxis(landmarks[2:] - 2 * landmarks[1:-1] + landmarks[:-2], -1, 0)).mean())


def found_share() -> Example:
    found = torch.tensor([True, True, False, True, False, True])
    return Example(make=FoundShare, inputs={"found": found}, values=found.double().numpy(), spoilable=False)


EXAMPLES: dict[type[PerImageMetric], list[Callable[[], Example]]] = {
    PSNR: [lambda: of(PSNR, pictures(), outside_psnr), lambda: of(PSNR, masked_pictures(), outside_psnr)],
    SSIM: [lambda: of(SSIM, pictures(), outside_ssim), lambda: of(SSIM, masked_pictures(), outside_ssim)],
    LPIPS: [lambda: of(lambda: LPIPS(Mixed()), pictures(), lambda a, b: np.abs(mixed(a) - mixed(b)).mean())],
    CSIM: [
        lambda: of(CSIM, two(10, 16, names=("image", "target")), lambda a, b: 1 - cosine(a, b)),
        lambda: of(lambda: CSIM(Mixed().embed), pictures(), lambda a, b: 1 - cosine(mixed(a), mixed(b))),
    ],
    AKD: [lambda: of(AKD, two(20, 9, 2, names=("landmarks", "target"), scale=512), lambda a, b: np.hypot(*(a - b).T).mean())],
    AED: [lambda: of(AED, two(30, 84, names=("expression", "target")), lambda a, b: np.abs(a - b).mean())],
    APD: [lambda: of(APD, two(40, 3, names=("pose", "target"), scale=720), outside_apd)],
    FoundShare: [found_share],
    Mean: [lambda: of(Mean, two(60, names=("values",)), float)],
    Jitter: [lambda: of(Jitter, two(50, 7, 9, 2, names=("landmarks",), scale=512), outside_jitter, clips=True)],
}


@dataclass(frozen=True, kw_only=True)
class SetExample:
    """A metric of two sets of pictures, six in each, and what they are worth.

    Attributes:
        make: a fresh metric.
        real: what ``update`` is given of the real pictures.
        made: likewise of the others.
        value: by another implementation.
    """

    make: Callable[[], Sums]
    real: Tensor
    made: Tensor
    value: float

    def feed(self, metric: Sums, rows: Rows, padding: int = 0) -> None:
        """Update with one batch of rows of each set, filled up with rubbish that is marked as such."""
        for real, values in ((True, self.real), (False, self.made)):
            batch = torch.cat([values[list(rows)], rubbish(values[:1]).expand(padding, *values.shape[1:])])
            metric.update(batch, real=real, valid=torch.arange(len(batch)) < len(rows))


def outside_fid(real: FloatArray, made: FloatArray) -> float:
    """From the rows themselves: the trace of the root is the sum of the singular values of their products, over sqrt((n - 1) (m - 1))."""
    centred = [(rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (real, made)]
    common = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return float(((real.mean(0) - made.mean(0)) ** 2).sum() + sum((one**2).sum() for one in centred) - 2 * common)


def fid_of_features() -> SetExample:
    real, made = uniform(70, COUNT, 4), 1.5 * uniform(71, COUNT, 4)
    return SetExample(make=lambda: FID(features=4), real=real, made=made, value=outside_fid(real.double().numpy(), made.double().numpy()))


def fid_of_pictures() -> SetExample:
    """With more features than pictures."""
    made, real = pictures().values()
    features = [np.stack([mixed(one.double().numpy()) for one in images]) for images in (real, made)]
    return SetExample(make=lambda: FID(Mixed().embed, features=80), real=real, made=made, value=outside_fid(*features))


SETS: dict[type[Sums], list[Callable[[], SetExample]]] = {FID: [fid_of_features, fid_of_pictures]}


def named_sets() -> dict[str, SetExample]:
    return {f"{kind.__name__}-{number}": make() for kind, examples in SETS.items() for number, make in enumerate(examples)}


def members(kind: type[Member]) -> list[type[Member]]:
    """Every class of the room that can be made, however deep below; a new file joins by being there."""
    for module in pkgutil.iter_modules(metrics.__path__, f"{metrics.__name__}."):
        importlib.import_module(module.name)
    below = [member for child in kind.__subclasses__() for member in members(child)]
    own = [] if inspect.isabstract(kind) or not kind.__module__.startswith(f"{metrics.__name__}.") else [kind]
    return sorted({*own, *below}, key=lambda member: member.__name__)


def named_examples() -> dict[str, Example]:
    return {f"{kind.__name__}-{number}": make() for kind in members(PerImageMetric) for number, make in enumerate(EXAMPLES.get(kind, []))}


def spoil(example: Example, metric: PerImageMetric) -> None:
    """Update with one more row, which is NaN."""
    spoilt = {name: rubbish(values[:1]) for name, values in example.inputs.items()}
    metric.update(**{name: values[0] for name, values in spoilt.items()} if example.clips else spoilt)


def rank_part(rank: int, meeting: str, folder: str) -> None:
    """One of two processes: rank 0 is given rows 0 to 3 and a spoilt one, rank 1 the others, one of them in a batch that is filled up."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    told = {}
    for name, example in named_examples().items():
        metric = example.make()
        for rows, padding in [([0, 1, 2, 3], 0)] if rank == 0 else [([4], 3), ([5], 0)]:
            example.feed(metric, rows, padding)
        if example.spoilable and rank == 0:
            spoil(example, metric)
        alone = metric.dropped
        told[name] = [metric.compute().item(), alone, metric.dropped, int(metric.count)]
    for name, one in named_sets().items():
        whole = one.make()
        for rows, padding in [([0, 1, 2, 3], 0)] if rank == 0 else [([4], 3), ([5], 0)]:
            one.feed(whole, rows, padding)
        told[name] = [whole.compute().item()]
    torch.distributed.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def cast(owner: nn.Module, change: str) -> None:
    """Change the type of a module that owns ``metric``, or of the metric itself."""
    if change == "to_bfloat16":
        owner.to(torch.bfloat16)
    elif change == "set_dtype":
        owner.metric.set_dtype(torch.float16)
    else:
        getattr(owner, change)()
