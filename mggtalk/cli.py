"""``mggtalk``: make a portrait talk, track the motion of a video, train and measure models."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from datasets_toolkit import __version__
from datasets_toolkit.cli import run
from datasets_toolkit.errors import UserError
from mggtalk.cli_animate import add_animate, add_track

log = logging.getLogger("mggtalk")
TRAINING = {
    "fit": "train a stage of an experiment (--config experiments/NAME.yaml; see docs/training.md)",
    "validate": "measure a checkpoint on the validation pairs of an experiment",
    "test": "measure a checkpoint on the test pairs of an experiment",
}

BENCHMARK = "measure a model against baselines and other systems on a data set (see docs/benchmark.md)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="mggtalk", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_animate(commands.add_parser("animate", help="animate a portrait with a video, a motion file, or speech"))
    add_track(commands.add_parser("track", help="write the motion of a video to a file"))
    _add_export(commands.add_parser("export", help="write the model of a checkpoint as a folder that animates portraits"))
    _add_provenance(commands.add_parser("provenance", help="print what a video or a contact sheet says of its making"))
    for name, text in {**TRAINING, "benchmark": BENCHMARK}.items():
        commands.add_parser(name, help=text, add_help=False)
    words = list(sys.argv[1:] if arguments is None else arguments)
    _show_notes()
    if words[:1] and words[0] in TRAINING:  # its arguments are those of the classes it builds
        return run(_train, argparse.Namespace(words=words))
    if words[:1] == ["benchmark"]:  # its parser needs what it runs
        return run(_benchmark, argparse.Namespace(words=words[1:]))
    parsed = parser.parse_args(words)
    return run(parsed.function, parsed)


def _train(parsed: argparse.Namespace) -> None:
    try:
        from mggtalk.training import main as train
    except ModuleNotFoundError as error:
        raise UserError(f"training needs the package {error.name}; install it with: pip install 'mggtalk[train]'") from error
    train(parsed.words)


def _benchmark(parsed: argparse.Namespace) -> None:
    try:
        from mggtalk.evaluation.command import main as benchmark
    except ModuleNotFoundError as error:
        raise UserError(f"the benchmark needs the package {error.name}; install it with: pip install 'mggtalk[train]'") from error
    benchmark(parsed.words)


def _show_notes() -> None:
    """Warnings of our own as one line each."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    log.setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"WARNING: {message}", file=sys.stderr)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint of `mggtalk fit` (.ckpt)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write, or a single .safetensors file")
    parser.add_argument(
        "--strength",
        action="append",
        default=[],
        metavar="PART=FACTOR",
        help="multiply what a part of the model corrects, such as densifier=0.5; 0 leaves the base (may be repeated)",
    )
    parser.add_argument(
        "--since", type=Path, metavar="MODEL", help="--strength scales what has changed since this model, not since the base"
    )
    parser.set_defaults(function=_export)


def _export(parsed: argparse.Namespace) -> None:
    from mggtalk.audio.files import export_audio, is_audio
    from mggtalk.checkpoints import export_checkpoint, read_checkpoint

    strengths = dict(_strength(word) for word in parsed.strength)
    if is_audio(read_checkpoint(parsed.checkpoint)):
        if strengths or parsed.since is not None:
            raise UserError("--strength, --since: a model of speech has no parts that correct a base")
        export_audio(parsed.checkpoint, parsed.output)
    else:
        if parsed.since is not None and not strengths:
            raise UserError("--since: says what --strength counts from; give that too")
        export_checkpoint(parsed.checkpoint, parsed.output, strengths, parsed.since)
    print(parsed.output)


def _strength(word: str) -> tuple[str, float]:
    part, _, factor = word.partition("=")
    try:
        return part, float(factor)
    except ValueError:
        raise UserError(f"--strength {word}: expected PART=FACTOR, such as densifier=0.5") from None


def _add_provenance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="video, or PNG of --sheet")
    parser.set_defaults(function=_provenance)


def _provenance(parsed: argparse.Namespace) -> int:
    from mggtalk.provenance import GENERATOR, read_provenance

    record = read_provenance(parsed.file)
    print(record.as_json(indent=1) if record else f"{parsed.file}: carries no record of {GENERATOR}; that is no proof that it is genuine")
    return 0 if record else 1


if __name__ == "__main__":
    sys.exit(main())
