"""Composite backbones: two copies of one network, the second of which sees what the first has seen further up."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional

from selfdet.errors import UserError

PREFIX = "cb-"  # of the names of composite backbones, before that of the network they have two of
ASSISTANT_WEIGHT = 0.5  # of a detector's losses on the assistant's maps, as in the paper for two copies
COPIES = ("assistant", "lead")


class Composite(nn.Module):
    """Two torchvision ResNets, `assistant` and `lead`, and the `connections` between them.

    What enters the lead's stage s is its own map before it and the sum, over the assistant's stages i ≥ s, of that
    stage's map through a 1×1 convolution and a batch norm, enlarged to the size of the first (nearest neighbours). The
    scales of the norms start at 0: at first the lead gives what it would alone. `assistant.…` and `lead.…` keep the
    library's names; `connections.S.I` leads from the assistant's stage S + I into the lead's stage S, from 0 on.

    Source: Liang et al. 2021, CBNetV2, arXiv 2107.00420, dense higher-level composition.
    """

    def __init__(self, net: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.assistant, self.lead = copy.deepcopy(net), net
        entrances = [self.stem_channels, *channels[:-1]]
        self.connections = nn.ModuleList(
            nn.ModuleList(_connection(given, taken) for given in channels[stage:])
            for stage, taken in enumerate(entrances)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The lead's maps "0"…"3" of strides 4, 8, 16, 32 of images (B, 3, H, W)."""
        return self.both(x)[0]

    def both(self, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The lead's maps and the assistant's of images (B, 3, H, W), finest first."""
        assistant = self._run(self.assistant, x, [])
        return self._run(self.lead, x, list(assistant.values())), assistant

    def _run(self, net: nn.Module, x: Tensor, higher: list[Tensor]) -> dict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = OrderedDict()
        x = self.stem(net, x)
        for stage, (run, entrance) in enumerate(zip(self.stages(net), self.connections)):
            for connect, features in zip(entrance, higher[stage:]):  # type: ignore[call-overload]
                x = x + functional.interpolate(connect(features), x.shape[2:])
            maps[str(stage)] = x = self.through(run, x)
        return maps

    @property
    def stem_channels(self) -> int:
        """Channels of what enters the first stage."""
        return int(self.lead.get_submodule("conv1").out_channels)  # type: ignore[arg-type]

    def stem(self, net: Any, x: Tensor) -> Tensor:
        """What enters the first stage, (B, C, H/4, W/4), of images (B, 3, H, W)."""
        for name, child in net.items():
            if not name.startswith("layer"):
                x = child(x)
        return x

    def stages(self, net: Any) -> list[nn.Module]:
        """The four stages."""
        return [child for name, child in net.items() if name.startswith("layer")]

    def through(self, stage: nn.Module, x: Tensor) -> Tensor:
        """A stage's map (B, C', H', W') of what enters it (B, C, H, W)."""
        return stage(x)


class SwinComposite(Composite):
    """The same of two of timm's Swin transformers, whose own maps are (B, H, W, C)."""

    @property
    def stem_channels(self) -> int:
        """Channels of what enters the first stage."""
        return int(self.lead.embed_dim)  # type: ignore[arg-type]

    def stem(self, net: Any, x: Tensor) -> Tensor:
        """The patches' embeddings (B, C, H/4, W/4)."""
        return net.patch_embed(x).permute(0, 3, 1, 2)

    def stages(self, net: Any) -> list[nn.Module]:
        """The four stages, each but the first with the merging of patches before it."""
        return list(net.layers)

    def through(self, stage: nn.Module, x: Tensor) -> Tensor:
        """A stage's map (B, C', H', W') of what enters it (B, C, H, W)."""
        return stage(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class Known(nn.Module):
    """Stands in for a network whose maps are known already."""

    def __init__(self, maps: dict[str, Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The maps, whatever the images."""
        return self.maps


def compose(name: str, library: str, net: nn.Module, channels: Sequence[int]) -> Composite:
    """Two of `net`, both with its weights, composed; `name` and `library` are its own, `channels` those of its maps.

    Raises: UserError for a network whose stages can't be entered one by one.
    """
    if library == "torchvision":
        return Composite(net, channels)
    if isinstance(net, SwinTransformer):
        return SwinComposite(net, channels)
    raise UserError(
        f"backbone {PREFIX}{name}: two of {name} cannot be composed; connections must enter each of its stages, and "
        "selfdet knows those of torchvision's ResNets and timm's Swins",
        f"Use {PREFIX}resnet50 or {PREFIX}swin_tiny_patch4_window7_224, or {name} alone",
    )


def plain_name(name: str) -> str:
    """The backbone that a composite one has two of; any other is its own."""
    return name.removeprefix(PREFIX)


def is_composite(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a composite backbone."""
    return any(name.startswith(f"{COPIES[1]}.") for name in state)


def for_both(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a plain network under the names of both copies."""
    return {f"{each}.{name}": value for each in COPIES for name, value in state.items()}


def _connection(given: int, taken: int) -> nn.Module:
    norm = nn.BatchNorm2d(taken)
    nn.init.zeros_(norm.weight)
    return nn.Sequential(nn.Conv2d(given, taken, 1, bias=False), norm)
