"""``mggtalk benchmark``: its arguments, and the files it leaves."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from tqdm import tqdm

from datasets_toolkit.annotators.identity_dlib import installed as dlib_installed
from datasets_toolkit.annotators.identity_dlib import packaged_weights
from datasets_toolkit.annotators.syncnet import SyncNet
from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole
from datasets_toolkit.media.video_writer import VideoWriter
from datasets_toolkit.schema import ByteImage
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.audio.driver import AudioDriver
from mggtalk.audio.files import TINY as TINY_AUDIO
from mggtalk.evaluation.cases import Studio
from mggtalk.evaluation.grids import grid, worst_and_best
from mggtalk.evaluation.lips import LipReader
from mggtalk.evaluation.markdown import markdown
from mggtalk.evaluation.methods import BASES as BASES_NAME
from mggtalk.evaluation.methods import Method, Model, Predictions, Repeated, Warp
from mggtalk.evaluation.page import page_of
from mggtalk.evaluation.protocol import PlannedPair, Suite, checked, load_suite, plan
from mggtalk.evaluation.results import SuiteResult, write_results
from mggtalk.evaluation.runner import Bench, film, people_of_splits, run_suite
from mggtalk.evaluation.scoring import Scorer, Weights
from mggtalk.evaluation.speech import run_speech
from mggtalk.evaluation.summary import summarise, summary_record
from mggtalk.export import BASES, DEFAULT, load_model, locate_model, model_name
from mggtalk.geometry.face_model import FaceModel
from mggtalk.model import MGGTalk
from mggtalk.rendering.factory import choose_device, make_renderer

log = logging.getLogger(__name__)
ALL = ("self", "cross", "audio")
"""What ``--suite all`` runs."""
SIDE_BY_SIDE = 4
"""Methods in a video, beside source and driver."""
SHOWN_BY = {"self": "psnr_head", "cross": "aed"}
"""By which metric best and worst pairs are chosen."""


def main(words: Sequence[str]) -> None:
    """Run ``mggtalk benchmark`` with these arguments.

    Raises:
        UserError: something given cannot be used.
    """
    parser = argparse.ArgumentParser(prog="mggtalk benchmark", description=__doc__)
    _add_arguments(parser)
    benchmark(parser.parse_args(words))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="all", help="self, cross, audio, all, or a YAML file (default %(default)s; docs/benchmark.md)")
    parser.add_argument("--shards", required=True, help="data set of `mggdata build`, a folder or an fsspec address")
    parser.add_argument("--model", help="exported model: folder, .safetensors file or hub name (default: the project's own)")
    parser.add_argument("--audio-model", type=Path, help="folder of a model of speech, for suite audio (default: the project's own)")
    parser.add_argument(
        "--predictions",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="score another system's videos of the same pairs, PAIR.mp4 or PAIR/*.png; may be repeated",
    )
    parser.add_argument("--write-inputs", type=Path, metavar="FOLDER", help="write pictures and videos for other systems, and stop")
    parser.add_argument("--config", action="append", default=[], metavar="KEY=VALUE", help="a setting of the suite, such as frames=4")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"), help="folder of the results (default %(default)s)")
    parser.add_argument("--arcface", type=Path, help="ArcFace weights (.onnx, or the state dict of an IResNet), for CSIM")
    parser.add_argument(
        "--recogniser",
        metavar="dlib|none|FILE",
        help="face recogniser of CSIM dlib and ID distance: the installed one, none, or its weight file (default: dlib if installed)",
    )
    parser.add_argument("--alexnet", type=Path, help="torchvision's AlexNet weights, for LPIPS")
    parser.add_argument("--inception", type=Path, help="weights of pytorch-fid's Inception-v3, for FID")
    parser.add_argument("--syncnet", type=Path, help="SyncNet's weights (syncnet_v2.model), for LSE-C and LSE-D of suite audio")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")


def benchmark(parsed: argparse.Namespace) -> None:
    """Run the suites that are asked for, and write their results.

    Raises:
        UserError: something given cannot be used.
    """
    suites = [_changed(load_suite(name), parsed.config) for name in (ALL if parsed.suite == "all" else (parsed.suite,))]
    reader = ShardReader(parsed.shards)
    if parsed.write_inputs is not None:
        for suite in [suite for suite in suites if suite.kind != "audio"]:
            write_inputs(reader, suite, parsed.write_inputs / suite.name)
        return
    methods = _methods(parsed)
    parsed.out.mkdir(parents=True, exist_ok=True)
    dlib = _recogniser(parsed.recogniser)
    with Scorer(Weights(arcface=parsed.arcface, dlib=dlib, alexnet=parsed.alexnet, inception=parsed.inception)) as scorer:
        bench = Bench(reader=reader, methods=methods, scorer=scorer)
        lips = None if parsed.syncnet is None else LipReader(SyncNet(parsed.syncnet), methods[0], scorer.reader)
        for suite in suites:
            try:
                results = _run(suite, bench, parsed.audio_model, lips)
            except UserError as error:
                if parsed.suite != "all" or suite.kind != "audio":
                    raise
                log.warning("suite audio is left out: %s", error)  # of all suites it is the one that data sets may have nothing for
                continue
            _write(results, suite, bench, parsed.out)
            print(f"{parsed.out / suite.name}.html")


def _run(suite: Suite, bench: Bench, audio_model: Path | None, lips: LipReader | None) -> SuiteResult:
    if suite.kind == "audio":
        return run_speech(suite, bench.reader, AudioDriver.from_pretrained(audio_model or TINY_AUDIO), lips)
    return run_suite(suite, bench, _bar)


def _recogniser(named: str | None) -> Path | None:
    """The weights of dlib's recogniser, or None where it takes no part."""
    if named == "none" or (named is None and not dlib_installed()):
        return None
    return packaged_weights() if named in (None, "dlib") else Path(named)


def _bar(plans: Sequence[PlannedPair]) -> Iterable[PlannedPair]:
    return tqdm(plans, unit="pair")


def _changed(suite: Suite, words: Sequence[str]) -> Suite:
    """The suite with settings of the command line, checked as those of a file."""
    values = {key: value for key, value in asdict(suite).items() if value is not None}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            raise UserError(f"--config {word}: expected KEY=VALUE")
        values[key] = yaml.safe_load(value)
    return checked(values, "--config")


def _methods(parsed: argparse.Namespace) -> tuple[Method, ...]:
    """The model under test, the baselines, and other people's pictures."""
    device = choose_device(parsed.device)
    source = locate_model(parsed.model or DEFAULT)
    methods: list[Method] = []
    if source != BASES:
        methods.append(Model(model_name(parsed.model or DEFAULT), _ready(load_model(source), device), "The model under test."))
    methods += [Model(BASES_NAME, _ready(load_model(BASES), device), "MGGTalk without any training: only its bases."), Repeated(), Warp()]
    for given in parsed.predictions:
        name, separator, folder = given.partition("=")
        path = Path(folder if separator else given)
        methods.append(Predictions(name if separator else path.name, path))
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise UserError(f"two methods are called {max(names, key=names.count)!r}; name one: --predictions NAME=FOLDER")
    return tuple(methods)


def _ready(model: MGGTalk, device: str) -> MGGTalk:
    model.renderer = make_renderer("auto", device)
    return model.to(device).eval()


def _write(results: SuiteResult, suite: Suite, bench: Bench, out: Path) -> None:
    """JSON first: what comes after can be made again from it."""
    summary = summarise(results)
    splits = {"seed": suite.seed, "people": people_of_splits(bench.reader)}
    write_results(out / f"{suite.name}.json", results, {"summary": summary_record(summary), "splits": splits})
    write_whole(out / f"{suite.name}.md", markdown(results, summary).encode())
    videos = _films(results, suite, bench, out / "media")
    write_whole(out / f"{suite.name}.html", page_of(results, summary, videos).encode())


def _films(results: SuiteResult, suite: Suite, bench: Bench, folder: Path) -> dict[str, bytes]:
    """Videos of the best and the worst pairs, as files and for the page."""
    if suite.kind == "audio":
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    worst, best = worst_and_best(results, SHOWN_BY[suite.kind], suite.films)
    plans = {planned.name: planned for planned in plan(bench.reader.index, bench.reader.clips, suite)}
    studio = Studio(bench.reader, suite.size, bench.scorer.face_model)
    videos = {}
    for label, names in (("worst", worst), ("best", best)):
        for name in names:
            frames = grid(film(plans[name], studio, bench.methods[:SIDE_BY_SIDE]))
            path = folder / f"{suite.name}_{label}_{name}.mp4"
            _encode(path, frames, _rate(bench.reader, plans[name].driver))
            videos[f"{label}: {name}"] = path.read_bytes()
    return videos


def _encode(path: Path, frames: Sequence[ByteImage], fps: Fraction, crf: int = 20) -> None:
    height, width = frames[0].shape[:2]
    with VideoWriter(path, fps, (width, height), crf=crf) as writer:
        for frame in frames:
            writer.write(frame)


def _rate(reader: ShardReader, clip: str) -> Fraction:
    row = reader.clips["clip"].to_pylist().index(clip)
    return Fraction(int(reader.clips["fps_num"][row].as_py()), int(reader.clips["fps_den"][row].as_py()))


def write_inputs(reader: ShardReader, suite: Suite, folder: Path) -> None:
    """What another system needs to make its pictures: ``PAIR/source.png`` and ``PAIR/driving.mp4`` (nearly lossless), and ``pairs.json``.

    Raises:
        UserError: the suite cannot be had from this data set.
    """
    plans = plan(reader.index, reader.clips, suite)
    studio = Studio(reader, suite.size, FaceModel())
    for planned in plans:
        place = folder / planned.name
        place.mkdir(parents=True, exist_ok=True)
        picture = studio.truth([planned.source]).pictures[0]
        write_whole(place / "source.png", cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
        pictures = studio.truth(planned.rows, planned.source if planned.drives_itself else None).pictures
        _encode(place / "driving.mp4", pictures, _rate(reader, planned.driver), crf=1)
    write_whole(folder / "pairs.json", (json.dumps([_listed(planned) for planned in plans], indent=1) + "\n").encode())
    print(f"{folder}: {len(plans)} pairs; make one picture for every frame of PAIR/driving.mp4, as PAIR.mp4 or PAIR/*.png in a folder")


def _listed(planned: PlannedPair) -> Mapping[str, Any]:
    return {
        "pair": planned.name,
        "source_person": planned.source_person,
        "driver": planned.driver,
        "driver_person": planned.driver_person,
        "frames": len(planned.rows),
        "compared": [int(row) for row in np.sort(planned.compared)],
    }
