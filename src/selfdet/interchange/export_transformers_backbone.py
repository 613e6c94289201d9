"""A plain ResNet as a folder that transformers loads by itself, under its own names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from selfdet.errors import UserError
from selfdet.interchange.export_backbone import home_of
from selfdet.interchange.export_check import check_maps_of
from selfdet.interchange.export_mmdet import RESNET
from selfdet.interchange.export_words import map_differences
from selfdet.interchange.outgoing import Outgoing, Written
from selfdet.interchange.transformers_names import as_transformers
from selfdet.models.backbones import Backbone

WEIGHTS = "model.safetensors"
MAPS = """
import sys
sys.modules["selfdet"] = None  # from here on `import selfdet` fails
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, ResNetBackbone

weights, inputs, outputs, threads, *_ = sys.argv[1:]
torch.set_num_threads(int(threads))
folder = Path(weights).parent
net, info = ResNetBackbone.from_pretrained(folder, local_files_only=True, output_loading_info=True)
assert not any(info.values()), info
processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
pixels = processor(images=list(load_file(inputs)["bytes"]), return_tensors="pt")["pixel_values"]
with torch.no_grad():
    maps = net.eval()(pixels).feature_maps
save_file({str(level): features.contiguous() for level, features in enumerate(maps)}, outputs)
"""


def export_transformers_backbone(folder: Path, given: Outgoing) -> Written:
    """Write a plain ResNet for transformers, and compare the maps of bytes there.

    Raises: UserError for another network; ExportMismatchError.
    """
    backbone: Backbone = given.network
    # timm's of these names have the same tensors as torchvision's.
    if not RESNET.fullmatch(backbone.library_name):
        raise UserError(
            f"--to transformers: the backbone of {given.source} is {backbone.library}'s {backbone.library_name}, and "
            "only plain ResNets have names of their own there",
            home_of(backbone),
        )
    write_transformers_backbone(folder, backbone)
    figures = check_maps_of(folder / WEIGHTS, backbone, MAPS)
    return Written(figures, f"loaded in transformers, {map_differences(figures)}")


def write_transformers_backbone(folder: Path, backbone: Backbone) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json of a plain ResNet into `folder`."""
    try:
        import transformers
    except ImportError:
        raise UserError("--to transformers needs transformers", "pip install 'selfdet[detr]'") from None
    state = backbone.net.state_dict()
    stages = [{name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")} for stage in (1, 2, 3, 4)]
    shape: dict[str, Any] = {
        "hidden_sizes": list(backbone.channels),
        "depths": [len(blocks) for blocks in stages],
        "layer_type": "bottleneck" if "layer1.0.conv3.weight" in state else "basic",
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    config = transformers.ResNetConfig(**shape)
    with torch.device("meta"):
        net = transformers.ResNetBackbone(config)
    net.load_state_dict(as_transformers(state), assign=True)
    transformers.utils.logging.disable_progress_bar()
    net.save_pretrained(folder)
    # Images of any size: nothing is resized.
    mean, std = list(backbone.mean), list(backbone.std)
    processor = transformers.ViTImageProcessor(do_resize=False, image_mean=mean, image_std=std)
    processor.save_pretrained(folder)
