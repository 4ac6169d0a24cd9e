"""Light: where a face turns towards a light that stays, it gets brighter. Not in the paper, whose colours go with the head.

Letters: n_v the unit normal at vertex v of the face mesh, in the camera's frame, where light rests; I_v the brightness that an image shows
there (mean of RGB, blurred); p_v what faces look like on average, with how much that is to be trusted. Skin lit from one direction and from
all around, to the first order, and logarithms because skins differ by factors:
    log I_v = c + p_v + l . n_v                       c and l are fitted to a source
    log I'_v - log I_v = (L + g l) . (n'_v - n_v)     L and g are the same for everybody: what l finds is only what differs from p
``tools/fit_light.py`` makes p, its trust, L and g from shards.
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
"""Largest change of a logarithm that is made: beyond it there are shadows, of which normals know nothing."""


class FaceLight(nn.Module):
    """Finds the light of a source, and says what it changes; buffers only, nothing to train."""

    pattern: Float[Tensor, " v"]
    trust: Float[Tensor, " v"]
    common: Float[Tensor, " 3"]
    gain: Float[Tensor, ""]
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
        return Light(direction=SHARE * (self.common + self.gain * own), mesh=frame.mesh, normals=normals)

    @torch.no_grad()
    def change(self, light: Light, displacement: Float[Tensor, "b v 3"], camera: Camera) -> Float[Tensor, "b 2 v"]:
        """What logarithms of brightness change by at every vertex: of what the source shows there, and of what it shows mirrored there.

        Args:
            light: of the source.
            displacement: of the vertices under the expression of the target, cm.
            camera: of the target.
        """
        normals = camera_normals(light.mesh + displacement, camera, self.triangles)
        shown = torch.stack([light.normals, light.normals[:, self.mirror]], 1)
        return ((normals[:, None] - shown) @ light.direction[:, None, :, None])[..., 0].clamp(-LIMIT, LIMIT)


def shaded(change: Float[Tensor, "b 2 v"], cloud: PointCloud, visible: int) -> Float[Tensor, "b n 1"]:
    """What colours are to be multiplied with.

    Args:
        change: from :meth:`FaceLight.change`.
        cloud: points bound to the mesh; beside the face the change fades as their weights do.
        visible: how many of the points, the first, are seen in the source; the others are mirrored.
    """
    parts = []
    for field, points in zip(change.unbind(1), (slice(None, visible), slice(visible, None)), strict=True):
        anchors, weights = cloud.anchors[:, points], cloud.weights[:, points]
        parts.append((field.gather(1, anchors.flatten(1)).view(weights.shape) * weights).sum(-1, keepdim=True))
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
    """Logarithm of the brightness around each vertex, about its mean."""
    brightness = image.mean(1, keepdim=True)
    for share in (128, 256):  # two boxes, nearly a Gaussian of a hundred and fiftieth of the image
        radius = max(round(image.shape[-1] / share), 1)
        brightness = avg_pool2d(brightness, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    return sample(brightness, project(mesh, camera)[0])[..., 0].clamp(min=DARK).log()


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
