"""GeoWizard against the stock network and the definition of its attention."""

from __future__ import annotations

import json
from pathlib import Path

import network_weights as made
import numpy as np
import pytest
import torch
from annotator_scenes import SMALL, everywhere, small_crop

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.geowizard import GeoWizardDepth, GeoWizardNormals, JointAttention, class_switches
from datasets_toolkit.errors import AssetError, UserError
from datasets_toolkit.schema import Region

for package in ("onnx", "onnxruntime", "transformers", "diffusers"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def crop() -> FaceCrop:
    return small_crop()


class Heads:
    """The parts of an attention that a processor uses, as plain matrices."""

    heads, scale, rescale_output_factor = 2, 0.3, 1.0

    def __init__(self, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.to_q, self.to_k, self.to_v, mix = (torch.nn.Linear(width, width) for _ in range(4))
        for part in (self.to_q, self.to_k, self.to_v, mix):
            part.weight.data = torch.randn(width, width, generator=generator)
        self.to_out = [mix, torch.nn.Identity()]


def test_joint_attention_looks_at_both_samples() -> None:
    attention, states = Heads(6), torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    found = JointAttention()(attention, states)
    for sample, row in np.ndindex(2, 4):
        query = attention.to_q(states[sample, row])
        keys, values = attention.to_k(states.reshape(8, 6)), attention.to_v(states.reshape(8, 6))
        parts = []
        for head in (slice(0, 3), slice(3, 6)):
            weights = torch.softmax(0.3 * keys[:, head] @ query[head], 0)
            parts.append(weights @ values[:, head])
        torch.testing.assert_close(found[sample, row], attention.to_out[0](torch.cat(parts)), atol=1e-5, rtol=1e-4)


def test_the_joint_network_is_the_stock_one_where_both_samples_are_alike(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    arguments = made.geowizard(tmp_path / "weights")
    unet = GeoWizardDepth(**arguments).network()[0]
    stock = UNet2DConditionModel.from_pretrained(tmp_path / "weights", subfolder="unet", low_cpu_mem_usage=False).eval()
    joint = [name for name, processor in unet.attn_processors.items() if isinstance(processor, JointAttention)]
    assert joint == [name for name in stock.attn_processors if name.endswith("attn1.processor")]
    generator = torch.Generator().manual_seed(0)
    latents, context = torch.randn(1, 8, 8, 8, generator=generator), torch.randn(1, 1, 12, generator=generator)
    switches = class_switches("object")
    with torch.inference_mode():
        for switch in switches:
            told = {"encoder_hidden_states": context.repeat(2, 1, 1), "class_labels": switch.repeat(2, 1)}
            alike = unet(latents.repeat(2, 1, 1, 1), torch.tensor(7), **told).sample
            told = {"encoder_hidden_states": context, "class_labels": switch[None]}
            torch.testing.assert_close(alike[:1], stock(latents, torch.tensor(7), **told).sample, atol=1e-5, rtol=1e-4)
        both = {"encoder_hidden_states": context.repeat(2, 1, 1), "class_labels": switches}
        mixed = unet(latents.repeat(2, 1, 1, 1), torch.tensor(7), **both).sample
        apart = stock(latents.repeat(2, 1, 1, 1), torch.tensor(7), **both).sample
    assert (mixed - apart).abs().max() > 1e-4  # and differs where they are not


def test_the_switches_are_sines_and_cosines_of_one_hot_vectors() -> None:
    found = class_switches("outdoor").numpy()
    np.testing.assert_allclose(found[0], [0, np.sin(1), 1, np.cos(1), 0, np.sin(1), 0, 1, np.cos(1), 1], atol=1e-6)
    np.testing.assert_allclose(found[1, :4], [np.sin(1), 0, np.cos(1), 1], atol=1e-6)


def test_geowizard_gives_normals_in_the_camera_frame(crop: FaceCrop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    normals = np.random.default_rng(0).normal(size=(SMALL, SMALL, 3)) * 0.2 - [0, 0, 1]
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    annotator = GeoWizardNormals(**made.geowizard(tmp_path / "weights"))
    monkeypatch.setattr(annotator, "predict", lambda image: (np.zeros((SMALL, SMALL)), 0.7 * normals.astype(np.float32)))
    found = annotator(crop, everywhere(Region.SKIN), np.full((SMALL, SMALL), 110, np.float32))
    np.testing.assert_allclose(found, normals, atol=1e-6)


def test_other_folders_are_no_geowizard(tmp_path: Path) -> None:
    arguments = made.geowizard(tmp_path / "weights")
    with pytest.raises(UserError, match="give indoor, outdoor or object"):
        GeoWizardDepth(**arguments, domain="portrait")
    path = tmp_path / "weights" / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "in_channels": 4}))
    with pytest.raises(AssetError, match="in_channels 4 where GeoWizard has 8"):
        GeoWizardDepth(**arguments)
