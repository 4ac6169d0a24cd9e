"""Each recipe on a small tree in the data set's own layout, its known defects included."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_toolkit.errors import UserError
from datasets_toolkit.media.opening import import_av
from datasets_toolkit.media.video import VideoWriter, read_frames
from datasets_toolkit.recipes import BOX, RECIPES, YOUTUBE, Discovery, Recipe, RecipeError, Source, coverage, join_people, recipe_for
from datasets_toolkit.recipes.files import frame_rate
from datasets_toolkit.recipes.hdtf import HDTF
from datasets_toolkit.recipes.vfhq import VFHQ

NTSC = Fraction(30000, 1001)


def video(path: Path, seconds: float = 2.0, lines: int = 72, fps: Fraction = Fraction(5)) -> Path:
    """A small grey video of a 16:9 picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps, (lines * 16 // 9, lines), crf=40) as writer:
        for index in range(round(seconds * fps)):
            writer.write(np.full((lines, lines * 16 // 9, 3), 40 + 3 * (index % 50), np.uint8))
    return path


def late_video(path: Path, start: float, frames: int, fps: int = 10) -> Path:
    """A video whose clock begins at ``start`` seconds, as a cut without a reset of the times leaves it."""
    av = import_av()
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as output:
        stream = output.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", Fraction(1, fps)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 100, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(start * fps) + index, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def by_name(discovery: Discovery) -> dict[str, Source]:
    return {source.source_hint: source for source in discovery.sources}


def kinds(discovery: Discovery) -> dict[str, str]:
    return {name: reason.split(":")[0] for name, reason in discovery.broken}


def box(source: Source) -> list[float]:
    return [float(value) for value in source.meta[BOX].split()]


# ---------------------------------------------------------------------------------------------------------------- common


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_refuses_what_is_not_its_data_set(name: str, tmp_path: Path) -> None:
    recipe = recipe_for(name)
    assert isinstance(recipe, Recipe)
    assert recipe.name == name
    for root in (tmp_path / "absent", tmp_path):
        with pytest.raises(RecipeError, match=str(root)) as caught:
            recipe.discover(root)
        assert "\n" not in str(caught.value)
        assert ";" in str(caught.value)  # what is wrong; what to do


def test_an_unknown_recipe_is_a_mistake_of_the_user() -> None:
    with pytest.raises(UserError, match="vox: no such recipe; the known ones are folder"):
        recipe_for("vox")


def test_coverage_counts_and_groups_reasons() -> None:
    def source(number: int, person: str) -> Source:
        return Source(path=f"{number}.mp4", source_hint=str(number), dataset="x", person=person)

    discovery = Discovery(
        sources=[source(0, "a"), source(1, "a"), source(2, "")],
        expected=6,
        broken=[("3", "empty: no bytes"), ("4", "missing: gone"), ("5", "missing: not downloaded")],
        notes=["one thing was put right"],
        dataset="x",
    )
    lines = [line.split() for line in coverage(discovery).splitlines()]
    assert lines[1:] == [
        ["expected", "6"],
        ["found", "3", "50.0", "%"],
        ["broken", "3"],
        ["missing", "2", "4,", "5"],
        ["empty", "1", "3"],
        ["people", "1", "1", "sources", "without"],
        ["note:", "one", "thing", "was", "put", "right"],
    ]
    assert "unknown" in coverage(Discovery(sources=[], expected=None, broken=[]))


sources = st.builds(
    lambda person, video: Source(path="p", source_hint="h", dataset="d", person=person, meta={YOUTUBE: video} if video else {}),
    st.sampled_from(["", "ann", "bob", "cid", "dan"]),
    st.sampled_from(["", "v1", "v2", "v3", "v4"]),
)


@given(st.lists(sources, max_size=12))
def test_join_people_is_the_transitive_closure(given_sources: list[Source]) -> None:
    joined = join_people(given_sources)
    keys = [{one.person, f"youtube-{one.meta[YOUTUBE]}" if YOUTUBE in one.meta else ""} - {""} for one in given_sources]
    group = [set(key) for key in keys]
    for _ in group:  # the slow twin: merge until nothing changes
        group = [set().union(*(other for other in group if other & one)) if one else set() for one in group]
    assert [one.person for one in joined] == [min(one, default="") for one in group]
    assert [one.meta for one in joined] == [one.meta for one in given_sources]
    assert join_people(joined) == joined


def test_people_are_joined_across_data_sets() -> None:
    one = Source(path="a", source_hint="a", dataset="hdtf", person="hdtf-ann", meta={YOUTUBE: "v"})
    two = Source(path="b", source_hint="b", dataset="celebvhq", meta={YOUTUBE: "v"})
    assert [source.person for source in join_people([one, two])] == ["hdtf-ann", "hdtf-ann"]


@pytest.mark.parametrize(
    ("annotated", "file", "expected"),
    [
        ("25", Fraction(25), Fraction(25)),
        ("30", NTSC, NTSC),  # rounded
        ("29", NTSC, NTSC),  # cut off
        ("29.97", None, Fraction(2997, 100)),
        ("30000", None, NTSC),  # the numerator alone
        ("24000", Fraction(25), Fraction(24000, 1001)),
        ("25000", None, Fraction(25)),
        ("30000/1001", Fraction(60), NTSC),
        ("30", Fraction(25), Fraction(30)),  # another download: its frame numbers mean other frames
    ],
)
def test_frame_rates_as_metadata_hold_them(annotated: str, file: Fraction | None, expected: Fraction) -> None:
    assert frame_rate(annotated, file) == expected


@pytest.mark.parametrize("annotated", ["0", "-25", "fast", "30/0", ""])
def test_no_frame_rate(annotated: str) -> None:
    with pytest.raises((ValueError, ZeroDivisionError)):
        frame_rate(annotated, None)


# ---------------------------------------------------------------------------------------------------------------- folder


def test_folder(tmp_path: Path) -> None:
    from datasets_toolkit.recipes.folder import Folder

    video(tmp_path / "ann" / "day" / "a.mp4")
    video(tmp_path / "top.MP4".replace("MP4", "mkv"))
    (tmp_path / "ann" / "b.mp4").write_bytes(b"")
    (tmp_path / "ann" / "c.mp4.part").write_bytes(b"x")
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "d.mp4").write_bytes(b"x")
    (tmp_path / "ann" / "notes.txt").write_text("x")
    plain = Folder().discover(tmp_path)
    assert [source.source_hint for source in plain.sources] == ["ann/day/a.mp4", "top.mkv"]
    assert [source.person for source in plain.sources] == ["", ""]
    assert kinds(plain) == {"ann/b.mp4": "empty", "ann/c.mp4.part": "unfinished"}
    named = Folder(dataset="mine", person_from_folder=True, licence="CC0").discover(tmp_path)
    assert [source.person for source in named.sources] == ["mine-ann", ""]
    assert {(source.dataset, source.licence) for source in named.sources} == {("mine", "CC0")}
    assert all(Path(source.path).is_file() and Path(source.path).is_absolute() for source in named.sources)


# ------------------------------------------------------------------------------------------------------------------ HDTF


def hdtf(root: Path) -> Path:
    """Annotated at 72 lines; ann0 was downloaded at 144; joe1 shows the same stretch as whipjoe."""
    meta = root / "HDTF_dataset"
    watch = "https://www.youtube.com/watch?v="
    text(meta / "WDA_video_url.txt", f"Ann0 {watch}aaa&t=6s", f"Ann1 {watch}bbb",
         f"Joe1 {watch}jjj&t=5s", f"WhipJoe {watch}jjj", f"Bo {watch}ooo")  # fmt: skip
    text(meta / "WDA_annotion_time.txt", "Ann0.mp4 00:00-00:01 00:01-00:02", "Ann1.mp4 00:00-00:02", "Joe1.mp4 00:00-00:02",
         "WhipJoe.mp4 00:00-00:02", "Bo.mp4 00:00-00:02 00:00-00:09 what")  # fmt: skip
    text(meta / "WDA_crop_wh.txt", "Ann0_0.mp4 20 40 8 40", "Ann0_1.mp4 30 40 0 40", "Ann1_0.mp4 20 40 0 40", "Joe1_0.mp4 20 40 0 40",
         "WhipJoe_0.mp4 21 40 0 40", "Bo_1.mp4 20 40 0 40", "Bo_2.mp4 20 40 0 40")  # fmt: skip
    text(meta / "WDA_resolution.txt", "Ann0.mp4 72", "Ann1.mp4 72", "Joe1.mp4 72", "WhipJoe.mp4 72", "Bo.mp4 72")
    text(meta / "RD_video_url.txt", "Radio1 https://www.youtube.com/watch?v=rrr", "Radio2 https://www.youtube.com/watch?v=sss")
    text(meta / "RD_annotion_time.txt", "Radio1.mp4 00:00-00:02", "Radio2.mp4 00:00-00:02")
    text(meta / "RD_crop_wh.txt", "Radio1_0.mp4 20 40 0 40", "Radio2_0.mp4 20 40 0 40")
    text(meta / "RD_resolution.txt", "Radio1.mp4 0", "Radio2.mp4 72")
    raw = root / "_videos_raw"
    video(raw / "WDA_Ann0.mp4", lines=144)
    video(raw / "WDA_Joe1.mp4")
    video(raw / "WDA_WhipJoe.mp4")
    video(raw / "WDA_Bo.mp4")
    video(raw / "RD_Radio1.mp4")
    (raw / "RD_Radio2.mp4.part").write_bytes(b"x")
    (raw / "RD_Radio2_download_log.txt").write_text("log")
    video(root / "WDA_Ann0_000.mp4", 1.0)
    video(root / "WDA_Ann1_000.mp4")
    return root


def test_hdtf_scales_regions_and_tells_every_gap(tmp_path: Path) -> None:
    found = recipe_for("hdtf").discover(hdtf(tmp_path))
    clips = by_name(found)
    assert found.expected == 10
    assert found.expected == len(found.sources) + len(found.broken)
    assert set(clips) == {"WDA_Ann0_000", "WDA_Ann0_001", "WDA_Ann1_000", "WDA_Joe1_000", "RD_Radio1_000"}
    assert kinds(found) == {
        "WDA_WhipJoe_000": "duplicate",  # the same YouTube video, time and region under another name
        "WDA_Bo_000": "no region",
        "WDA_Bo_001": "too short",
        "WDA_Bo_002": "metadata",
        "RD_Radio2_000": "unfinished",
    }
    scaled = clips["WDA_Ann0_001"]
    assert Path(scaled.path).name == "WDA_Ann0.mp4"
    assert (scaled.start, scaled.end) == (1.0, 2.0)
    assert box(scaled) == [60, 0, 140, 80]  # drawn on 72 lines, the download has 144
    assert box(clips["WDA_Joe1_000"]) == [20, 0, 60, 40]
    cut = clips["WDA_Ann1_000"]
    assert (Path(cut.path).name, cut.start, BOX in cut.meta) == ("WDA_Ann1_000.mp4", None, False)
    assert BOX not in clips["RD_Radio1_000"].meta  # annotated with 0 lines: the region means nothing
    assert [note.split(" clips")[0] for note in found.notes] == ["2", "1", "1"]


def test_hdtf_people(tmp_path: Path) -> None:
    clips = by_name(recipe_for("hdtf").discover(hdtf(tmp_path)))
    assert clips["WDA_Ann0_000"].person == clips["WDA_Ann1_000"].person == "hdtf-ann"  # two videos of one person
    assert clips["WDA_Joe1_000"].person == "hdtf-joe"  # and WhipJoe, by the video they share
    assert clips["RD_Radio1_000"].person == "youtube-rrr"


def test_hdtf_does_not_trust_a_clip_cut_from_another_size(tmp_path: Path) -> None:
    root = hdtf(tmp_path)
    video(root / "WDA_Joe1_000.mp4", lines=40)
    clips = by_name(HDTF(prefer_clips=True).discover(root))
    assert Path(clips["WDA_Ann0_000"].path).parent.name == "_videos_raw"  # cut from 144 lines with a region for 72
    assert Path(clips["WDA_Joe1_000"].path).name == "WDA_Joe1_000.mp4"


def test_hdtf_by_hand_and_without_metadata(tmp_path: Path) -> None:
    root = hdtf(tmp_path / "a")
    video(root / "Radio2_0.mp4")  # as the data set's page names them
    assert "RD_Radio2_000" in by_name(recipe_for("hdtf").discover(root))
    video(tmp_path / "b" / "WRA_PaulRyan1_000.mp4")
    (tmp_path / "b" / "RD_Radio1_000.mp4").write_bytes(b"")
    bare = recipe_for("hdtf").discover(tmp_path / "b")
    assert (bare.expected, [source.person for source in bare.sources]) == (None, ["hdtf-paulryan"])
    assert kinds(bare) == {"RD_Radio1_000": "empty"}


# ------------------------------------------------------------------------------------------------------------------ VFHQ


def vfhq_meta(root: Path, name: str, fps: str = "5", crop: str = "16 0 56 40", width: int = 128, height: int = 72) -> None:
    text(root / "meta_info" / f"{name}.txt", f"H {height}", f"W {width}", f"FPS {fps}", f"CROP {crop}")


def test_vfhq_goes_by_seconds(tmp_path: Path) -> None:
    vfhq_meta(tmp_path, "Clip+-1aaaaaaaaa+P0+C0+F4-10", fps="4")  # downloaded at 10 a second and twice the size
    vfhq_meta(tmp_path, "Clip+-1aaaaaaaaa+P1+C1+F4-10", fps="4", crop="72 0 112 40")  # the other face of the shot
    vfhq_meta(tmp_path, "Clip+bbbbbbbbbbb+P0+C0+F14-60", fps="29")  # 30000/1001, cut off
    vfhq_meta(tmp_path, "Clip+bbbbbbbbbbb+P0+C1+F400-460", fps="29")
    video(tmp_path / "data" / "youtube_videos" / "-1aaaaaaaaa.mkv", 3, 144, Fraction(10))
    video(tmp_path / "data" / "youtube_videos" / "bbbbbbbbbbb.mp4", 2.1, 72, NTSC)
    found = recipe_for("vfhq").discover(tmp_path)
    clips = by_name(found)
    assert (found.expected, set(clips)) == (
        4,
        {"Clip+-1aaaaaaaaa+P0+C0+F4-10", "Clip+-1aaaaaaaaa+P1+C1+F4-10", "Clip+bbbbbbbbbbb+P0+C0+F14-60"},
    )
    other, same = clips["Clip+-1aaaaaaaaa+P0+C0+F4-10"], clips["Clip+bbbbbbbbbbb+P0+C0+F14-60"]
    assert (other.start, other.end) == (5 / 4, 10 / 4)  # frames 5 to 9 of 4 a second
    assert box(other) == [32, 0, 112, 80]
    assert (same.start, same.end) == pytest.approx((15 * 1001 / 30000, 60 * 1001 / 30000))
    assert {other.person, clips["Clip+-1aaaaaaaaa+P1+C1+F4-10"].person} == {"youtube--1aaaaaaaaa"}
    assert kinds(found) == {"Clip+bbbbbbbbbbb+P0+C1+F400-460": "too short"}
    assert len(found.notes) == 1
    assert found.notes[0].startswith("2 clips: the download has another frame rate")


def test_vfhq_frames_picked_are_those_of_the_annotated_moment(tmp_path: Path) -> None:
    vfhq_meta(tmp_path, "Clip+ccccccccccc+P0+C0+F4-9")
    path = video(tmp_path / "ccccccccccc.mp4", 3)
    (clip,) = recipe_for("vfhq").discover(tmp_path).sources
    inside = [frame.index for frame in read_frames(path, start=clip.start) if clip.end is None or frame.time < clip.end - 1e-6]
    assert inside == [5, 6, 7, 8]  # first + 1 to last - 1


def test_vfhq_cut_clips_pictures_and_damage(tmp_path: Path) -> None:
    for name in ("a+P0+C0+F0-11", "a+P0+C1+F20-71", "d+P0+C0+F0-9", "e+P0+C0+F0-9", "f+P0+C0+F9-3", "h+P0+C0+F0-9"):
        vfhq_meta(tmp_path, f"Clip+{name}")
    text(tmp_path / "meta_info" / "Clip+g+P0+C0+F0-9.txt", "H 72", "W 128", "FPS 0", "CROP 1 2 3 4")
    text(tmp_path / "meta_info" / "Clip+h+P0+C0+F0-9.txt", "H 72", "W 128", "FPS 5")
    cut = tmp_path / "data" / "cropped_videos"
    video(cut / "Clip+a+P0+C0.mp4", 2.0)
    video(cut / "Clip+a+P0+C1.mp4", 5.4)  # cut by frame numbers at another rate: 10 s were promised
    pictures = tmp_path / "extracted_cropped_face_results" / "d" / "Clip+d+P0+C0+F0-9"
    pictures.mkdir(parents=True)
    (pictures / "00000001.png").write_bytes(b"x")
    found = VFHQ().discover(tmp_path)
    assert set(by_name(found)) == {"Clip+a+P0+C0+F0-11"}
    assert {name.split("+", 1)[1].split("+F")[0]: kind for name, kind in kinds(found).items()} == {
        "a+P0+C1": "length",
        "d+P0+C0": "pictures",
        "e+P0+C0": "missing",
        "f+P0+C0": "metadata",
        "g+P0+C0": "metadata",
        "h+P0+C0": "metadata",
    }
    assert found.expected == len(found.sources) + len(found.broken) == 7


# -------------------------------------------------------------------------------------------------------------- CelebV-HQ


def test_celebvhq(tmp_path: Path) -> None:
    def clip(video_id: str, start: float, end: float, left: float = 0.25) -> dict[str, object]:
        area = {"top": 0.0, "bottom": 0.5, "left": left, "right": left + 0.25}
        return {"ytb_id": video_id, "duration": {"start_sec": start, "end_sec": end}, "bbox": area, "attributes": {}, "version": "v0.1"}

    clips = {
        "aaaaaaaaaaa_0": clip("aaaaaaaaaaa", 0.5, 1.5),
        "aaaaaaaaaaa_1": clip("aaaaaaaaaaa", 0.5, 1.5, left=0.75),  # another face at the same time
        "aaaaaaaaaaa_2": clip("aaaaaaaaaaa", 0.6, 1.5),  # the first once more
        "bbbbbbbbbbb_0": clip("bbbbbbbbbbb", 3700.0, 3702.0),
        "ccccccccccc_0": clip("ccccccccccc", 0.0, 1.0),
        "ddddddddddd_0": clip("ddddddddddd", 0.0, 1.0),
        "eeeeeeeeeee_0": {"ytb_id": "eeeeeeeeeee"},
        "fffffffffff_0": clip("fffffffffff", 0.0, 9.0),
    }
    (tmp_path / "celebvhq_info.json").write_text(json.dumps({"meta_info": {}, "clips": clips}))
    folder = tmp_path / "downloaded_celebvhq"
    video(folder / "raw" / "aaaaaaaaaaa.mp4")
    (folder / "raw" / "ccccccccccc.mp4").write_bytes(b"")
    video(folder / "raw" / "ddddddddddd.f137.mp4")
    video(folder / "processed" / "bbbbbbbbbbb_0.mp4")
    video(folder / "processed" / "fffffffffff_0.mp4")
    found = recipe_for("celebvhq").discover(tmp_path)
    names = by_name(found)
    assert found.expected == 8
    assert set(names) == {"aaaaaaaaaaa_0", "aaaaaaaaaaa_1", "bbbbbbbbbbb_0"}
    assert kinds(found) == {
        "aaaaaaaaaaa_2": "duplicate",
        "ccccccccccc_0": "empty",
        "ddddddddddd_0": "unfinished",
        "eeeeeeeeeee_0": "metadata",
        "fffffffffff_0": "too short",
    }
    first = names["aaaaaaaaaaa_0"]
    assert (first.start, first.end, box(first)) == (0.5, 1.5, [32, 0, 64, 36])
    assert first.person == names["aaaaaaaaaaa_1"].person == "youtube-aaaaaaaaaaa"
    assert names["bbbbbbbbbbb_0"].start is None
    assert found.notes == ["1 processed clips begin after the first hour, where an early downloader cut at a wrong time"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"clips": []}', "\udcff"])
def test_celebvhq_metadata_damage(tmp_path: Path, damage: str) -> None:
    (tmp_path / "celebvhq_info.json").write_bytes(damage.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecipeError, match=r"celebvhq_info\.json.*download it again"):
        recipe_for("celebvhq").discover(tmp_path)


# -------------------------------------------------------------------------------------------------------- TalkingHead-1KH


def test_talkinghead1kh(tmp_path: Path) -> None:
    lists = tmp_path / "data_list"
    text(lists / "train_video_tubes.txt", "aaaaaaaaaaa_0001,96,128,5,14,32,16,64,48", "aaaaaaaaaaa_0001,96,128,5,14,80,16,112,48",
         "--bbbbbbbbb_0000,96,128,0,9,0,0,32,32", "aaaaaaaaaaa_0001,96,128,5,99,32,16,64,48", "nonsense")  # fmt: skip
    text(lists / "val_video_tubes.txt", "ccccccccccc_0000,96,128,0,9,0,0,32,32", "aaaaaaaaaaa_0002,96,128,0,9,0,0,32,32",
         "ddddddddddd_0000,96,128,0,9,0,0,32,32")  # fmt: skip
    late_video(tmp_path / "train" / "1min_clips" / "aaaaaaaaaaa_0001.mp4", 60.0, 20)  # the clock was not reset
    late_video(tmp_path / "train" / "cropped_clips" / "--bbbbbbbbb_0000_S0_E9_L0_T0_R32_B32.mp4", 0.0, 10)
    late_video(tmp_path / "val" / "cropped_clips" / "aaaaaaaaaaa_0002_S0_E9_L0_T0_R32_B32.mp4", 0.0, 10)
    late_video(tmp_path / "val" / "cropped_clips" / "ccccccccccc_0000_S0_E9_L0_T0_R32_B32.mp4", 0.0, 10)
    (tmp_path / "val" / "cropped_clips" / "ddddddddddd_0000_S0_E9_L0_T0_R32_B32.mp4").write_bytes(b"no video")
    found = recipe_for("talkinghead1kh").discover(tmp_path)
    names = by_name(found)
    assert found.expected == len(found.sources) + len(found.broken) == 8
    chunk = names["aaaaaaaaaaa_0001_S5_E14_L32_T16_R64_B48"]
    assert (chunk.start, chunk.end, box(chunk)) == (60.5, 61.5, [16, 8, 32, 24])  # annotated at twice the size
    inside = [frame.index for frame in read_frames(Path(chunk.path), start=chunk.start) if frame.time < 61.5 - 1e-6]
    assert inside == list(range(5, 15))
    assert chunk.person == names["aaaaaaaaaaa_0002_S0_E9_L0_T0_R32_B32"].person == "youtube-aaaaaaaaaaa"
    assert chunk.split is None  # its video is in train and val
    assert names["--bbbbbbbbb_0000_S0_E9_L0_T0_R32_B32"].split == "train"
    assert names["ccccccccccc_0000_S0_E9_L0_T0_R32_B32"].split == "val"
    assert sorted(kinds(found).values()) == ["metadata", "too short", "unreadable"]
    assert "aaaaaaaaaaa_0001_S5_E14_L80_T16_R112_B48" in names  # two faces of one shot
    assert found.notes == ["1 videos lie in two splits of the data set; their clips lost the split"]


def test_talkinghead1kh_without_lists(tmp_path: Path) -> None:
    late_video(tmp_path / "small" / "cropped_clips" / "a_b_c_0003_S0_E9_L0_T0_R32_B32.mp4", 0.0, 10)
    found = recipe_for("talkinghead1kh").discover(tmp_path)
    assert (found.expected, found.sources[0].meta[YOUTUBE], found.sources[0].split) == (None, "a_b_c", None)


# -------------------------------------------------------------------------------------------------------------- NeRSemble


def test_nersemble_mono(tmp_path: Path) -> None:
    def images(participant: str, sequence: str) -> Path:
        return tmp_path / "mono_flame_avatar" / participant / "sequences" / sequence / "images"

    video(images("018", "FREE") / "cam_222200037.mp4")
    video(images("018", "FREE") / "cam_222200046.mp4")
    video(images("018", "FREE").parent / "alpha_maps" / "cam_222200037.mp4")
    video(images("018", "BACKGROUND") / "cam_222200037.mp4")
    video(images("037", "EXP-1-head") / "cam_222200037.mp4")
    video(images("037", "EXP-2-eyes") / "cam_222200046.mp4")
    video(images("037", "EXP-4-lips") / "cam_222200037.mp4")
    (images("037", "EXP-4-lips") / "cam_222200037.mp4").write_bytes(b"")
    old = tmp_path / "mono_flame_avatar" / "055" / "EXP-1-head" / "images" / "cam_222200037_000000.jpg"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"x")
    found = recipe_for("nersemble_mono").discover(tmp_path)
    assert [(Path(one.path).name, one.person, one.meta["benchmark"]) for one in found.sources] == [
        ("cam_222200037.mp4", "nersemble-018", "test"),
        ("cam_222200037.mp4", "nersemble-037", "train"),
    ]
    assert {name.split("/", 1)[1]: kind for name, kind in kinds(found).items()} == {
        "037/EXP-2-eyes": "missing",
        "037/EXP-4-lips": "empty",
        "055/EXP-1-head": "pictures",
    }
