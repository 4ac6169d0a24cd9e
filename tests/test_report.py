"""Pages, tables and pictures that people look at."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("omegaconf")

from curated_scenes import CLIPS, Clip, head, make_curated

from datasets_toolkit.curation.pages import bars, curve, data_url, page, table, write_whole
from datasets_toolkit.curation.plan import make_plan
from datasets_toolkit.curation.policy import Limits, Policy
from datasets_toolkit.curation.report import plan_html, plan_text
from datasets_toolkit.curation.stats import dataset_stats, stats_json, stats_text
from datasets_toolkit.errors import UserError
from datasets_toolkit.export.examples import PICTURE_HEIGHT, ClipPictures, near_limits, video_picture
from datasets_toolkit.export.preview import PANEL, clip_sheet, preview, sample_panels
from datasets_toolkit.media.images import read_image
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.text_tables import sparkline, text_table

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Reader(HTMLParser):
    """Checks that elements close in order, and collects what a page asks for and shows."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    return make_curated(tmp_path_factory.mktemp("set"))


STRICT = Policy(minimum=Limits(sharpness=30.0), maximum=Limits(yaw_abs_p95=8.0))


def test_the_page_of_a_plan_stands_alone_and_shows_both_sides_of_each_limit(reader: ShardReader) -> None:
    plan = make_plan(reader.clips, reader.sources, STRICT)
    assert (plan.kept.clips, plan.rejected.clips) == (1, 4)
    examples = near_limits(reader.clips, plan.keep, STRICT, ClipPictures(reader.clips, reader.sources, reader), 2)
    html = Reader(plan_html(plan, name="<set>", policy="strict", examples=examples))
    assert html.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in html.addresses)
    assert not {"script", "link", "iframe", "object"} & set(html.tags)
    assert html.tags.count("svg") == 6
    assert "Plan of <set>" in html.text
    assert list(examples) == ["sharpness at least 30", "yaw_abs_p95 at most 8"]
    assert [(one.clip, one.kept, one.text) for one in examples["sharpness at least 30"]] == [
        (CLIPS[4].id, False, "sharpness 3"), (CLIPS[3].id, True, "sharpness 180"),
    ]  # fmt: skip
    assert f"{CLIPS[4].id}: sharpness 3 (rejected, no picture)" in html.text  # it is in no shard, and its video is not there
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(html.addresses[0].split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (96, 96, 3)
    assert picture.std() > 20


def test_the_table_of_a_plan_says_the_same(reader: ShardReader) -> None:
    plan = make_plan(reader.clips, reader.sources, STRICT)
    text = plan_text(plan)
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
    assert lines["kept"][1] == "1"
    assert lines["rejected"][1] == "4"
    assert lines["sharpness < 30"][3:][:1] == ["1"]
    assert "yaw reached" in lines
    assert plan_text(plan, plain=True).isascii()


def test_a_plan_of_nothing_is_told(reader: ShardReader) -> None:
    nothing = make_plan(reader.clips.slice(0, 0), reader.sources.slice(0, 0), STRICT)
    assert "kept" in plan_text(nothing)
    assert "sets no limit that a clip comes near" in Reader(plan_html(nothing, name="x", policy="p", examples={})).text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    clips = (replace(CLIPS[0], person=evil, name="set-evil-00000001"), replace(CLIPS[4], reasons=(evil,)))
    reader = make_curated(tmp_path / "set", clips)
    policy = Policy(minimum=Limits(sharpness=30.0), exclude_people=[evil])
    plan = make_plan(reader.clips, reader.sources, policy)
    for text in (
        plan_html(plan, name=evil, policy=evil, examples=near_limits(reader.clips, plan.keep, policy, lambda row: None)),
        (preview(reader, tmp_path / "preview")).read_text(),
        page(evil, [table((evil,), [(evil,)])]),
        page("x", [bars(evil, evil, np.arange(3.0), np.ones(2), np.ones(2))]),
        page("x", [curve(evil, evil, np.arange(3.0), np.ones(3))]),
    ):
        assert "script" not in Reader(text).tags


def test_bars_are_as_high_as_their_hours() -> None:
    from re import findall

    drawing = bars("title", "unit", np.array([0.0, 1, 2, 3]), np.array([1.0, 2, 0]), np.array([1.0, 0, 4]), limits=[1.5])
    heights = [(kind, float(height)) for kind, height in findall(r'class="(kept|rejected)" [^>]*height="([\d.]+)"', drawing)]
    whole = heights[-1][1]
    assert heights == [("kept", pytest.approx(whole / 4, abs=0.02)), ("rejected", pytest.approx(whole / 4, abs=0.02)),
                       ("kept", pytest.approx(whole / 2, abs=0.02)), ("rejected", whole)]  # fmt: skip
    places = [float(x) for x in findall(r'<rect class="\w+" x="([\d.]+)"', drawing)]
    (limit,) = [float(x) for x in findall(r'class="limit" x1="([\d.]+)"', drawing)]
    assert limit == pytest.approx((places[2] + places[3]) / 2, abs=0.2)


def test_curves_break_at_gaps() -> None:
    times = np.array([0, 1, 2, 5, 6, 7.0]) / 25
    assert curve("yaw", "", times, np.arange(6.0)).count("M") == 2
    assert curve("yaw", "", times, np.array([0, np.nan, 1, 2, 3, 4.0])).count("M") == 3
    assert "path" in curve("yaw", "", times[:1], np.full(1, np.nan))


def test_every_label_has_a_picture_of_its_own() -> None:
    sample = head(CLIPS[0], 1)
    panels = sample_panels(sample)
    assert list(panels) == ["image", "landmarks and head axes", "parsing", "matte", "depth", "normals"]
    pictures = list(panels.values())
    assert all(picture.shape == (96, 96, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert all(np.abs(one.astype(int) - other).mean() > 1 for place, one in enumerate(pictures) for other in pictures[:place])
    bare = replace(sample, image=None, parsing=None, matte=None, depth=None, normals=None, landmarks=None)
    assert list(sample_panels(bare)) == ["image", "landmarks and head axes"]


def test_the_axes_are_drawn_where_the_pose_puts_them() -> None:
    sample = head(CLIPS[0], 3)  # yaw 0: the x axis (red) points to the picture's right, y (green) up
    drawn = sample_panels(replace(sample, image=np.zeros((96, 96, 3), np.uint8), landmarks=None))["landmarks and head axes"].astype(int)
    origin = sample.meta.intrinsics @ sample.meta.head_to_camera[:3, 3]
    x, y = origin[:2] / origin[2]
    red, green = (np.argwhere((drawn[..., channel] > 150) & (drawn.sum(-1) < 420)).mean(0) for channel in (0, 1))
    assert red[1] > x + 5
    assert abs(red[0] - y) < 6
    assert green[0] < y - 5
    assert abs(green[1] - x) < 6


def test_a_preview_shows_every_clip_and_why_others_are_missing(reader: ShardReader, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    index = preview(reader, tmp_path / "look", frames=2, progress=lambda what, done, total: told.append((done, total)))
    html = Reader(index.read_text())
    kept = [clip.id for clip in CLIPS if clip.kept]
    assert sorted(html.addresses) == sorted(f"sheets/{clip}.png" for clip in kept)
    assert all((tmp_path / "look" / address).is_file() for address in html.addresses)
    assert "sharpness 3 < 30" in html.text
    assert read_image(tmp_path / "look" / "sheets" / f"{kept[0]}.png").shape == (22 + 2 * PANEL, 6 * PANEL, 3)
    assert told[-1] == (4, 4)
    with pytest.raises(UserError, match="is there already"):
        preview(reader, tmp_path / "look")
    two = Reader(preview(reader, tmp_path / "two", clips=2).read_text())
    assert len(two.addresses) == 2
    assert "2 of 4 packed clips" in two.text


def test_an_interrupted_preview_leaves_nothing(reader: ShardReader, tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preview(reader, tmp_path / "look", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_clip_whose_name_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    from test_checks import tamper

    reader = make_curated(tmp_path / "set", CLIPS[:1])
    tamper(reader, "index", lambda rows: [row.update(clip="../../out") for row in rows])
    with pytest.raises(UserError, match="not a name for a file"):
        preview(ShardReader(reader.storage), tmp_path / "look")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_picture_comes_from_the_video_where_there_is_no_shard(tmp_path: Path) -> None:
    from datasets_toolkit.media.video import VideoWriter

    reader = make_curated(tmp_path, (*CLIPS[:1], CLIPS[4]))
    with VideoWriter(tmp_path / "eve.mp4", Fraction(25), (320, 240)) as video:
        for step in range(5):
            video.write(np.full((240, 320, 3), 40 * step, np.uint8))
    pictures = ClipPictures(reader.clips, reader.sources, reader)
    picture = pictures(1)
    assert picture is not None
    assert picture.shape == (PICTURE_HEIGHT, 240, 3)
    assert 40 <= picture.mean() <= 120  # of the middle of the clip
    packed = pictures(0)
    assert packed is not None
    assert packed.shape == (96, 96, 3)
    assert ClipPictures(reader.clips, reader.sources, None)(0) is None


def test_no_picture_where_there_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video at all" * 100)
    for path in ("broken.mp4", "missing.mp4", "."):
        assert video_picture(str(tmp_path / path), 1.0) is None


def test_stats_count_what_was_packed(reader: ShardReader) -> None:
    stats = dataset_stats(reader)
    train, samples, size = stats.splits["train"]
    assert (train.clips, train.people, samples) == (2, 2, 8)
    assert train.hours == pytest.approx(8 / 25 / 3600)
    assert size == sum(shard.bytes for shard in reader.info.shards if shard.split == "train")
    assert stats.clips == (5, 4)
    assert stats.columns["audio"] == 128 + 1280
    assert stats.measures["mouth"][1] == pytest.approx(0.1, abs=0.11)
    text = stats_text(stats)
    assert "4 of 5 clips kept; 0 of 5 sources rejected" in text
    assert "CC0" in text
    plain = json.loads(json.dumps(stats_json(stats), allow_nan=False))
    assert plain["splits"]["test"]["samples"] == 3
    assert plain["clips"] == {"all": 5, "kept": 4}


def test_tables_line_up() -> None:
    text = text_table(("name", "count", "hours"), [("a", 1, 0.5), ("longer", 12345, 10.25)])
    assert text.splitlines() == ["name     count   hours", "a            1   0.500", "longer  12,345  10.250"]
    html = Reader(table(("name", "count"), [("a & b", 12345)]))
    assert html.text == "namecounta & b12,345"


def test_sparklines_show_every_value_above_zero() -> None:
    assert sparkline(np.array([0, 1, 8, 4.0])) == " ▁█▄"
    assert sparkline(np.array([0, 1e-9, 1.0]), plain=True) == " .%"
    assert sparkline(np.zeros(3)) == "   "
    assert sparkline(np.zeros(0)) == ""


def test_pictures_survive_being_put_into_a_page(astronaut: np.ndarray) -> None:
    data = base64.b64decode(data_url(astronaut, 90).removeprefix("data:image/jpeg;base64,"))
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(picture.astype(int) - astronaut).mean() < 3


def test_files_are_written_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.html", b"page")
    assert (tmp_path / "a.html").read_bytes() == b"page"
    with pytest.raises(UserError, match="cannot be written"):
        write_whole(tmp_path / "nowhere" / "a.html", b"page")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_a_sheet_has_a_row_for_each_frame() -> None:
    sheet = clip_sheet([head(CLIPS[0], index) for index in (0, 1, 2)])
    assert sheet.shape == (22 + 3 * PANEL, 6 * PANEL, 3)
    assert (sheet[:22] < 200).any()  # names on top


def test_clips_have_different_ids() -> None:
    assert len({clip.id for clip in CLIPS}) == len(CLIPS)
    assert Clip("alice").id == CLIPS[0].id
