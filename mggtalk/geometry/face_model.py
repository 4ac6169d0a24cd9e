"""The face model: a linear basis of people and expressions on the tracked face mesh. Our free stand-in for a 3DMM.

Letters: M the mesh of a frame with the head pose removed; b its blendshape scores; B what each blendshape moves; c the motion
components' coefficients and C what they move; a a person's coefficients in the identity basis A:
    M = mean + A a + B b + C c.
The expression feature of the method is e = (b, c). All meshes are in canonical head space, centimetres.

A neutral face is a mean, and people are seen with parted lips as often as not: its lips are parted too, by 2 % of its height on average.
:meth:`FaceModel.closing` is the expression that closes them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from datasets_toolkit.faces.head_pose import canonical_face

ASSET = Path(__file__).parents[1] / "assets" / "face_basis.safetensors"
INNER_LIPS = ((13, 82, 312, 81, 311, 80, 310), (14, 87, 317, 178, 402, 88, 318))
"""Vertices of the upper inner lip, and those of the lower one that they meet."""
LIKELY = 0.5
"""Root mean square of the motion coefficients, in standard deviations, that the split of a single frame may claim (docs/log.md)."""
TOUCH = 0.02
"""Standard deviation (cm) of the distance of lips that touch."""


class FaceModel(nn.Module):
    """The basis that ships with the project, made by ``tools/fit_face_model.py``; buffers only, nothing to train.

    Args:
        noise: standard deviation (cm) that a vertex is trusted to, against the unit priors of the coefficients.
        basis: another basis file of ``tools/fit_face_model.py``, for example one fitted without the people it is evaluated on.
    """

    mean: Float[Tensor, "v 3"]
    identity: Float[Tensor, "a v 3"]
    blendshapes: Float[Tensor, "b v 3"]
    components: Float[Tensor, "c v 3"]
    importance: Float[Tensor, " v"]
    triangles: Int[Tensor, "m 3"]
    mirror: Int[Tensor, " v"]

    def __init__(self, noise: float = 0.05, basis: Path | None = None) -> None:
        super().__init__()
        self.noise = noise
        for name, tensor in load_file(basis or ASSET).items():
            self.register_buffer(name, tensor.float(), persistent=False)
        face = canonical_face()
        self.register_buffer("triangles", torch.tensor(face.triangles), persistent=False)
        self.register_buffer("mirror", torch.tensor(face.mirror), persistent=False)

    @property
    def expression_size(self) -> int:
        """Length of an expression: blendshapes and motion components."""
        return len(self.blendshapes) + len(self.components)

    def displacement(self, expression: Float[Tensor, "*batch e"]) -> Float[Tensor, "*batch v 3"]:
        """How far an expression, or a difference of two, moves each vertex."""
        return torch.einsum("...e,evk->...vk", expression, torch.cat([self.blendshapes, self.components]))

    def neutral(self, meshes: Float[Tensor, "t v 3"], blendshapes: Float[Tensor, "t b"]) -> Float[Tensor, "v 3"]:
        """A person's neutral face from frames of them: the mean of what the blendshapes leave."""
        return (meshes - torch.einsum("tb,bvk->tvk", blendshapes, self.blendshapes)).mean(0)

    def expression(
        self, meshes: Float[Tensor, "t v 3"], blendshapes: Float[Tensor, "t b"], neutral: Float[Tensor, "v 3"]
    ) -> Float[Tensor, "t e"]:
        """Expressions of frames of a person whose neutral face is known."""
        left = meshes - neutral - torch.einsum("tb,bvk->tvk", blendshapes, self.blendshapes)
        return torch.cat([blendshapes, self._solve(self.components, left)], -1)

    def change(
        self, first: Float[Tensor, "t v 3"], second: Float[Tensor, "t v 3"], blendshapes: Float[Tensor, "t b"]
    ) -> Float[Tensor, "t e"]:
        """How expressions change from one frame to another of the same person, whose blendshapes change by ``blendshapes``.

        The difference of :meth:`expression` of both, in which the neutral face cancels.
        """
        left = second - first - torch.einsum("tb,bvk->tvk", blendshapes, self.blendshapes)
        return torch.cat([blendshapes, self._solve(self.components, left)], -1)

    def split(self, mesh: Float[Tensor, "v 3"], blendshapes: Float[Tensor, " b"]) -> tuple[Float[Tensor, "v 3"], Float[Tensor, " e"]]:
        """Neutral face and expression of one frame of an unknown person: the most probable split under the priors of both bases.

        One frame hardly tells a person's shape from its motion, and least where the face is turned away and half of it is guessed. So
        motion of more than :data:`LIKELY` in the root mean square is shortened to that, and the rest stays with the person.
        """
        left = mesh - self.mean - torch.einsum("b,bvk->vk", blendshapes, self.blendshapes)
        both = self._solve(torch.cat([self.identity, self.components]), left[None])[0]
        components = both[len(self.identity) :]
        components = components * (LIKELY / components.square().mean().sqrt().clamp(min=LIKELY))
        expression = torch.cat([blendshapes, components])
        return mesh - self.displacement(expression), expression

    def closing(self, neutral: Float[Tensor, "v 3"]) -> Float[Tensor, " e"]:
        """The expression that closes the lips of a neutral face: of all that bring the inner lips together, the most probable one.

        Components alone; the least of |c|^2 + |D + G c|^2 / TOUCH^2, where D are the distances of the neutral lips and G what c adds.
        """
        upper, lower = (list(side) for side in INNER_LIPS)
        gaps = (self.components[:, upper] - self.components[:, lower]).flatten(1).double()
        wanted = (neutral[lower] - neutral[upper]).flatten().double()
        normal = gaps @ gaps.mT + TOUCH**2 * torch.eye(len(gaps), device=gaps.device, dtype=gaps.dtype)
        components = torch.linalg.solve(normal, gaps @ wanted).to(neutral.dtype)
        return torch.cat([components.new_zeros(len(self.blendshapes)), components])

    def _solve(self, basis: Float[Tensor, "k v 3"], residual: Float[Tensor, "t v 3"]) -> Float[Tensor, "t k"]:
        """Maximum a posteriori coefficients with unit priors."""
        weights = self.importance[:, None]
        matrix = (basis * weights).flatten(1).double()
        target = (residual * weights).flatten(1).double()
        normal = matrix @ matrix.mT + self.noise**2 * torch.eye(len(matrix), device=matrix.device, dtype=matrix.dtype)
        return torch.linalg.solve(normal, matrix @ target.mT).mT.to(residual.dtype)
