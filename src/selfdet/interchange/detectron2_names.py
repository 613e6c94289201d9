"""detectron2's and Caffe2's names for what a ResNet has, as torchvision's; detectron2's for an R-CNN, as mmdet's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdet.errors import UserError

State = dict[str, Tensor]
NORM_EPS = 1e-5
CAFFE2 = re.compile(
    r"(?:res_)?conv1_(?P<stem>w|b|bn_\w+)|res(?P<stage>[2-5])_(?P<block>\d+)_branch(?P<branch>1|2[abc])_(?P<what>w|bn_\w+)"
)
OWN = re.compile(
    r"(?:stem|res(?P<stage>[2-5])\.(?P<block>\d+))\.(?P<layer>conv[123]|shortcut)\.(?P<norm>norm\.)?(?P<what>\w+)"
)
NORMS = {"bn_s": "weight", "bn_b": "bias", "bn_rm": "running_mean", "bn_riv": "running_var"}


def is_theirs(state: Mapping[str, Tensor]) -> bool:
    """Whether these are detectron2's names, or Caffe2's."""
    return "conv1_w" in state or "stem.conv1.weight" in state


def with_torchvisions_names(state: State) -> State:
    """A ResNet of detectron2's or Caffe2's names under torchvision's.

    A norm that only scales and adds, as theirs are once they are frozen, gets the statistics that make it one here.
    Raises: UserError for Caffe2's ResNets with bottlenecks, whose strides stand elsewhere.
    """
    if "conv1_w" in state:
        grouped = state.get("res2_0_branch2b_w", torch.empty(0, 0)).shape[1] != 64
        if "res2_0_branch2c_w" in state and not grouped:
            raise UserError(
                "a ResNet of Caffe2's names (MSRA's) has its strides in the 1×1 convolutions, torchvision's in the "
                "3×3: the same weights are another network",
                "Use detectron2's torchvision/R-50.pkl, or weights that MoCo's converter wrote",
            )
        made = _from_caffe2(state)
    else:
        made = _from_detectron2(state)
    for name in [name for name in made if name.endswith("running_mean") or _is_norm(name, made)]:
        norm = name.rpartition(".")[0]
        scale = made.get(f"{norm}.weight")
        if scale is not None and f"{norm}.running_var" not in made:
            made[f"{norm}.running_mean"] = torch.zeros_like(scale)
            made[f"{norm}.running_var"] = torch.ones_like(scale) - NORM_EPS
    return made


def _is_norm(name: str, state: Mapping[str, Tensor]) -> bool:
    return name.endswith(".weight") and state[name].dim() == 1


def _layer(stage: str | None, block: str | None, layer: str, norm: bool) -> str:
    if layer == "shortcut":
        own = f"downsample.{int(norm)}"
    else:
        own = layer.replace("conv", "bn") if norm else layer
    return own if stage is None else f"layer{int(stage) - 1}.{block}.{own}"


def _from_detectron2(state: State) -> State:
    made: State = {}
    for name, value in state.items():
        found = OWN.fullmatch(name)
        if found is None:
            made[name] = value
            continue
        layer = _layer(found["stage"], found["block"], found["layer"], found["norm"] is not None)
        made[f"{layer}.{found['what']}"] = value
    return made


def _from_caffe2(state: State) -> State:
    made: State = {}
    for name, value in state.items():
        found = CAFFE2.fullmatch(name)
        if name.endswith("_momentum"):
            continue
        if found is None:
            made[name] = value
            continue
        what = found["stem"] or found["what"]
        if what == "b":
            if value.any():
                raise UserError(f"{name} is the bias of a convolution, which torchvision's ResNets don't have", "")
            continue
        branch = found["branch"]
        layer = "conv1" if branch is None else "shortcut" if branch == "1" else f"conv{'abc'.index(branch[1]) + 1}"
        norm = what != "w"
        if norm and what not in NORMS:
            raise UserError(f"{name} is unknown", "")
        own = _layer(found["stage"], found["block"], layer, norm)
        made[f"{own}.{NORMS[what] if norm else 'weight'}"] = value
    return made


# mmdet's names and detectron2's for what stands on the backbone; {n} counts from 0 there and from 1 or 2 here.
RCNN = (
    ("neck.lateral_convs.{n}.conv.", "backbone.fpn_lateral{n}.", 2),
    ("neck.lateral_convs.{n}.NORM.", "backbone.fpn_lateral{n}.norm.", 2),
    ("neck.fpn_convs.{n}.conv.", "backbone.fpn_output{n}.", 2),
    ("neck.fpn_convs.{n}.NORM.", "backbone.fpn_output{n}.norm.", 2),
    ("rpn_head.rpn_conv.", "proposal_generator.rpn_head.conv.", 0),
    ("rpn_head.rpn_cls.", "proposal_generator.rpn_head.objectness_logits.", 0),
    ("rpn_head.rpn_reg.", "proposal_generator.rpn_head.anchor_deltas.", 0),
    ("roi_head.bbox_head.shared_fcs.{n}.", "roi_heads.box_head.fc{n}.", 1),
    ("roi_head.bbox_head.shared_convs.{n}.conv.", "roi_heads.box_head.conv{n}.", 1),
    ("roi_head.bbox_head.shared_convs.{n}.NORM.", "roi_heads.box_head.conv{n}.norm.", 1),
    ("roi_head.bbox_head.fc_cls.", "roi_heads.box_predictor.cls_score.", 0),
    ("roi_head.bbox_head.fc_reg.", "roi_heads.box_predictor.bbox_pred.", 0),
    ("roi_head.mask_head.convs.{n}.conv.", "roi_heads.mask_head.mask_fcn{n}.", 1),
    ("roi_head.mask_head.upsample.", "roi_heads.mask_head.deconv.", 0),
    ("roi_head.mask_head.conv_logits.", "roi_heads.mask_head.predictor.", 0),
)
BOTTOM_UP = "backbone.bottom_up."
# What old checkpoints have of a detector's settings, beside its weights.
BUFFERS = re.compile(r"pixel_(mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d+")


def check_deviation(path: Path, state: Mapping[str, Any], pixels: str | None) -> None:
    """Raises: UserError where an old checkpoint has the deviation of its pixels, and it isn't that of `pixels`."""
    std = state.get("pixel_std")
    if not isinstance(std, Tensor) or not std.numel():
        return
    caffe = bool((std == 1).all())
    if caffe != (pixels == "caffe"):
        told = [round(value, 3) for value in std.flatten().tolist()[:3]]
        raise UserError(
            f"{path}: its pixel_std is {told}, with which --pixels {pixels} doesn't go",
            "Use --pixels caffe" if caffe else "Use --pixels rgb or bgr",
        )


def as_detectron2(state: Mapping[str, Tensor]) -> State:
    """A ResNet of torchvision's names under detectron2's, which keep no count of batches."""
    made: State = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        own = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
        own = own.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        own = re.sub(r"bn(\d)", r"conv\1.norm", own)
        made[own if own.startswith("res") else f"stem.{own}"] = value
    return made


def detector_as_detectron2(state: Mapping[str, Tensor]) -> State:
    """A Faster or Mask R-CNN of mmdet's names over a ResNet under detectron2's."""
    body = as_detectron2({n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")})
    made = {f"{BOTTOM_UP}{name}": value for name, value in body.items()}
    for name, value in state.items():
        if not name.startswith("backbone.") and not name.endswith("num_batches_tracked"):
            made[_counted(name, towards=True)] = value
    return made


def as_mmdet(content: Mapping[str, Any]) -> dict[str, Any]:
    """A file's content whose tensors, of a Faster or Mask R-CNN under detectron2's names, have mmdet's."""
    state = content.get("model", content)
    state = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    made: State = {}
    for name, value in state.items():
        if not name.startswith(BOTTOM_UP) and not BUFFERS.fullmatch(name):
            made[_counted(name, towards=False)] = value
    body = {name.removeprefix(BOTTOM_UP): value for name, value in state.items() if name.startswith(BOTTOM_UP)}
    made |= {f"backbone.{name}": value for name, value in body.items()}
    return {"meta": content.get("meta", {}), "state_dict": made}


def _counted(name: str, towards: bool) -> str:
    """The name there of mmdet's name, or, not `towards`, the other way; as it is where there is none."""
    for theirs, ours, first in RCNN:
        given, wanted = (theirs, ours) if towards else (ours, theirs)
        norms = "(?:bn|gn)" if towards else "NORM"
        found = re.match("^" + re.escape(given).replace(r"\{n\}", r"(\d+)").replace("NORM", norms) + r"(\w+)$", name)
        if found is not None:
            number = int(found[1]) + (first if towards else -first) if found.lastindex == 2 else 0
            return wanted.replace("{n}", str(number)).replace("NORM", "bn") + found[found.lastindex or 0]
    return name
