"""Light: where a face turns towards a light that stays, it gets brighter, and where skin folds there are shadows.

Not in the paper, whose colours go with the head. Letters: n_v the unit normal at vertex v of the face mesh, in the camera's frame, where
light rests; I_v the brightness that an image shows there (mean of RGB, blurred); p_v what faces look like on average, with how much that is
to be trusted; e an expression. Skin is lit from one direction and from all around, to the first order; logarithms, as skins differ by
factors:
    log I_v = c + p_v + l . n_v                       c and l are fitted to a source
    log I'_v - log I_v = (L + g l) . (n'_v - n_v) + f_v . (e' - e)
L, g and f are the same for everybody: what l finds is only what differs from p, and f are the folds that expressions make in a face, which
are far finer than its mesh. Of such a change red takes less than its share and blue more (t, three numbers about 1): shadows on skin are
brown, not grey. ``tools/fit_light.py`` makes p, its trust, L, g, f and t from shards.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from datasets_toolkit.faces.head_pose import canonical_face
from mggtalk.geometry.cameras import project
from mggtalk.geometry.images import sample
from mggtalk.types import Camera, Frame, Light, PointCloud

ASSET = Path(__file__).parents[1] / "assets" / "face_light.safetensors"
DARK = 0.02
"""Brightness below which a picture says nothing."""
FACING = 0.3
"""Cosine between a normal and the line of sight from which on a vertex is seen well."""
PRIOR = 20.0
"""Weight of the belief that l is 0, in vertices."""
OUTLIER = 0.1
"""Differences of logarithms from which on a vertex (a highlight, a fringe, make-up) counts less and less (Huber's weights)."""
ROUNDS = 3
"""Solutions, each with the weights that the one before gives."""
SHARE = 0.7
"""How much of the change is made. Pictures of other people are as near to the truth with .6 as with all of it (docs/log.md); hair takes no
part, and beside it a face that changes too much looks worse than one that changes too little."""
LIMIT = 0.35
"""Largest change of a logarithm that normals make, and that folds make: beyond it there are shadows, of which neither knows anything."""


class FaceLight(nn.Module):
    """Finds the light of a source, and says what it changes; buffers only, nothing to train."""

    pattern: Float[Tensor, " v"]
    trust: Float[Tensor, " v"]
    common: Float[Tensor, " 3"]
    gain: Float[Tensor, ""]
    folds: Float[Tensor, "e v"]
    tint: Float[Tensor, " 3"]
    triangles: Int[Tensor, "m 3"]
    mirror: Int[Tensor, " v"]

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in load_file(ASSET).items():
            self.register_buffer(name, tensor.float(), persistent=False)
        face = canonical_face()
        self.register_buffer("triangles", torch.tensor(face.triangles), persistent=False)
        self.register_buffer("mirror", torch.tensor(face.mirror), persistent=False)

    @torch.no_grad()
    def forward(self, frame: Frame) -> Light:
        """The light of a source, and the face that it falls on."""
        normals = camera_normals(frame.mesh, frame.camera, self.triangles)
        seen = log_brightness(frame.image, frame.mesh, frame.camera) - self.pattern
        own = fitted_light(seen, normals, self.trust * (normals[..., 2] < -FACING))
        folds = SHARE * frame.expression @ self.folds
        return Light(direction=SHARE * (self.common + self.gain * own), mesh=frame.mesh, normals=normals, folds=folds)

    @torch.no_grad()
    def change(
        self, light: Light, displacement: Float[Tensor, "b v 3"], expression: Float[Tensor, "b e"], camera: Camera
    ) -> Float[Tensor, "b 2 v 3"]:
        """What logarithms of colours change by at every vertex: of what the source shows there, and of what it shows mirrored there.

        Args:
            light: of the source.
            displacement: of the vertices under the expression of the target, cm.
            expression: of the target.
            camera: of the target.
        """
        normals, folds = camera_normals(light.mesh + displacement, camera, self.triangles), SHARE * expression @ self.folds
        turned, folded = (new[:, None] - self._shown(old) for new, old in ((normals, light.normals), (folds, light.folds)))
        change = (turned @ light.direction[:, None, :, None])[..., 0].clamp(-LIMIT, LIMIT) + folded.clamp(-LIMIT, LIMIT)
        return change[..., None] * self.tint

    def _shown(self, field: Float[Tensor, "b v *c"]) -> Float[Tensor, "b 2 v *c"]:
        """What a field is where the source shows a vertex, and where it shows what is mirrored there."""
        return torch.stack([field, field[:, self.mirror]], 1)


def shaded(change: Float[Tensor, "b 2 v 3"], cloud: PointCloud, visible: int) -> Float[Tensor, "b n 3"]:
    """What colours are to be multiplied with.

    Args:
        change: from :meth:`FaceLight.change`.
        cloud: points bound to the mesh; beside the face the change fades as their weights do.
        visible: how many of the points, the first, are seen in the source; the others are mirrored.
    """
    parts = []
    for field, points in zip(change.unbind(1), (slice(None, visible), slice(visible, None)), strict=True):
        anchors, weights = cloud.anchors[:, points], cloud.weights[:, points]
        found = field.gather(1, anchors.flatten(1)[..., None].expand(-1, -1, 3)).unflatten(1, anchors.shape[1:])
        parts.append((found * weights[..., None]).sum(-2))
    return torch.cat(parts, 1).exp()


def camera_normals(mesh: Float[Tensor, "b v 3"], camera: Camera, triangles: Int[Tensor, "m 3"]) -> Float[Tensor, "b v 3"]:
    """Unit normals of a mesh (canonical head space) in the camera's frame, out of the face; 0 at vertices of no triangle."""
    corners = mesh[:, triangles]
    faces = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    total = torch.zeros_like(mesh)
    for corner in range(3):
        total = total.index_add(1, triangles[:, corner], faces)
    return normalize(total, dim=-1) @ camera.head_to_camera[:, :3, :3].mT


def log_brightness(image: Float[Tensor, "b 3 h w"], mesh: Float[Tensor, "b v 3"], camera: Camera) -> Float[Tensor, "b v"]:
    """Logarithm of the brightness around each vertex."""
    return log_channels(image.mean(1, keepdim=True), mesh, camera)[..., 0]


def log_channels(image: Float[Tensor, "b c h w"], mesh: Float[Tensor, "b v 3"], camera: Camera) -> Float[Tensor, "b v c"]:
    """Logarithms of the channels of an image around each vertex."""
    for share in (128, 256):  # two boxes, nearly a Gaussian of a hundred and fiftieth of the image
        radius = max(round(image.shape[-1] / share), 1)
        image = avg_pool2d(image, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    return sample(image, project(mesh, camera)[0]).clamp(min=DARK).log()


def fitted_light(seen: Float[Tensor, "b v"], normals: Float[Tensor, "b v 3"], weights: Float[Tensor, "b v"]) -> Float[Tensor, "b 3"]:
    """L of the figure above: least squares of ``seen = c + l . n`` with :data:`PRIOR`, outliers weighted down."""
    matrix = torch.cat([torch.ones_like(seen)[..., None], normals], -1)
    prior = torch.diag(seen.new_tensor([1e-6, PRIOR, PRIOR, PRIOR]))
    trusted = weights
    for _ in range(ROUNDS):
        weighted = (matrix * trusted[..., None]).mT
        solution = torch.linalg.solve(weighted @ matrix + prior, weighted @ seen[..., None])
        missed = (seen[..., None] - matrix @ solution)[..., 0].abs()
        trusted = weights * (OUTLIER / missed.clamp(min=OUTLIER))
    return solution[:, 1:, 0]
