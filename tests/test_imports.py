"""Imports point one way, and what is heavy or optional is imported only where it may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A room imports itself and rooms of lower rank. Rooms of one rank do not know each other.
MGGTALK = {
    "types": 0,
    "streaming": 0,
    "provenance": 1,
    "geometry": 1,
    "networks": 1,
    "modules": 2,
    "rendering": 2,
    "metrics": 2,
    "losses": 3,
    "reconstruction": 3,
    "model": 4,
    "data": 4,
    "drivers": 4,
    "export": 5,
    "checkpoints": 6,
    "motion_csv": 6,
    "motion_files": 6,
    "talking_head": 6,
    "audio": 7,
    "stages": 7,
    "callbacks": 8,
    "evaluation": 8,
    "viewer": 8,
    "__init__": 9,
    "cli_animate": 10,
    "training": 10,
    "cli": 11,
    "demo": 12,
    "__main__": 13,
}
TOOLKIT = {
    "__init__": 0,
    "asset_list": 0,
    "compiling": 0,
    "errors": 0,
    "native": 0,
    "schema": 0,
    "local_files": 1,
    "sample": 1,
    "text_tables": 1,
    "assets": 2,
    "media": 3,
    "faces": 4,
    "recipes": 4,
    "annotators": 5,
    "shards": 6,
    "curation": 7,
    "build": 8,
    "checks": 8,
    "export": 9,
    "synthetic": 9,
    "cli_build": 10,
    "cli_curate": 10,
    "cli": 11,
}
RANKS = {"mggtalk": MGGTALK, "datasets_toolkit": TOOLKIT}

ONLY_IN = {"gsplat": "mggtalk/rendering/cuda.py", "wandb": "mggtalk/callbacks/"}  # not even inside functions elsewhere
NEVER = ("torchvision", "lpips", "torch_fidelity")  # their CUDA-linked wheels break a CPU environment
AT_TOP_LEVEL = {  # where a module may import these at once; everywhere else only inside functions
    "albumentations": ("mggtalk/data/",),
    "av": (),
    "diffusers": (),
    "dlib": (),
    "fsspec": (),
    "gsplat": ("mggtalk/rendering/cuda.py",),
    "insightface": (),
    "jsonargparse": ("mggtalk/training.py",),
    "lightning": ("mggtalk/stages/", "mggtalk/data/", "mggtalk/callbacks/", "mggtalk/training.py"),
    "mediapipe": (),
    "omegaconf": (),
    "onnx": (),
    "onnxruntime": (),
    "pocketsphinx": (),
    "pyarrow": (),
    "ray": (),
    "scenedetect": (),
    "skimage": (),
    "submitit": (),
    "torchmetrics": ("mggtalk/stages/", "mggtalk/metrics/"),
    "transformers": (),
    "wandb": (),
    "webdataset": ("mggtalk/data/",),
}


@dataclass(frozen=True)
class Import:
    line: int
    module: str  # absolute, with the imported name where that may be a module
    when_loaded: bool  # runs as soon as the importing module is loaded


def imports(source: str, package: list[str]) -> Iterator[Import]:
    """All imports of a module of ``package``, also those inside functions, under TYPE_CHECKING and through importlib."""

    def visit(node: ast.AST, loaded: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, loaded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(node.lineno, f"{base}.{alias.name}", loaded) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (Import(node.lineno, str(name.value), loaded) for name in node.args[:1] if isinstance(name, ast.Constant))
        for field, value in ast.iter_fields(node):
            runs = loaded and not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and field == "body")
            runs = runs and not (isinstance(node, ast.If) and field == "body" and "TYPE_CHECKING" in ast.unparse(node.test))
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, runs)

    yield from visit(ast.parse(source), True)


def room(parts: list[str], ranks: dict[str, int]) -> str:
    """The room of a module of a package, given the parts of its name after the package's."""
    return parts[0] if parts and parts[0] in ranks else "__init__"


def complaint(file: str, found: Import) -> str | None:
    """What is wrong with an import in ``file`` (relative to the repository), if anything."""
    top, parts = found.module.split(".")[0], found.module.split(".")
    if top in NEVER:
        return f"{top} is never imported"
    if top in ONLY_IN and not file.startswith(ONLY_IN[top]):
        return f"{top} is imported only in {ONLY_IN[top]}"
    if top in AT_TOP_LEVEL and found.when_loaded and not file.startswith(AT_TOP_LEVEL[top]):
        return f"{top} is imported inside functions only"
    if top == "mggtalk" and file.startswith("datasets_toolkit/"):
        return "datasets_toolkit never imports mggtalk"
    if top in RANKS and file.startswith(f"{top}/"):
        ranks = RANKS[top]
        own, other = Path(file).parts[1].removesuffix(".py"), room(parts[1:], ranks)
        if own != other and not ranks[other] < ranks[own]:
            return f"{own} may not import {other}"
    return None


def violations(root: Path) -> list[str]:
    """``file:line: reason`` for each import that points the wrong way below ``root``."""
    found = []
    for path in sorted([*root.glob("mggtalk/**/*.py"), *root.glob("datasets_toolkit/**/*.py")]):
        file = path.relative_to(root).as_posix()
        own = Path(file).parts[1].removesuffix(".py")
        if own not in RANKS[Path(file).parts[0]]:
            found.append(f"{file}:1: {own} has no rank; add it to the table in {Path(__file__).name}")
            continue
        package = list(path.relative_to(root).parent.parts)
        for one in imports(path.read_text(encoding="utf-8"), package):
            reason = complaint(file, one)
            if reason is not None:
                found.append(f"{file}:{one.line}: {reason}")
    return found


def test_imports_point_one_way() -> None:
    assert not violations(ROOT), "\n" + "\n".join(violations(ROOT))


def test_the_checker_reads_the_packages() -> None:
    assert (ROOT / "datasets_toolkit" / "__init__.py").is_file()
    source = (ROOT / "datasets_toolkit" / "media" / "video.py").read_text(encoding="utf-8")
    modules = {one.module for one in imports(source, ["datasets_toolkit", "media"])}
    assert {"numpy", "datasets_toolkit.media.opening.import_av", "av.container.InputContainer"} <= modules


PLANTED = {  # file, source, line and reason, or None where all is well
    "toolkit": (
        "datasets_toolkit/sample.py",
        "import os\nfrom mggtalk.types import Frame\n",
        (2, "datasets_toolkit never imports mggtalk"),
    ),
    "toolkit in a function": (
        "datasets_toolkit/sample.py",
        "def f():\n    import mggtalk\n",
        (2, "datasets_toolkit never imports mggtalk"),
    ),
    "upwards": ("mggtalk/types.py", "from mggtalk.geometry import cameras\n", (1, "types may not import geometry")),
    "upwards from the root": ("mggtalk/geometry/a.py", "from mggtalk import model\n", (1, "geometry may not import model")),
    "upwards, relative": ("mggtalk/geometry/a.py", "\nfrom ..model import MGGTalk\n", (2, "geometry may not import model")),
    "upwards, relative to the root": ("mggtalk/model.py", "from . import cli\n", (1, "model may not import cli")),
    "upwards for types": (
        "mggtalk/model.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mggtalk.cli\n",
        (3, "model may not import cli"),
    ),
    "the whole package": ("mggtalk/model.py", "import mggtalk\n", (1, "model may not import __init__")),
    "sideways": ("mggtalk/modules/a.py", "from mggtalk.rendering.cpu import f\n", (1, "modules may not import rendering")),
    "by name": ("mggtalk/types.py", "import importlib\nimportlib.import_module('mggtalk.cli')\n", (2, "types may not import cli")),
    "unknown room": ("mggtalk/misc.py", "", (1, "misc has no rank")),
    "unknown room of the toolkit": ("datasets_toolkit/misc/a.py", "", (1, "misc has no rank")),
    "upwards in the toolkit": ("datasets_toolkit/shards/a.py", "from datasets_toolkit import build\n", (1, "shards may not import build")),
    "upwards in a function": (
        "datasets_toolkit/faces/a.py",
        "def f():\n    from datasets_toolkit.build.config import A\n",
        (2, "faces may not import build"),
    ),
    "sideways in the toolkit": ("datasets_toolkit/checks/a.py", "from ..build import work\n", (1, "checks may not import build")),
    "gsplat": ("mggtalk/rendering/cpu.py", "def f():\n    import gsplat\n", (2, "gsplat is imported only in mggtalk/rendering/cuda.py")),
    "wandb": ("mggtalk/stages/base.py", "def f():\n    from wandb import init\n", (2, "wandb is imported only in mggtalk/callbacks/")),
    "wandb at once": ("mggtalk/callbacks/a.py", "import wandb\n", (1, "wandb is imported inside functions only")),
    "av at once": (
        "datasets_toolkit/sample.py",
        "try:\n    import av.video\nexcept ImportError:\n    pass\n",
        (2, "av is imported inside"),
    ),
    "mediapipe at once": ("datasets_toolkit/sample.py", "class A:\n    import mediapipe as mp\n", (2, "mediapipe is imported inside")),
    "lightning at once": ("mggtalk/model.py", "import lightning\n", (1, "lightning is imported inside functions only")),
    "torchvision": ("mggtalk/metrics/a.py", "def f():\n    import torchvision\n", (2, "torchvision is never imported")),
    "downwards": ("mggtalk/model.py", "from mggtalk.modules.identity import Identity\nfrom mggtalk import types\n", None),
    "the same room": ("mggtalk/geometry/a.py", "from mggtalk.geometry.b import c\nfrom . import d\nfrom .. import types\n", None),
    "downwards in the toolkit": ("datasets_toolkit/build/a.py", "from datasets_toolkit.shards import tars\n", None),
    "the toolkit from above": ("mggtalk/data/a.py", "from datasets_toolkit.schema import Region\nimport lightning\n", None),
    "av in a function": ("datasets_toolkit/sample.py", "def f():\n    import av\n", None),
    "av for types": ("datasets_toolkit/sample.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import av\n", None),
    "gsplat in its place": ("mggtalk/rendering/cuda.py", "import gsplat\n", None),
}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_imports(tmp_path: Path, case: str) -> None:
    file, source, expected = PLANTED[case]
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    found = violations(tmp_path)
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1
        assert found[0].startswith(f"{file}:{expected[0]}: {expected[1]}")
