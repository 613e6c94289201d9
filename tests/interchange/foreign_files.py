"""What other programs save, at random: the content of a file of each format, and the network that is in it."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor

State = dict[str, Tensor]
NUMBERS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


@cache
def resnet18() -> State:
    """torchvision's ResNet-18 with a classifier, its norms as if trained."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    return dict(state)


def body() -> State:
    return {name: value for name, value in resnet18().items() if not name.startswith("fc.")}


@cache
def swin() -> State:
    """timm's smallest Swin with a classifier."""
    torch.manual_seed(0)
    return dict(timm.create_model("swin_tiny_patch4_window7_224").state_dict())


@cache
def vit() -> State:
    torch.manual_seed(0)
    return dict(timm.create_model("vit_tiny_patch16_224").state_dict())


@cache
def vit8() -> State:
    """timm's smallest ViT that takes pixels normalised by ImageNet's mean."""
    torch.manual_seed(0)
    return dict(timm.create_model("vit_small_patch8_224").state_dict())


def mae() -> Any:
    encoder = {name: value for name, value in vit8().items() if not name.startswith("head.")}
    decoder = {"mask_token": torch.zeros(1, 1, 512), "decoder_embed.weight": torch.ones(512, 384)}
    return {"model": {**encoder, **decoder}, "epoch": 800, "args": argparse.Namespace(model="mae")}


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def numbered(state: State) -> State:
    """The names of nn.Sequential(*resnet.children())."""
    return {
        f"{NUMBERS[head]}.{rest}": value
        for (head, _, rest), value in ((n.partition("."), v) for n, v in state.items())
        if head in NUMBERS
    }


def head(prefix: str) -> State:
    return {f"{prefix}0.weight": torch.ones(8, 512), f"{prefix}2.weight": torch.ones(4, 8)}


def first_swin(state: State) -> State:
    """Microsoft's names: a stage ends with its merging."""
    made = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        made[".".join(parts)] = value
        if name.endswith("relative_position_bias_table"):
            made[name.replace("bias_table", "index")] = torch.zeros(49, 49, dtype=torch.int64)
    return made


def mm_swin(state: State) -> State:
    """mmpretrain's names, and the order of its merging: of a channel the four neighbours, row by row."""
    words = {
        "layers.": "stages.",
        ".attn.": ".attn.w_msa.",
        ".mlp.fc1.": ".ffn.layers.0.0.",
        ".mlp.fc2.": ".ffn.layers.1.",
    }
    made = {}
    for name, value in first_swin(state).items():
        for old, new in words.items():
            name = name.replace(old, new, 1) if old != "layers." or name.startswith("layers.") else name
        name = name.replace("patch_embed.proj.", "patch_embed.projection.")
        if ".downsample." in name:
            # timm: (column, row, channel); there: (channel, row, column).
            split = value.unflatten(-1, (2, 2, -1))
            value = split.movedim((-3, -2, -1), (-1, -2, -3)).flatten(-3)
        made[name] = value
    return made


def folded(state: State) -> State:
    """A ResNet's norms folded into its convolutions."""
    made = {}
    for name, value in state.items():
        if value.dim() != 4:
            continue
        norm = name.removesuffix(".weight").replace("conv", "bn").replace("downsample.0", "downsample.1")
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-5).sqrt()
        made[name] = value * scale[:, None, None, None]
        made[name.replace(".weight", ".bias")] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return made


def moco() -> Any:
    encoder = {**body(), "fc.0.weight": torch.ones(8, 512)}
    queue = {"module.queue": torch.ones(8, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    state = {**under("module.encoder_q.", encoder), **under("module.encoder_k.", encoder), **queue}
    return {"epoch": 200, "arch": "resnet18", "state_dict": OrderedDict(state), "optimizer": {"state": {}}}


def openselfsup(second: bool) -> Any:
    heads = {**under("1.", head("mlp.")), **under("0.", body())}
    queues = {"queue": torch.ones(8, 16), **({"queue2": torch.ones(8, 16)} if second else {})}
    state = {**under("encoder_q.", heads), **under("encoder_k.", heads), **under("backbone.", body()), **queues}
    return {"meta": {"epoch": 200, "time": "now"}, "state_dict": state, "optimizer": {}}


def mmselfsup() -> Any:
    return {"meta": {}, "state_dict": {**under("backbone.", body()), **head("neck.mlp."), "queue": torch.ones(2, 3)}}


def swav() -> Any:
    return under("module.", {**body(), **head("projection_head."), "prototypes.weight": torch.ones(3, 4)})


def pixpro() -> Any:
    both = {**under("module.encoder.", body()), **under("module.encoder_k.", body()), **head("module.projector.")}
    return {"opt": argparse.Namespace(arch="resnet18"), "model": both, "epoch": 100}


def byol() -> Any:
    both = {**under("online_encoder.net.", body()), **head("online_predictor.net.")}
    return {"state_dict": {**both, **under("target_encoder.net.", body())}}


def dino() -> Any:
    net = {**under("module.backbone.", body()), "module.head.mlp.0.weight": torch.ones(3, 4)}
    return {"student": net, "teacher": net, "args": argparse.Namespace(arch="resnet18"), "epoch": 3}


def simmim() -> Any:
    encoder = {name: value for name, value in first_swin(swin()).items() if not name.startswith("head.")}
    decoder = {"encoder.mask_token": torch.zeros(1, 1, 96), "decoder.0.weight": torch.ones(4, 4, 1, 1)}
    return {"model": {**under("encoder.", encoder), **decoder}, "epoch": 100}


def lightly() -> Any:
    net = {**under("backbone.", numbered(body())), **head("projection_head.layers.")}
    return {"state_dict": {**net, **under("backbone_momentum.", numbered(body()))}, "hyper_parameters": {"lr": 0.1}}


def as_detectron2(state: State) -> dict[str, np.ndarray]:
    """detectron2's names, as arrays."""
    made = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
        name = re.sub(r"downsample\.0", "shortcut", re.sub(r"downsample\.1", "shortcut.norm", name))
        name = re.sub(r"bn(\d)", r"conv\1.norm", name)
        made[name if name.startswith("res") else f"stem.{name}"] = value.numpy()
    return made


def detectron2() -> Any:
    state = {name: torch.from_numpy(value) for name, value in as_detectron2(resnet18()).items()}
    return {"model": state, "__author__": "MOCO", "matching_heuristics": True}


def transformers_resnet() -> Any:
    """A classifier of transformers', whose tensors come in the order of torchvision's but for shortcuts, which are the
    first of a block."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=2)
    made = ResNetForImageClassification(config).state_dict()
    blocks: OrderedDict[str, list[str]] = OrderedDict()
    for name in body():
        own = blocks.setdefault(".".join(name.split(".")[:2]) if name.startswith("layer") else "", [])
        own.insert(sum("downsample" in each for each in own) if "downsample" in name else len(own), name)
    ours = [name for names in blocks.values() for name in names]
    theirs = [name for name in made if name.startswith("resnet.")]
    return {**made, **{other: body()[name] for name, other in zip(ours, theirs, strict=True)}}


def random(*shape: int, std: float = 0.05) -> Tensor:
    return torch.randn(*shape) * std


def layer(name: str, *shape: int, std: float = 0.05) -> State:
    bias = shape[1] if "upsample" in name else shape[0]
    return {f"{name}.weight": random(*shape, std=std), f"{name}.bias": random(bias, std=std)}


def mmdet(classes: int = 3, masks: bool = True, width: int = 64, box_head: str = "2fc") -> Any:
    """mmdet's Mask or Faster R-CNN over a ResNet-18."""
    state = under("backbone.", body())
    torch.manual_seed(3)
    for level, channels in enumerate((64, 128, 256, 512)):
        state |= layer(f"neck.lateral_convs.{level}.conv", width, channels, 1, 1)
        state |= layer(f"neck.fpn_convs.{level}.conv", width, width, 3, 3)
    state |= layer("rpn_head.rpn_conv", width, width, 3, 3)
    state |= layer("rpn_head.rpn_cls", 3, width, 1, 1, std=0.1) | layer("rpn_head.rpn_reg", 12, width, 1, 1, std=0.02)
    head = "roi_head.bbox_head"
    if box_head == "2fc":
        state |= layer(f"{head}.shared_fcs.0", 1024, width * 49) | layer(f"{head}.shared_fcs.1", 1024, 1024)
    else:
        for convolution in range(4):
            state |= layer(f"{head}.shared_convs.{convolution}.conv", width, width, 3, 3)
        state |= layer(f"{head}.shared_fcs.0", 1024, width * 49)
    state |= layer(f"{head}.fc_cls", classes + 1, 1024, std=0.02) | layer(
        f"{head}.fc_reg", 4 * classes, 1024, std=0.005
    )
    if masks:
        for convolution in range(4):
            channels = 256 if convolution else width
            state |= layer(f"roi_head.mask_head.convs.{convolution}.conv", 256, channels, 3, 3)
        state |= layer("roi_head.mask_head.upsample", 256, 256, 2, 2)
        state |= layer("roi_head.mask_head.conv_logits", classes, 256, 1, 1)
    return {"meta": {"CLASSES": ("cat", "dog", "cow")[:classes], "config": "style='pytorch'"}, "state_dict": state}


def aligndet() -> Any:
    """What AlignDet saves: the detector that it trains, with an embedding for a classifier, and its teacher's."""
    state = mmdet(masks=False, box_head="4conv1fc")["state_dict"]
    state = {name: value for name, value in state.items() if ".fc_cls." not in name and ".fc_reg." not in name}
    state |= layer("roi_head.bbox_head.fc_cls.0", 1024, 1024) | layer("roi_head.bbox_head.fc_cls.2", 256, 1024)
    state |= layer("roi_head.bbox_head.fc_reg", 1024, 1024)
    return {"state_dict": {**under("online_backbone.", state), **under("target_backbone.", state)}}


# The content of a file, the network in it, and its tensors under the library's names.
FILES: dict[str, tuple[Callable[[], Any], str, Callable[[], State]]] = {
    "torchvision": (resnet18, "resnet18", body),
    "timm": (lambda: {"state_dict": vit()}, "vit_tiny_patch16_224", vit),
    "moco": (moco, "resnet18", body),
    "densecl": (lambda: openselfsup(second=True), "resnet18", body),
    "openselfsup": (lambda: openselfsup(second=False), "resnet18", body),
    "mmselfsup": (mmselfsup, "resnet18", body),
    "mmpretrain": (lambda: {"state_dict": under("backbone.", mm_swin(swin()))}, "swin_tiny_patch4_window7_224", swin),
    "swav": (swav, "resnet18", body),
    "pixpro": (pixpro, "resnet18", body),
    "byol": (byol, "resnet18", body),
    "dino": (dino, "resnet18", body),
    "simmim": (simmim, "swin_tiny_patch4_window7_224", swin),
    "mae": (mae, "vit_small_patch8_224", vit8),
    "lightly": (lightly, "resnet18", body),
    "detectron2": (detectron2, "resnet18", body),
    "mmdet": (mmdet, "resnet18", body),
    "aligndet": (aligndet, "resnet18", body),
    "transformers": (transformers_resnet, "resnet18", body),
}
# Whose names are those of another format as well: told as that one where nobody says which it is.
ALSO = {"mmpretrain": "mmselfsup"}
