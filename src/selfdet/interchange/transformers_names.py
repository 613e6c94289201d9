"""transformers' names for what a plain ResNet has, as torchvision's, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from selfdet.data.untrusted import parse_json
from selfdet.errors import UserError

State = dict[str, Tensor]
BODY = "model.backbone.model."  # before the names of a DETR's backbone
FIRST = "embedder.embedder.convolution.weight"  # in every ResNet of transformers
# Stages and layers count from 0 there, and from 1 in torchvision's names.
OURS = re.compile(
    r"(?:layer(?P<stage>\d)\.(?P<block>\d+)\.)?(?:(?P<kind>conv|bn)(?P<place>\d)|downsample\.(?P<down>[01]))\.(?P<what>\w+)"
)
THEIRS = re.compile(
    r"(?:embedder\.embedder|encoder\.stages\.(?P<stage>\d)\.layers\.(?P<block>\d+)\.(?:layer\.(?P<place>\d)|shortcut))"
    r"\.(?P<kind>convolution|normalization)\.(?P<what>\w+)"
)


def as_transformers(state: Mapping[str, Tensor]) -> State:
    """A plain ResNet of torchvision's names under those of transformers' ResNetBackbone."""
    return {_theirs(name): value for name, value in state.items()}


def from_transformers(state: Mapping[str, Tensor]) -> State:
    """A ResNet of transformers' names under torchvision's; other names stay as they are."""
    return {torchvisions_name(name): value for name, value in state.items()}


def check_strides(path: Path) -> None:
    """Refuse a file beside whose settings, config.json, strides are elsewhere than in torchvision's ResNets: no tensor
    tells. Raises: UserError."""
    settings = path.with_name("config.json")
    try:
        told = parse_json(settings.read_bytes())
    except (OSError, ValueError):  # none, or somebody else's
        return
    for name in ("downsample_in_bottleneck", "downsample_in_first_stage"):
        if isinstance(told, dict) and told.get(name):
            raise UserError(
                f"{settings} has {name}: the same weights are another network in torchvision, with strides elsewhere",
                "Use weights of a ResNet without it",
            )


def flat_name(name: str) -> str:
    """A name in a DETR's backbone without what libraries put between its parts: timm makes stages children of their own
    where it takes a network apart, transformers has ResNets by other names."""
    return torchvisions_name(name.removeprefix(BODY).removeprefix("_backbone.")).replace(".", "_")


def _theirs(name: str) -> str:
    found = OURS.fullmatch(name)
    if found is None:
        raise ValueError(f"{name} is no name of a plain ResNet")
    norm = found["kind"] == "bn" or found["down"] == "1"
    layer = f"{'normalization' if norm else 'convolution'}.{found['what']}"
    if found["stage"] is None:
        return f"embedder.embedder.{layer}"
    place = "shortcut" if found["place"] is None else f"layer.{int(found['place']) - 1}"
    return f"encoder.stages.{int(found['stage']) - 1}.layers.{found['block']}.{place}.{layer}"


def torchvisions_name(name: str) -> str:
    """torchvision's name of a tensor in transformers' ResNet; any other name as it is."""
    found = THEIRS.fullmatch(name)
    if found is None:
        return name
    norm = found["kind"] == "normalization"
    if found["stage"] is None:
        return f"{'bn1' if norm else 'conv1'}.{found['what']}"
    own = (
        f"downsample.{int(norm)}" if found["place"] is None else f"{'bn' if norm else 'conv'}{int(found['place']) + 1}"
    )
    return f"layer{int(found['stage']) + 1}.{found['block']}.{own}.{found['what']}"
