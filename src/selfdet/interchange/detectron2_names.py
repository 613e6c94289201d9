"""detectron2's and Caffe2's names for what a ResNet has, as torchvision's."""

from __future__ import annotations

import re
from collections.abc import Mapping

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
