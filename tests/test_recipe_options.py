"""Options of recipes on the command line, what ``mggdata recipes`` tells, and synthetic heads by command."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from datasets_toolkit.build.given_sources import find_sources
from datasets_toolkit.cli import main
from datasets_toolkit.errors import UserError
from datasets_toolkit.recipes import RECIPES, Recipe, RecipeError, recipe_class, recipe_for
from datasets_toolkit.recipes.base import About, Discovery
from datasets_toolkit.recipes.options import Option, describe_recipe, options_of, typed_options
from datasets_toolkit.shards.shard_reader import ShardReader


class Sampler(Recipe):
    """A recipe with an option of each type.

    Args:
        loud: whether it shouts.
        times: how often: a number
            that goes over two lines.
        rate: frames a second.
        word: what it says.
    """

    name = "sampler"
    about = About(title="a sampler", layout=("ROOT/*",), defects=(), page="nowhere", licence="none")

    def __init__(self, loud: bool = False, times: int = 1, rate: float = 25.0, word: str = "") -> None:
        self.values = (loud, times, rate, word)

    def discover(self, root: Path) -> Discovery:
        return Discovery(sources=[], expected=None, broken=[])


def test_options_are_the_constructors_arguments() -> None:
    assert options_of(Sampler) == [
        Option(name="loud", kind=bool, default=False, help="whether it shouts."),
        Option(name="times", kind=int, default=1, help="how often: a number that goes over two lines."),
        Option(name="rate", kind=float, default=25.0, help="frames a second."),
        Option(name="word", kind=str, default="", help="what it says."),
    ]


def test_options_are_typed() -> None:
    made = Sampler(**typed_options(Sampler, {"loud": "Yes", "times": "3", "rate": "29.97", "word": "a=b"}))
    assert made.values == (True, 3, 29.97, "a=b")
    assert typed_options(Sampler, {}) == {}


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({"laud": "1"}, "sampler: no option 'laud'; it has loud, times, rate, word"),
        ({"loud": "maybe"}, "sampler: loud=maybe: must be true or false"),
        ({"times": "2.5"}, "sampler: times=2.5: must be a whole number"),
        ({"rate": "fast"}, "sampler: rate=fast: must be a number"),
    ],
)
def test_wrong_options_are_told(texts: dict[str, str], reason: str) -> None:
    with pytest.raises(RecipeError) as caught:
        typed_options(Sampler, texts)
    assert str(caught.value) == reason


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_tells_all_of_itself(name: str) -> None:
    recipe = recipe_class(name)
    assert recipe.about.layout
    assert recipe.about.licence
    for option in options_of(recipe):
        assert option.kind in (bool, int, float, str)
        assert option.help
        assert isinstance(option.default, option.kind)
        text = str(option.default)
        assert getattr(recipe_for(name, {option.name: text}), option.name) == option.default
    told = describe_recipe(recipe)
    for line in (*recipe.about.layout, *recipe.about.defects, recipe.about.page, recipe.about.licence):
        assert line in told


def test_the_command_tells_of_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)
    assert main(["recipes", "hdtf"]) == 0
    assert "prefer_clips  bool  false  take cut clips" in capsys.readouterr().out
    assert main(["recipes", "vox"]) == 2
    assert capsys.readouterr().err == f"error: vox: no such recipe; the known ones are {', '.join(RECIPES)}\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for person in ("ann", "bob"):
        (tmp_path / person).mkdir()
        (tmp_path / person / "talk.mp4").write_bytes(person.encode())
    return tmp_path


def test_an_option_reaches_its_recipe(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [one.person for one in find_sources([str(tree)], [])] == ["", ""]
    for options in (["person_from_folder=true", "dataset=mine"], ["folder.person_from_folder=yes", "folder.dataset=mine"]):
        assert [one.person for one in find_sources([str(tree)], [], options)] == ["mine-ann", "mine-bob"]
        assert [one.dataset for one in find_sources([], [["folder", str(tree)]], options)] == ["mine", "mine"]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("prefer_clips", "--recipe-option prefer_clips: write OPTION=VALUE, or RECIPE.OPTION=VALUE with one of folder, hdtf"),
        ("vox.a=1", "--recipe-option vox.a=1: write OPTION=VALUE"),
        ("hdtf.prefer_clips=true", "the recipe hdtf is not used; add --recipe hdtf ROOT"),
        ("dataset=mine", "the recipes synthetic, folder are used; name the one that is meant"),
        ("folder.camera=1", "folder: no option 'camera'; it has dataset, person_from_folder, licence"),
        ("folder.person_from_folder=2", "folder: person_from_folder=2: must be true or false"),
        ("synthetic.a=1", "synthetic: no option 'a'; it has none"),
    ],
)
def test_wrong_options_end_in_one_line(option: str, reason: str, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["build", str(tree), "--recipe", "synthetic", str(tree), "--out", str(tree / "out"), "--recipe-option", option]
    assert main(line) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert reason in told
    assert not (tree / "out").exists()


def test_no_recipe_at_all(tree: Path) -> None:
    with pytest.raises(UserError, match="no recipe is used"):
        find_sources([str(tree / "ann/talk.mp4")], [], ["dataset=mine"])


def test_synthesize_makes_a_data_set_or_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = ["--clips", "3", "--frames", "2", "--size", "64", "--persons", "3", "--seed", "5"]
    assert main(["synthesize", "--out", str(tmp_path / "set"), *numbers]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'set'}: 3 clips, 6 samples in 3 shards\n"
    info = ShardReader(tmp_path / "set").info
    assert {name: info.config[name] for name in ("clips", "frames", "size", "seed", "persons")} == {
        "clips": 3, "frames": 2, "size": 64, "seed": 5, "persons": 3,
    }  # fmt: skip
    assert main(["synthesize", "--out", str(tmp_path / "set"), *numbers]) == 2
    assert "a data set is there already" in capsys.readouterr().err
    assert main(["synthesize", "--videos", "--out", str(tmp_path / "videos"), "--clips", "1", "--frames", "3", "--size", "64"]) == 0
    printed = capsys.readouterr().out.split()
    assert [Path(line).parent for line in printed] == [tmp_path / "videos"]
    assert [one.path for one in find_sources([], [["synthetic", str(tmp_path / "videos")]])] == printed
    for wrong in (["--clips", "0"], ["--videos", "--frames", "-1"]):
        assert main(["synthesize", "--out", str(tmp_path / "none"), *wrong]) == 2
        assert "must be positive" in capsys.readouterr().err
    assert main(["synthesize", "--videos", "--out", "memory://videos"]) == 2
    assert "videos are written to a folder of this machine" in capsys.readouterr().err
