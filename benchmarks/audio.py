"""Speech drives the mouth: against the tracked mouth of clips that training has not seen, and against a regression on loudness.

    python benchmarks/audio.py --shards FOLDER [--split val] [--model FOLDER] [--only FILE] [--json FILE] [--quick] [--phones [--sheet PNG]]
    python benchmarks/audio.py --videos FOLDER --syncnet syncnet_v2.model [--json FILE]

Each clip's mesh is driven by its sound alone (speaking style unknown, but for the row that says so) and the opening of its mouth is
compared with the tracked one, 50 times a second. Clips count by their length, people equally. ``--only FILE`` (names of clips, a line each)
leaves the others out, such as those in which the speaker is not the one who is seen. The baseline, opening = a + b loudness, is fitted on
the training clips; loudness as in ``datasets_toolkit.annotators.av_offset``. Below the table: what silence and noise do, and the speed.

``--phones`` (needs PocketSphinx) adds whether lips close when p, b or m is said, in English clips: of the closures that are heard and that
the tracked lips show, the share that the driven lips show too, within 40 ms and below the same opening; beside it what lips would have
that close as often, but anywhere (:func:`mggtalk.metrics.speech.lip_closures`). ``--sheet`` writes a picture of the clip with the most
closures at the middle of its phones: the clip above, below what the speech drives (gain as for `animate`).

The second form scores videos, such as those ``mggtalk animate`` writes, with SyncNet (25 frames a second): LSE-C is its confidence, LSE-D
its distance (Prajwal et al., "A lip sync expert is all you need for speech to lip generation in the wild", ACM MM 2020).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from datasets_toolkit.annotators.pictures import write_png
from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.audio.driver import AudioDriver
from mggtalk.audio.files import TINY
from mggtalk.evaluation.closures import ClosureRow, closure_rows, phone_sheet
from mggtalk.evaluation.heard import phones_of
from mggtalk.evaluation.methods import Model
from mggtalk.evaluation.speech import NETWORK, Driven, Row, drive, quiet, row_of
from mggtalk.export import DEFAULT, load_model
from mggtalk.rendering.factory import make_renderer

SUFFIXES = {".mp4", ".mov", ".mkv"}


def mean(rows: Sequence[Row], name: str) -> float:
    """Mean over people of means over their clips, weighted by length."""
    people = sorted({row.person for row in rows})
    own = [[row for row in rows if row.person == person] for person in people]
    return float(
        np.mean(
            [
                np.average(
                    [abs(getattr(row, name)) if name == "lag" else getattr(row, name) for row in part],
                    weights=[row.seconds for row in part],
                )
                for part in own
            ]
        )
    )


def table(rows: Sequence[Row]) -> str:
    """The methods, side by side."""
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = [
        "| method | correlation | at the best lag | lag, ms: mean size / median | error, % of face height | deviation / tracked |",
        "|---|---|---|---|---|---|",
    ]
    for method in methods:
        own = [row for row in rows if row.method == method]
        middle = 1000 * float(np.median([row.lag for row in own]))
        fit, best, size, error, deviation = (mean(own, name) for name in ("correlation", "best", "lag", "error", "deviation"))
        lines.append(f"| {method} | {fit:.3f} | {best:.3f} | {1000 * size:.0f} / {middle:+.0f} | {error:.2f} | {deviation:.2f} |")
    return "\n".join(lines)


def closure_table(rows: Sequence[ClosureRow]) -> str:
    """Lip-closure recall of the methods, all clips together."""
    lines = ["| method | closures heard | seen too | recall | by chance |", "|---|---|---|---|---|"]
    for method in dict.fromkeys(row.method for row in rows):
        own = [row.closures for row in rows if row.method == method]
        heard, seen, kept = (sum(getattr(one, name) for one in own) for name in ("heard", "seen", "kept"))
        lines.append(f"| {method} | {heard} | {seen} | {kept / max(seen, 1):.2f} | {sum(one.chance for one in own) / max(seen, 1):.2f} |")
    return "\n".join(lines)


def listen(arguments: argparse.Namespace, reader: ShardReader, driver: AudioDriver, driven: Sequence[Driven]) -> list[ClosureRow]:
    """Closures of all methods and of the tracked mouths themselves; and the picture, if one is asked for."""
    clips = {one.clip.name: one.clip for one in driven}
    phones = phones_of(reader, arguments.split, list(clips.values()), driver.face_model)
    truth = [replace(one, method="tracked", opening=one.clip.opening) for one in driven if one.method == NETWORK]
    rows = closure_rows([*truth, *driven], phones)
    if arguments.sheet is not None:
        if not phones:
            raise UserError("--sheet: the words of no clip were understood; it needs English speech")
        best = max((row for row in rows if row.method == NETWORK), key=lambda row: row.closures.seen)
        chosen = next(one for one in driven if one.clip.name == best.clip and one.method.startswith(f"{NETWORK}, gain"))
        model = load_model(DEFAULT)
        model.renderer = make_renderer("auto", "cpu")
        sheet = phone_sheet(reader, arguments.split, Model(NETWORK, model.eval(), ""), chosen, phones[best.clip], driver.face_model)
        write_png(arguments.sheet, sheet)
        print(f"{arguments.sheet}: {best.clip}")
    return rows


def sync_scores(videos: Sequence[Path], weights: Path) -> dict[str, tuple[float, float]]:
    """LSE-C and LSE-D of each video."""
    from datasets_toolkit.annotators.syncnet import SyncNet
    from datasets_toolkit.faces.detection import FaceTracker
    from datasets_toolkit.media.audio_reader import read_audio
    from datasets_toolkit.media.video import read_frames
    from mggtalk.evaluation.lips import filled
    from mggtalk.metrics.tracked import posed_crop, see

    network, found = SyncNet(weights), {}
    with FaceTracker() as tracker:
        for path in videos:
            pictures = [frame.image for frame in read_frames(path)]
            faces = [see(tracker, picture) for picture in pictures]
            crops = [None if face is None else posed_crop(picture, face) for picture, face in zip(pictures, faces, strict=True)]
            score = network(filled(crops, pictures), read_audio(path, start=0.0).samples)
            found[path.name] = (score.confidence, score.distance)
    return found


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--shards", help="a built data set")
    given.add_argument("--videos", type=Path, help="folder of videos to score with SyncNet")
    parser.add_argument("--split", default="val", help="of the data set (default %(default)s)")
    parser.add_argument("--model", type=Path, default=TINY, help="folder of a model of speech; by default the project's")
    parser.add_argument("--only", type=Path, help="text file with names of clips")
    parser.add_argument("--phones", action="store_true", help="whether lips close when p, b or m is said; needs PocketSphinx")
    parser.add_argument("--sheet", type=Path, help="with --phones: PNG of a clip and what its speech drives, at chosen phones")
    parser.add_argument("--syncnet", type=Path, help="weights of SyncNet")
    parser.add_argument("--json", type=Path, help="where all numbers go")
    parser.add_argument("--quick", action="store_true", help="3 s of silence instead of 30")
    arguments = parser.parse_args(words)
    if arguments.videos is not None and arguments.syncnet is None:
        parser.error("--videos needs --syncnet")
    if arguments.sheet is not None and not arguments.phones:
        parser.error("--sheet needs --phones")
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    arguments = arguments_of(words)
    if arguments.videos is not None:
        scores = sync_scores([path for path in sorted(arguments.videos.iterdir()) if path.suffix in SUFFIXES], arguments.syncnet)
        whole_report: dict[str, object] = {"sync": scores}
        print(
            "\n".join(
                ["| video | LSE-C | LSE-D |", "|---|---|---|", *(f"| {name} | {c:.2f} | {d:.2f} |" for name, (c, d) in scores.items())]
            )
        )
    else:
        driver = AudioDriver.from_pretrained(arguments.model)
        only = None if arguments.only is None else set(arguments.only.read_text(encoding="utf-8").split())
        reader = ShardReader(arguments.shards)
        driven = drive(reader, arguments.split, driver, only)
        rows = [row_of(one.method, one.clip, one.opening) for one in driven]
        still = quiet(driver, 3.0 if arguments.quick else 30.0)
        whole_report = {"clips": [asdict(row) for row in rows], "quiet": still}
        print(f"{len({row.clip for row in rows})} clips of {len({row.person for row in rows})} people\n\n{table(rows)}\n")
        print("\n".join(f"{name}: {value:.4g}" for name, value in still.items()))
        if arguments.phones:
            closed = listen(arguments, reader, driver, driven)
            whole_report["closures"] = [asdict(row) for row in closed]
            print(f"\n{closure_table(closed)}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(whole_report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
