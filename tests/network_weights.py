"""Tiny networks with random or rigged weights, saved in the formats in which the real ones are published.

:data:`MAKERS` gives, for each annotator that cannot be made without arguments, a function that writes such weights into a folder and
returns the arguments. A new annotator with weights joins the contract by an entry here. dlib's network takes no other weights than the real
ones, so it gets a copy of those that are installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pytest
import torch

from datasets_toolkit.annotators import Annotator
from datasets_toolkit.annotators.celebamask import BISENET_CLASSES, CELEBAMASK_CLASSES
from datasets_toolkit.annotators.depth_diffusers import MarigoldDepth
from datasets_toolkit.annotators.depth_transformers import TransformersDepth
from datasets_toolkit.annotators.geowizard import GeoWizardDepth, GeoWizardNormals
from datasets_toolkit.annotators.identity_dlib import INSTALL, NAME, DlibIdentity, installed, packaged_weights
from datasets_toolkit.annotators.identity_insightface import ArcFaceIdentity
from datasets_toolkit.annotators.normal_integration import IntegratedDepth
from datasets_toolkit.annotators.normals_diffusers import MarigoldNormals
from datasets_toolkit.annotators.parsing_onnx import OnnxParsing
from datasets_toolkit.annotators.parsing_segformer import SegformerParsing
from datasets_toolkit.annotators.syncnet import SyncNet, syncnet_layers

Arguments = dict[str, Any]


def depth_anything(folder: Path, *, metric: bool = False) -> Arguments:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    torch.manual_seed(1)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14, reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    kind = {"depth_estimation_type": "metric", "max_depth": 20} if metric else {}
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        head_hidden_size=8, **kind,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    size = {"height": 56, "width": 56}
    DPTImageProcessorPil(size=size, ensure_multiple_of=14, keep_aspect_ratio=True).save_pretrained(folder)
    readme = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A tiny network\n"
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return {"weights": folder}


def segformer(folder: Path, classes: Sequence[str] = CELEBAMASK_CLASSES) -> Arguments:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    torch.manual_seed(2)
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
        id2label=dict(enumerate(classes)), label2id={name: number for number, name in enumerate(classes)},
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return {"weights": folder}


def unet(context: int, given: int = 8, **extra: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=given, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=context, attention_head_dim=2, **extra,
    )  # fmt: skip


def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)


def marigold(folder: Path, pipeline: str) -> Arguments:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(3)
    letters = [*(chr(code) for code in range(33, 127)), *(f"{chr(code)}</w>" for code in range(33, 127))]
    words = {word: number for number, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    files = folder.with_name(folder.name + "_words")
    files.mkdir(parents=True)
    (files / "vocab.json").write_text(json.dumps(words))
    (files / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(str(files), model_max_length=16)
    extra = {"use_full_z_range": True} if "Normals" in pipeline else {"scale_invariant": True, "shift_invariant": True}
    getattr(diffusers, pipeline)(
        unet=unet(8), vae=autoencoder(), scheduler=scheduler(), text_encoder=CLIPTextModel(text), tokenizer=tokenizer,
        prediction_type="normals" if "Normals" in pipeline else "depth", **extra,
    ).save_pretrained(folder)  # fmt: skip
    return {"weights": folder, "steps": 2, "resolution": 64}


def geowizard(folder: Path) -> Arguments:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(4)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, projection_dim=12
    )
    unet(12, class_embed_type="projection", projection_class_embeddings_input_dim=10).save_pretrained(folder / "unet")
    autoencoder().save_pretrained(folder / "vae", safe_serialization=False)  # published as a .bin
    scheduler().save_pretrained(folder / "scheduler")
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    (folder / "feature_extractor").mkdir()
    told = {"crop_size": {"height": 28, "width": 28}, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(told))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DepthNormalEstimationPipeline"}))
    return {"weights": folder, "steps": 2, "resolution": 64}


def syncnet(folder: Path) -> Arguments:
    torch.manual_seed(5)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "syncnet_v2.model"
    state = {name: values for name, values in syncnet_layers().state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, path, _use_new_zipfile_serialization=False)  # the published file is as old
    return {"weights": path}


def node(kind: str, given: list[str], made: str, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, given, [made], **attributes)


def write_onnx(path: Path, nodes: list[Any], weights: dict[str, np.ndarray], given: list[Any], made: list[Any]) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, made)],
        [
            numpy_helper.from_array(values.astype(np.float32 if values.dtype.kind == "f" else np.int64), name)
            for name, values in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    onnx.save(model, path)


def bisenet(folder: Path, mixing: np.ndarray | None = None, bias: np.ndarray | None = None, size: Any = 64) -> Arguments:
    """A network that makes 19 logits of the colours of each pixel (a 1 x 1 convolution), by default at random."""
    generator = np.random.default_rng(6)
    mixing = generator.normal(size=(len(BISENET_CLASSES), 3)) if mixing is None else mixing
    bias = np.zeros(len(mixing)) if bias is None else bias
    weights = {"mixing": mixing[:, :, None, None], "bias": bias}
    write_onnx(
        folder / "bisenet.onnx",
        [node("Conv", ["image", "mixing", "bias"], "answer")],
        weights,
        [1, 3, size, size],
        [1, len(mixing), size, size],
    )
    return {"weights": folder / "bisenet.onnx"}


def arcface(folder: Path, size: int = 112, features: int = 512) -> Arguments:
    """A network that sums up 8 x 8 tiles of the face and mixes them at random."""
    generator = np.random.default_rng(7)
    nodes = [
        node("AveragePool", ["image"], "tiles", kernel_shape=[8, 8], strides=[8, 8]),
        node("Flatten", ["tiles"], "flat"),
        node("MatMul", ["flat", "mixing"], "answer"),
    ]
    mixing = generator.normal(size=(3 * (size // 8) ** 2, features))
    write_onnx(folder / "arcface.onnx", nodes, {"mixing": mixing}, ["batch", 3, size, size], ["batch", features])
    return {"weights": folder / "arcface.onnx"}


def dlib_resnet(folder: Path) -> Arguments:
    if not installed():
        pytest.skip(f"dlib's recogniser is not installed: {INSTALL}")
    folder.mkdir(parents=True)
    return {"weights": Path(copyfile(packaged_weights(), folder / NAME))}


def integrated(folder: Path) -> Arguments:
    return {"normals": {"class_path": "datasets_toolkit.annotators.depth_normals.DepthNormals", "init_args": {"smoothing": 2.0}}}


MAKERS: dict[type[Annotator], Callable[[Path], Arguments]] = {
    TransformersDepth: depth_anything,
    MarigoldDepth: lambda folder: marigold(folder, "MarigoldDepthPipeline"),
    MarigoldNormals: lambda folder: marigold(folder, "MarigoldNormalsPipeline"),
    GeoWizardDepth: geowizard,
    GeoWizardNormals: geowizard,
    SegformerParsing: segformer,
    OnnxParsing: bisenet,
    ArcFaceIdentity: arcface,
    DlibIdentity: dlib_resnet,
    SyncNet: syncnet,
    IntegratedDepth: integrated,
}
