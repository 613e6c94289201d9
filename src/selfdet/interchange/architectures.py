"""Which network a state dict is of, told by names and shapes, and its names as the libraries have them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import timm
import torch
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor

from selfdet.errors import UserError
from selfdet.interchange.detectron2_names import NORM_EPS, is_theirs, with_torchvisions_names
from selfdet.interchange.transformers_names import FIRST, from_transformers

State = dict[str, Tensor]

# Whether its blocks are bottlenecks, how many a stage has, and of the first block the outputs of the first convolution
# and the inputs of the second: torchvision's names.
RESNETS = {
    (False, (2, 2, 2, 2), 64, 64): "resnet18",
    (False, (3, 4, 6, 3), 64, 64): "resnet34",
    (True, (3, 4, 6, 3), 64, 64): "resnet50",
    (True, (3, 4, 23, 3), 64, 64): "resnet101",
    (True, (3, 8, 36, 3), 64, 64): "resnet152",
    (True, (3, 4, 6, 3), 128, 4): "resnext50_32x4d",
    (True, (3, 4, 23, 3), 256, 8): "resnext101_32x8d",
    (True, (3, 4, 23, 3), 256, 4): "resnext101_64x4d",
    (True, (3, 4, 6, 3), 128, 128): "wide_resnet50_2",
    (True, (3, 4, 23, 3), 128, 128): "wide_resnet101_2",
}
# Channels of the first stage and blocks of the third; channels.
SWINS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}
VITS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1536: "giant"}
# What nn.Sequential(*resnet.children()) makes of the names.
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Architecture:
    """A network as told by its tensors: the `family` it is of and the `name` that rebuilds it."""

    family: str
    name: str


def told_by(state: Mapping[str, Tensor], library: str | None = None) -> Architecture | None:
    """The network whose tensors these are, under the libraries' own names, or the one that is most like it.

    `library`: timm for timm's own ResNets.
    """
    if any(re.match(r"layer[1-4]\.0\.conv1\.weight", name) for name in state):
        name = _nearest_resnet(state)
        return Architecture("ResNet", f"timm/{name}" if library == "timm" else name)
    if "layers.0.blocks.0.attn.relative_position_bias_table" in state:
        return _swin(state)
    if "blocks.0.attn.qkv.weight" in state and "patch_embed.proj.weight" in state:
        return _vit(state)
    return None


def renamed(state: State) -> tuple[State, list[str]]:
    """The same tensors under the libraries' names, and a line for each thing that was done beside renaming.

    Understood are ResNets whose modules are numbered, detectron2's, Caffe2's and transformers', ResNets with batch norm
    folded into their convolutions, Swins as Microsoft's own program and as mmpretrain name them, and DINOv2's ViTs.
    Raises: UserError for a batch norm that is folded in part, and for Caffe2's bottlenecks.
    """
    if is_theirs(state):
        return with_torchvisions_names(state), []
    if FIRST in state:
        return from_transformers(state), []
    if "4.0.conv1.weight" in state and "0.weight" in state:
        state = {
            ".".join([NUMBERED[head], rest]): value
            for (head, _, rest), value in ((name.partition("."), value) for name, value in state.items())
            if head in NUMBERED
        }
    if "layer1.0.conv1.bias" in state:
        return _with_norms(state)
    if "stages.0.blocks.0.attn.w_msa.qkv.weight" in state:
        return _from_mm_swin(state)
    if "layers.0.downsample.reduction.weight" in state:
        return _from_first_swin(state)
    if "pos_embed" in state and any(re.match(r"blocks\.(\d+\.)+ls1\.gamma", name) for name in state):
        return _from_dinov2(state)
    return state, []


def fitted(state: State, name: str) -> tuple[State, list[str]]:
    """The tensors with tables of relative positions as large as this Swin's, and a line where that changed any."""
    window = re.search(r"swin_\w+_window(\d+)_", name)
    if window is None:
        return state, []
    side = 2 * int(window[1]) - 1
    other = {
        key: value
        for key, value in state.items()
        if key.endswith("relative_position_bias_table") and value.dim() == 2 and len(value) != side**2
    }
    if not other or any(math.isqrt(len(value)) ** 2 != len(value) for value in other.values()):
        return state, []
    given = (math.isqrt(len(next(iter(other.values())))) + 1) // 2
    resized = {
        key: resize_rel_pos_bias_table(value.float(), (side // 2 + 1,) * 2, (side**2, value.shape[1]))
        for key, value in other.items()
    }
    line = f"relative positions of windows of {given} are interpolated for windows of {window[1]}: not the same network"
    return {**state, **resized}, [line]


def _nearest_resnet(state: Mapping[str, Tensor]) -> str:
    depths = (_depth(state, f"layer{stage}") for stage in (1, 2, 3, 4))
    bottleneck = any(re.match(r"layer\d\.0\.conv3\.weight", name) for name in state)
    first, second = (state.get(f"layer1.0.conv{layer}.weight", torch.empty(0, 0)) for layer in (1, 2))
    told = (bottleneck, *depths, first.shape[0], second.shape[1] if second.dim() > 1 else 0)

    def likeness(known: tuple[bool, tuple[int, ...], int, int]) -> int:
        flat = (known[0], *known[1], *known[2:])
        return sum(one == other for one, other in zip(told, flat)) + 4 * (known[0] == bottleneck)

    return RESNETS[max(RESNETS, key=likeness)]


def _depth(state: Mapping[str, Tensor], stage: str) -> int:
    """How many blocks the names number in a stage."""
    numbers = re.findall(rf"^{re.escape(stage)}\.(\d+)\.", "\n".join(state), flags=re.MULTILINE)
    return max(map(int, numbers), default=-1) + 1


def _swin(state: Mapping[str, Tensor]) -> Architecture | None:
    table, proj = state["layers.0.blocks.0.attn.relative_position_bias_table"], state.get("patch_embed.proj.weight")
    sizes = {blocks: size for (width, blocks), size in SWINS.items() if proj is not None and width == proj.shape[0]}
    if not sizes:
        return None
    size = sizes.get(_depth(state, "layers.2.blocks"), next(iter(sizes.values())))
    window = (math.isqrt(table.shape[0]) + 1) // 2
    form = "window12_384" if window == 12 and size in ("base", "large") else "window7_224"
    return Architecture("Swin", f"swin_{size}_patch4_{form}")


def _vit(state: Mapping[str, Tensor]) -> Architecture | None:
    proj, positions = state["patch_embed.proj.weight"], state.get("pos_embed")
    size = VITS.get(proj.shape[0])
    if size is None or positions is None or positions.dim() != 3 or proj.dim() != 4:
        return None
    patch = proj.shape[-1]
    if "blocks.0.ls1.gamma" in state:
        tokens = state.get("reg_token")
        registers = f"reg{tokens.shape[1]}_" if tokens is not None and tokens.dim() == 3 else ""
        name = f"vit_{size}_patch{patch}_{registers}dinov2"
    else:
        name = f"vit_{size}_patch{patch}_{patch * math.isqrt(positions.shape[1] - 1)}"
    return Architecture("ViT", name) if timm.is_model(name) else None


def _with_norms(state: State) -> tuple[State, list[str]]:
    """Convolutions whose norm was folded into them, behind which a norm then only adds the bias."""
    made: State = {}
    for name, value in state.items():
        found = re.fullmatch(r"((?:.*\.)?)(?:conv(\d)|downsample\.0)\.bias", name)
        if found is None:
            made[name] = value
            continue
        norm = f"{found[1]}bn{found[2]}" if found[2] else f"{found[1]}downsample.1"
        if f"{norm}.weight" in state:
            raise UserError(
                f"{name} is the bias of a convolution that has a norm as well, which torchvision's ResNets don't",
                "Fold the norms of the whole network, or of none",
            )
        ones = torch.ones_like(value)
        made[f"{norm}.weight"], made[f"{norm}.bias"] = ones, value
        made[f"{norm}.running_mean"], made[f"{norm}.running_var"] = torch.zeros_like(value), ones - NORM_EPS
    return made, ["batch norm was folded into the convolutions: norms that only add their biases stand behind them"]


def _from_first_swin(state: State) -> tuple[State, list[str]]:
    """Microsoft's names: a stage ends with the patch merging that timm begins the next one with."""
    left = re.compile(r".*(relative_position_index|attn_mask)$|mask_token$")
    return {
        re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.", name): value
        for name, value in state.items()
        if not left.match(name)
    }, []


def _from_dinov2(state: State) -> tuple[State, list[str]]:
    """DINOv2's names: its training numbers blocks by chunks as well, its largest network has a gated MLP, and where
    it has registers, timm's positions are those of patches alone."""
    made: State = {}
    for name, value in state.items():
        name = re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name)
        name = name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
        made[name] = value
    if "register_tokens" in made and "cls_token" in made:
        positions = made["pos_embed"]
        made["reg_token"] = made.pop("register_tokens")
        made["cls_token"], made["pos_embed"] = made["cls_token"] + positions[:, :1], positions[:, 1:]
    return made, []


MM_SWIN = (
    (r"^stages\.(\d+)\.blocks\.", r"layers.\1.blocks."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
)


def _from_mm_swin(state: State) -> tuple[State, list[str]]:
    """mmpretrain's names; its patch merging takes the four neighbours of a channel together, timm's the channels."""
    made: State = {}
    for name, value in state.items():
        merging = re.fullmatch(r"stages\.(\d+)\.downsample\.(.*)", name)
        if name.endswith("relative_position_index"):
            continue
        if merging is not None:
            # Channel c of neighbour (row, column) stands at 4c + 2 row + column there, at (2 column + row) C + c here.
            width = value.shape[-1] // 4
            order = torch.arange(4 * width).view(width, 2, 2).permute(2, 1, 0).flatten()
            made[f"layers.{int(merging[1]) + 1}.downsample.{merging[2]}"] = value[..., order]
            continue
        for pattern, instead in MM_SWIN:
            name = re.sub(pattern, instead, name)
        made[name] = value
    return made, []
