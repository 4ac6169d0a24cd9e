"""``mggdata``: videos to data sets of annotated face crops, a look at what the toolkit sees, and its model files."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets_toolkit import __version__
from datasets_toolkit.errors import MediaError, UserError
from datasets_toolkit.schema import ByteImage
from datasets_toolkit.shards.storage_options import storage_options

SIZES = (64, 2048)
"""Smallest and largest crop, pixels a side."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="mggdata", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_inspect(commands.add_parser("inspect", help="landmarks, parsing, matte, depth and normals of a face, as a picture"))
    _add_assets(commands.add_parser("assets", help="list, fetch and check the model files"))
    for module in ("cli_build", "cli_curate"):
        if importlib.util.find_spec(f"datasets_toolkit.{module}") is not None:
            importlib.import_module(f"datasets_toolkit.{module}").add_commands(commands)
    parsed, rest = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in rest) or not hasattr(parsed, "words"):
        parsed = parser.parse_args(arguments)  # says what is wrong with the rest, if there is any
    else:
        parsed.words += rest  # argparse takes words of one list from one place only: those behind an option are left over
    return run(parsed.function, parsed)


def run(function: Callable[[argparse.Namespace], int | None], parsed: argparse.Namespace) -> int:
    """Call a command, which may return a status.

    A user's mistake becomes one line on stderr and status 2, Ctrl-C status 130, a reader of stdout that has left status 141.
    """
    addresses = [getattr(parsed, "root", None), getattr(parsed, "out", None), *getattr(parsed, "words", ())]
    try:
        with storage_options(getattr(parsed, "storage_option", ()), addresses):
            status = function(parsed) or 0
            sys.stdout.flush()  # while a reader that has left, such as head, can be told from what else may go wrong
            return status
    except BrokenPipeError:
        if not _unheard():
            raise  # a pipe of somebody else's, such as a worker's
        return 141  # as a process that SIGPIPE ends
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130


def _unheard() -> bool:
    """Whether nobody reads stdout any more; if so, what else is written there goes nowhere, at exit too."""
    try:
        sys.stdout.flush()
        if not hasattr(select, "poll"):  # not on Windows
            return False
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), 0)  # errors are always told
        if not any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0)):
            return False
    except BrokenPipeError:
        pass
    except io.UnsupportedOperation:  # no pipe at all
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return True


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="image or video")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--face", type=int, default=0, help="which face, 0 the largest (default %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="pixels a side of the crop (default %(default)s)")
    parser.add_argument("--frames", type=int, default=6, help="frames of a video, evenly spread (default %(default)s)")
    parser.add_argument("--assets", type=Path, help="folder with the model files")
    parser.set_defaults(function=_inspect)


def _inspect(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.annotators.depth_normals import DepthNormals
    from datasets_toolkit.annotators.landmark_parsing import LandmarkParsing
    from datasets_toolkit.annotators.mesh_depth import MeshDepth
    from datasets_toolkit.annotators.pictures import annotation_panel, contact_sheet, write_png
    from datasets_toolkit.annotators.portrait import Annotators, crop_face, find_portrait
    from datasets_toolkit.faces.detection import FaceTracker

    _check_inspect(parsed)
    images = _images(parsed.source, parsed.frames)
    rows = []
    with FaceTracker(parsed.assets) as tracker, LandmarkParsing(parsed.assets) as parsing:
        annotators = Annotators(parsing=parsing, depth=MeshDepth(), normals=DepthNormals())
        for name, image in images:
            crop = crop_face(image, find_portrait(image, tracker, face=parsed.face, name=name), parsed.size)
            rows.append(annotation_panel(crop, annotators(crop)))
    write_png(parsed.output, contact_sheet(rows, height=256))
    print(parsed.output)


def _check_inspect(parsed: argparse.Namespace) -> None:
    """Refuse what would fail only after the work is done, or would overwrite the source."""
    if parsed.output.suffix.lower() != ".png":
        raise MediaError(f"{parsed.output}: the picture is a PNG; choose a name that ends in .png")
    if parsed.output.is_dir():
        raise MediaError(f"{parsed.output}: is a folder; give the name of a picture in it")
    if not parsed.output.parent.is_dir():
        raise MediaError(f"{parsed.output}: the folder {parsed.output.parent} does not exist; create it first")
    if parsed.output.exists() and parsed.source.exists() and parsed.output.samefile(parsed.source):
        raise MediaError(f"{parsed.output}: is the source itself; choose another output")
    if not SIZES[0] <= parsed.size <= SIZES[1]:
        raise UserError(f"--size {parsed.size}: must be from {SIZES[0]} to {SIZES[1]}")
    if parsed.frames < 1:
        raise UserError(f"--frames {parsed.frames}: at least one frame is needed")


def _images(source: Path, frames: int) -> list[tuple[str, ByteImage]]:
    from datasets_toolkit.annotators.pictures import spread
    from datasets_toolkit.media.video import probe, read_frames, read_image

    if source.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}:
        return [(str(source), read_image(source))]
    count = probe(source).frames or 1
    wanted = set(spread(count, frames))
    return [(f"{source} (frame {frame.index})", frame.image) for frame in read_frames(source) if frame.index in wanted]


def _add_assets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fetch", action="store_true", help="fetch what is missing")
    parser.add_argument("--folder", type=Path, help="folder with the model files")
    parser.set_defaults(function=_assets)


def _assets(parsed: argparse.Namespace) -> None:
    from datasets_toolkit.assets import ASSETS, locate, status

    if parsed.fetch:
        for asset in ASSETS:
            locate(asset.name, folder=parsed.folder)
    for row in status(parsed.folder):
        place = f"  {row.path}" if row.path else ""
        print(f"{row.asset.name}: {row.state}{place}\n    {row.asset.description}; {row.asset.licence}; SHA-256 {row.asset.sha256}")


if __name__ == "__main__":
    sys.exit(main())
