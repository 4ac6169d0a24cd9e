"""Fit the face model that ships with MGGTalk: the mean face (toolkit) and the expression basis (model).

    python tools/fit_face_model.py --clips FOLDER --tracks CACHE_DIR [--people CSV] [--evaluate]

Steps, each a function below:
1. track every clip (cached, one file a clip);
2. mean face: generalised Procrustes over people, symmetric, upright and metric (pupils 6.3 cm apart), with pose weights that say how far
   each vertex follows the skull and not the expression;
3. expression basis: 52 blendshapes by ridge regression on within-clip changes, then principal components of what they leave, lips and
   eyes weighted up;
4. identity basis: principal components of the people's neutral faces, the prior that splits one image into person and expression.

``--people`` is a CSV with columns ``file`` and ``identity_id``; people, not clips, get equal weight, and ``--evaluate`` leaves people out.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.faces.detection import FaceTracker, reference_box
from datasets_toolkit.faces.head_pose import CanonicalFace, clip_camera, head_pose, lift, similarity
from datasets_toolkit.faces.tracking import follow_face
from datasets_toolkit.media.video import read_frames
from datasets_toolkit.schema import BLENDSHAPES, LANDMARKS, FloatArray

ROOT = Path(__file__).resolve().parents[1]
PUPIL_DISTANCE = 6.3
"""Mean distance between adult pupils, cm (Dodgson, "Variation and extrema of human interpupillary distance", 2004)."""
COMPONENTS, IDENTITIES = 32, 24
RIDGE = 3.0
"""Of the blendshape regression, in units of frames of one clip."""
FRAMES = 150
"""At most this many frames of a clip, evenly spread, so that long clips do not dominate."""
LIPS = tuple(sorted({*regions.LIPS_OUTER, *regions.MOUTH_INNER, *regions.UPPER_LIP, *regions.LOWER_LIP}))
EYES = tuple(sorted({*regions.LEFT_EYE, *regions.RIGHT_EYE, *regions.LEFT_IRIS, *regions.RIGHT_IRIS}))
SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".mpg", ".webm"}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A tracked clip: landmarks t x 478 x 3 (pixels), blendshapes t x 52, the intrinsics of its camera, and whose face it is."""

    landmarks: FloatArray
    blendshapes: FloatArray
    intrinsics: FloatArray
    person: str


@dataclass(frozen=True, kw_only=True)
class ExpressionBasis:
    """``mesh = neutral + blendshapes b + components c``; standard deviations of c; the blendshape-explained part is fitted first."""

    blendshapes: FloatArray  # 52 x 478 x 3, cm for a score of 1
    components: FloatArray  # k x 478 x 3, cm for a coefficient of 1; coefficients have unit variance


def track(clips: Path, cache: Path) -> None:
    """Landmarks and blendshapes of every video of a folder, one ``.npz`` each; finished ones are kept."""
    cache.mkdir(parents=True, exist_ok=True)
    todo = [path for path in sorted(clips.iterdir()) if path.suffix in SUFFIXES and not (cache / f"{path.name}.npz").exists()]
    with FaceTracker() as tracker:
        for path in tqdm(todo, desc="tracking", unit="clip"):
            faces = [face for _, face in follow_face(read_frames(path), tracker, name=path.name) if face is not None]
            if faces:
                landmarks = np.stack([face.landmarks for face in faces])
                np.savez(cache / f"{path.name}.npz", landmarks=landmarks, blendshapes=np.stack([face.blendshapes for face in faces]))


def load(cache: Path, people: Path | None) -> list[Clip]:
    """The tracked clips of a cache folder, thinned to :data:`FRAMES` frames."""
    names: dict[str, str] = {}
    if people is not None:
        with people.open(newline="") as table:
            names = {row["file"]: row["identity_id"] for row in csv.DictReader(table)}
    clips = []
    for path in sorted(cache.glob("*.npz")):
        with np.load(path, allow_pickle=False) as data:
            rows = np.unique(np.linspace(0, len(data["landmarks"]) - 1, FRAMES).round().astype(int))
            camera = clip_camera(reference_box(data["landmarks"][0]))
            clips.append(
                Clip(
                    landmarks=data["landmarks"][rows],
                    blendshapes=data["blendshapes"][rows],
                    intrinsics=camera,
                    person=names.get(path.stem, path.stem),
                )
            )
    return clips


def surface_triangles() -> npt.NDArray[np.int64]:
    """Triangles of the face surface (m x 3) from the landmarker's tessellation, whose edges come in threes."""
    from mediapipe.tasks.python.vision.face_landmarker import FaceLandmarksConnections

    edges = [(edge.start, edge.end) for edge in FaceLandmarksConnections.FACE_LANDMARKS_TESSELATION]
    return np.array([sorted({*edges[i], *edges[i + 1], *edges[i + 2]}) for i in range(0, len(edges), 3)])


def mean_face(clips: Sequence[Clip], rounds: int = 8) -> CanonicalFace:
    """Generalised Procrustes mean over people in the canonical frame, with pose weights from the motion left within clips."""
    points = [lift(clip.landmarks, clip.intrinsics) for clip in clips]
    weights = np.full(LANDMARKS, 1 / LANDMARKS)
    mean = _canonical_frame(points[0][0])
    mirror = _mirror_pairs(mean)
    for _ in tqdm(range(rounds), desc="mean face"):
        aligned = [np.stack([_align(frame, mean, weights) for frame in frames]) for frames in points]
        mean = _people_mean([frames.mean(0) for frames in aligned], clips)
        mean = _canonical_frame(_symmetric(_canonical_frame(mean), mirror))
        mirror = _mirror_pairs(mean)
        mean = _symmetric(mean, mirror)
        weights = _pose_weights(aligned, mirror)
    triangles = _outward(surface_triangles(), mean)
    return CanonicalFace(vertices=mean, triangles=triangles, mirror=mirror, pose_weights=weights)


def _align(frame: FloatArray, mean: FloatArray, weights: FloatArray) -> FloatArray:
    scale, rotation, shift = similarity(frame, mean, weights)
    return scale * frame @ rotation.T + shift


def _people_mean(values: Sequence[FloatArray], clips: Sequence[Clip]) -> FloatArray:
    people = sorted({clip.person for clip in clips})
    return np.mean([np.mean([v for v, c in zip(values, clips, strict=True) if c.person == who], 0) for who in people], 0)


def _canonical_frame(points: FloatArray) -> FloatArray:
    """Rotate, shift and scale a face (camera or canonical space) into canonical head space; its origin lies between the temples."""
    left, right = [263, 362, 291, regions.LEFT_TEMPLE], [33, 133, 61, regions.RIGHT_TEMPLE]
    x = _unit((points[left] - points[right]).mean(0))
    y = points[regions.FOREHEAD] - points[regions.CHIN]
    y = _unit(y - x * (x @ y))
    axes = np.stack([x, y, np.cross(x, y)])
    origin = points[[regions.LEFT_TEMPLE, regions.RIGHT_TEMPLE]].mean(0)
    scale = PUPIL_DISTANCE / np.linalg.norm(points[regions.LEFT_IRIS[0]] - points[regions.RIGHT_IRIS[0]])
    return scale * (points - origin) @ axes.T


def _unit(vector: FloatArray) -> FloatArray:
    return vector / np.linalg.norm(vector)


def _mirror_pairs(vertices: FloatArray) -> npt.NDArray[np.int64]:
    """The assignment of vertices to mirrored vertices with the least squared distance, made an involution."""
    reflected = vertices * [-1, 1, 1]
    cost = ((reflected[:, None] - vertices[None]) ** 2).sum(-1)
    mirror = linear_sum_assignment(cost + cost.T)[1]
    if not np.array_equal(mirror[mirror], np.arange(len(mirror))):
        raise RuntimeError("the mirror map of the mean face is not an involution: too few or too one-sided clips")
    return mirror


def _symmetric(vertices: FloatArray, mirror: npt.NDArray[np.int64]) -> FloatArray:
    return (vertices + vertices[mirror] * [-1, 1, 1]) / 2


def _pose_weights(aligned: Sequence[FloatArray], mirror: npt.NDArray[np.int64]) -> FloatArray:
    """Inverse of each vertex's variance within clips, floored at the median so that no few vertices decide the rotation alone."""
    variance = np.mean([frames.var(0).sum(-1) for frames in aligned], 0)
    variance = (variance + variance[mirror]) / 2
    weights = 1 / (variance + 0.5 * np.median(variance)) ** 2
    weights[list(EYES)] = 0  # lids and irises are expression
    return weights / weights.sum()


def _outward(triangles: npt.NDArray[np.int64], vertices: FloatArray) -> npt.NDArray[np.int64]:
    """Triangles wound counter-clockwise seen from the front: no part of the mean face looks back."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    inward = np.cross(b - a, c - a)[:, 2] < 0
    return np.where(inward[:, None], triangles[:, [0, 2, 1]], triangles)


def canonical_meshes(clips: Sequence[Clip], face: CanonicalFace) -> list[FloatArray]:
    """Meshes (t x 478 x 3, cm) of every clip with the head pose removed."""
    return [np.stack([head_pose(frame, clip.intrinsics, face).mesh for frame in clip.landmarks]) for clip in clips]


def fit_expression(clips: Sequence[Clip], meshes: Sequence[FloatArray], mirror: npt.NDArray[np.int64], components: int) -> ExpressionBasis:
    """Blendshape regression and the principal components of its residual, on changes within clips; mirrored clips count too."""
    people = sorted({clip.person for clip in clips})
    weight = {who: 1 / np.sqrt(sum(len(c.landmarks) for c in clips if c.person == who)) for who in people}
    scores, motions = [], []
    for clip, mesh in zip(clips, meshes, strict=True):
        for swap in (False, True):
            b, m = (clip.blendshapes[:, _swapped()], mesh[:, mirror] * [-1, 1, 1]) if swap else (clip.blendshapes, mesh)
            scores.append((b - b.mean(0)) * weight[clip.person])
            motions.append((m - m.mean(0)).reshape(len(m), -1) * weight[clip.person])
    b, m = np.concatenate(scores), np.concatenate(motions)
    ridge = RIDGE / FRAMES * np.eye(b.shape[1]) * np.trace(b.T @ b) / b.shape[1]
    shapes = np.linalg.solve(b.T @ b + ridge, b.T @ m)
    importance = np.repeat(_importance(), 3)
    _, size, directions = np.linalg.svd((m - b @ shapes) * importance, full_matrices=False)
    spread = size[:components] / np.sqrt(2 * len(people))
    parts = directions[:components] * spread[:, None] / importance
    return ExpressionBasis(blendshapes=shapes.reshape(-1, LANDMARKS, 3), components=parts.reshape(-1, LANDMARKS, 3))


def _swapped() -> list[int]:
    """Order of the blendshapes after exchanging left and right."""
    other = [name.replace("Left", "?").replace("Right", "Left").replace("?", "Right") for name in BLENDSHAPES]
    return [BLENDSHAPES.index(name) for name in other]


def _importance() -> FloatArray:
    weights = np.ones(LANDMARKS)
    weights[list(LIPS)], weights[list(EYES)] = 3.0, 3.0
    return weights


def solve_components(basis: ExpressionBasis, residual: FloatArray, noise: float = 0.05) -> FloatArray:
    """Coefficients (t x k) of what the blendshapes leave (t x 478 x 3), with their unit prior against ``noise`` cm of a vertex."""
    importance = np.repeat(_importance(), 3)
    matrix = basis.components.reshape(len(basis.components), -1) * importance
    target = residual.reshape(len(residual), -1) * importance
    prior = noise**2 * np.eye(len(matrix))
    return np.linalg.solve(matrix @ matrix.T + prior, matrix @ target.T).T


def neutral(basis: ExpressionBasis, mesh: FloatArray, blendshapes: FloatArray) -> FloatArray:
    """A clip's neutral face (478 x 3): the mean of what the blendshapes leave."""
    return (mesh - np.tensordot(blendshapes, basis.blendshapes, 1)).mean(0)


def identity_basis(neutrals: Sequence[FloatArray], clips: Sequence[Clip], face: CanonicalFace, count: int) -> tuple[FloatArray, FloatArray]:
    """Mean neutral face (symmetric) and principal components (k x 478 x 3, unit-variance coefficients) of people's neutral faces."""
    people = sorted({clip.person for clip in clips})
    faces = np.stack([np.mean([n for n, c in zip(neutrals, clips, strict=True) if c.person == who], 0) for who in people])
    faces = np.concatenate([faces, faces[:, face.mirror] * [-1, 1, 1]])
    mean = faces.mean(0)
    _, size, directions = np.linalg.svd((faces - mean).reshape(len(faces), -1), full_matrices=False)
    parts = directions[:count] * size[:count, None] / np.sqrt(len(faces))
    return mean, parts.reshape(-1, LANDMARKS, 3)


def unexplained(clips: Sequence[Clip], face: CanonicalFace, folds: int = 5) -> dict[int, float]:
    """Share of lip motion (variance within clips) that people left out of the fit keep unexplained, by number of components."""
    meshes = canonical_meshes(clips, face)
    people = sorted({clip.person for clip in clips})
    left: dict[int, list[float]] = {0: [], 16: [], 32: [], 64: []}
    for fold in range(folds):
        held = set(people[fold::folds])
        seen = [i for i, clip in enumerate(clips) if clip.person not in held]
        basis = fit_expression([clips[i] for i in seen], [meshes[i] for i in seen], face.mirror, 64)
        for i in (i for i in range(len(clips)) if i not in seen):
            rest = meshes[i] - np.tensordot(clips[i].blendshapes, basis.blendshapes, 1)
            rest = rest - rest.mean(0)
            total = (meshes[i] - meshes[i].mean(0))[:, LIPS].var()
            for count, shares in left.items():
                part = ExpressionBasis(blendshapes=basis.blendshapes, components=basis.components[:count])
                remains = rest - np.tensordot(solve_components(part, rest), part.components, 1) if count else rest
                shares.append(float(remains[:, LIPS].var() / total))
    return {count: float(np.mean(shares)) for count, shares in left.items()}


def main() -> None:
    """Fit and save both files; print how much motion the basis leaves unexplained on people it never saw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder of videos to track; leave out to use the cache alone")
    parser.add_argument("--tracks", type=Path, required=True, help="cache folder of the tracks")
    parser.add_argument("--people", type=Path, help="CSV with the columns file and identity_id")
    parser.add_argument("--out", type=Path, default=ROOT)
    parser.add_argument("--hold-out", default="", help="people to leave out, separated by commas")
    parser.add_argument("--evaluate", action="store_true", help="five-fold check on people left out")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    if arguments.clips:
        track(arguments.clips, arguments.tracks)
    held = set(arguments.hold_out.split(","))
    clips = [clip for clip in load(arguments.tracks, arguments.people) if clip.person not in held]
    face = mean_face(clips)
    if arguments.evaluate:
        for count, share in unexplained(clips, face).items():
            print(f"{count} components beyond the blendshapes: {100 * share:.0f} % of lip motion unexplained on unseen people")
    save(arguments.out, clips, face)


def save(out: Path, clips: Sequence[Clip], face: CanonicalFace) -> None:
    """Write ``canonical_face.safetensors`` and ``face_basis.safetensors`` under ``out``."""
    meshes = canonical_meshes(clips, face)
    basis = fit_expression(clips, meshes, face.mirror, COMPONENTS)
    neutrals = [neutral(basis, mesh, clip.blendshapes) for mesh, clip in zip(meshes, clips, strict=True)]
    mean, identities = identity_basis(neutrals, clips, face, IDENTITIES)
    people = str(len({clip.person for clip in clips}))
    toolkit, model = out / "datasets_toolkit" / "assets_data", out / "mggtalk" / "assets"
    toolkit.mkdir(parents=True, exist_ok=True)
    model.mkdir(parents=True, exist_ok=True)
    canonical = {
        "vertices": face.vertices.astype(np.float32),
        "triangles": face.triangles.astype(np.int32),
        "mirror": face.mirror.astype(np.int32),
        "pose_weights": face.pose_weights.astype(np.float32),
    }
    tensors = {
        "mean": mean.astype(np.float32),
        "identity": identities.astype(np.float16),
        "blendshapes": basis.blendshapes.astype(np.float16),
        "components": basis.components.astype(np.float16),
        "importance": _importance().astype(np.float32),
    }
    save_file(canonical, toolkit / "canonical_face.safetensors", {"people": people, "units": "cm"})
    save_file(tensors, model / "face_basis.safetensors", {"people": people, "units": "cm"})


if __name__ == "__main__":
    main()
