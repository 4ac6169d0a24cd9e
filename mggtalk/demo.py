"""The demonstration: a photograph everybody may use, animated by the motion that ships with the project.

    python -m mggtalk.demo --output outputs/demo

The source is scikit-image's ``astronaut`` (Eileen Collins, NASA, public domain). Tracking is timed on the finished video, which is tracked
again for that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from datasets_toolkit.cli import run
from datasets_toolkit.errors import UserError

MOTION = Path(__file__).parent / "assets" / "demo_motion.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the demonstration's video and contact sheet; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mggtalk.demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder (default %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (default %(default)s)")
    parser.add_argument("--assets", type=Path, help="folder with the face tracker's model files (default: found or fetched)")
    parser.set_defaults(function=_demo)
    parsed = parser.parse_args(arguments)
    return run(parsed.function, parsed)


def _demo(parsed: argparse.Namespace) -> None:
    from mggtalk import cli
    from mggtalk.talking_head import TalkingHead

    try:
        parsed.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{parsed.output}: cannot be created ({error.strerror}); choose another --output") from error
    portrait, video = parsed.output / "astronaut.png", parsed.output / "talking_head.mp4"
    _write_portrait(portrait)
    arguments = ["animate", "--source", str(portrait), "--motion", str(MOTION), "--output", str(video), "--size", str(parsed.size)]
    arguments += ["--sheet", str(parsed.output / "contact_sheet.png")]
    arguments += ["--assets", str(parsed.assets)] if parsed.assets else []
    if cli.main(arguments) != 0:
        raise UserError(f"{video}: the demonstration could not be made; the line above says why")
    with TalkingHead.from_pretrained(assets=parsed.assets) as head:
        start = time.perf_counter()
        motion = head.track(video)
        print(f"tracking: {len(motion.times) / (time.perf_counter() - start):.1f} frames/s (of the result, tracked again)")


def _write_portrait(path: Path) -> None:
    try:
        from skimage.data import astronaut
    except ImportError:
        raise UserError("the demonstration's portrait comes with scikit-image; install it with: pip install 'mggtalk[demo]'") from None
    from datasets_toolkit.annotators.pictures import write_png

    write_png(path, astronaut())


if __name__ == "__main__":
    sys.exit(main())
