"""Backbones: feature maps, their strides and channels, and weights under the names the library gives them."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call

from selfdet.data.pixels import IMAGENET_MEAN, IMAGENET_STD
from selfdet.errors import UserError
from selfdet.models.composite import PREFIX, compose, plain_name
from selfdet.models.depthwise import spare_depthwise
from selfdet.models.plain_vit import fitted_images, told_stride

LEVELS = 4  # coarsest maps kept: strides 4, 8, 16, 32 of a usual network

Maps = Callable[[nn.Module, Tensor], dict[str, Tensor]]
Built = TypeVar("Built")


class Backbone(nn.Module):
    """A network that turns normalised images (B, 3, H, W) into maps (B, C, H/stride, W/stride), finest first.

    `net` holds the weights under the library's own names and nothing else; `maps(net, x)` runs it. They are apart so
    that a pyramid can own `net` as its `body` (the name torchvision's detectors use) without a second set of keys.
    `name` rebuilds it (`build_backbone(name)`), `library` is "torchvision", "timm" or, of a composite one, "selfdet",
    `library_name` its name there; `mean` and `std` (3 values each, of pixels in 0…1) are the statistics the library
    normalises its input with. `patch`: px of a plain transformer's patches, which `maps` fits the images to.
    """

    def __init__(
        self,
        name: str,
        library: str,
        net: nn.Module,
        maps: Maps,
        channels: list[int],
        strides: list[int],
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        patch: int | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.library = library
        self.library_name = name.removeprefix("timm/")
        self.net = net
        self.maps = maps
        self.channels = channels
        self.strides = strides
        self.mean = mean
        self.std = std
        self.patch = patch

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps "0", "1", … of images (B, 3, H, W), normalised with `mean` and `std`; finest first."""
        return self.maps(self.net, x)

    def check_image_size(self, size: int, any_shape: bool = False) -> None:
        """Refuse square images whose side is below the coarsest stride (px) or does not fit; `any_shape`: of images of
        other shapes too, filled up to whole cells of the coarsest map, as detectors do.

        Raises: UserError.
        """
        stride = self.strides[-1]
        if size < stride:
            raise UserError(
                f"--image-size {size}: below the stride {stride} of backbone {self.name}",
                f"use at least {stride}, better 128 or more",
            )
        if self.library != "torchvision":  # some of timm's transformers are tied to the size they were made for
            filled = -(-size // stride) * stride
            self._try_image_size(size, *((filled, filled + stride) if any_shape else (size, size)))

    @torch.no_grad()
    def _try_image_size(self, size: int, height: int, width: int) -> None:
        weight = next(self.net.parameters())
        image = torch.zeros(1, 3, height, width, dtype=weight.dtype, device=weight.device)
        # Of a network without memory for its weights, its buffers are elsewhere (`without_weights`).
        moved = {name: each.to("meta") for name, each in self.named_buffers()} if weight.is_meta else {}
        try:
            with evaluating(self):
                functional_call(self, moved, (image,))
        except (RuntimeError, AssertionError, IndexError) as error:
            raise UserError(
                f"--image-size {size}: backbone {self.name} cannot take {height} × {width} px "
                f"({str(error).splitlines()[0]})",
                f"use the size it was made for, or a multiple of {self.strides[-1]} with a Swin or convolutional one",
            ) from error


class Trunk(nn.ModuleDict):
    """The children of a torchvision ResNet up to `layer4`, run in order, under the names they have there."""

    def __init__(self, resnet: nn.Module) -> None:
        super().__init__({name: child for name, child in resnet.named_children() if name not in ("avgpool", "fc")})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps "0"…"3" of strides 4, 8, 16, 32 of images (B, 3, H, W)."""
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for name, child in self.items():
            x = child(x)
            if name.startswith("layer"):
                maps[str(len(maps))] = x
        return maps


def build_backbone(name: str, weights: str | None = None) -> Backbone:
    """A torchvision ResNet by its name, or any other network by its timm name (`timm/NAME` forces timm).

    A plain vision transformer, all of whose maps have one stride, has its last one alone; it takes images of any size
    (`fitted_images`). `cb-NAME` is a composite backbone, two of torchvision's ResNets or timm's Swins with the same
    weights (`Composite`).
    `weights`: None or "random" leaves the library's initialisation, "library" loads its pretrained weights.
    Raises: UserError for an unknown name (with the nearest ones), a network without maps, weights that cannot be had,
    two of a network that cannot be composed.
    """
    if weights not in (None, "random", "library"):
        raise UserError(f"backbone weights {weights!r}: expected 'random' or 'library'", "a file is read by --init")
    if name.startswith(PREFIX):
        return _composite(name, build_backbone(plain_name(name), weights))
    pretrained = weights == "library"
    if name in torchvision_resnets():
        return _torchvision_resnet(name, pretrained)
    if not timm.is_model(name.removeprefix("timm/")):
        raise UserError(f"unknown backbone {name!r}", f"nearest: {', '.join(nearest_names(name)) or 'none'}")
    return timm_backbone(name, pretrained)


def nearest_names(name: str) -> list[str]:
    """Up to four known backbone names that look like `name`."""
    known = sorted({*torchvision_resnets(), *timm.list_models()})
    return difflib.get_close_matches(name.removeprefix("timm/"), known, n=4, cutoff=0.5)


@contextmanager
def without_weights() -> Iterator[None]:
    """Inside, parameters of new networks are on the meta device, without memory, and are to be assigned. Buffers are
    real: some that no file has, as a Swin's places in a window, are computed where a network is built."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def build_unfilled(build: Callable[[], Built]) -> Built:
    """What `build` makes of a network whose weights are to be assigned, or which is only to be refused or not:
    `without_weights`, where it can be. Some networks, as Swin v2, compute with their weights while they are built, and
    have them. Raises: whatever `build` raises with weights."""
    try:
        with without_weights():
            return build()
    except (UserError, RuntimeError):
        return build()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, each submodule's own mode again after."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


@cache
def torchvision_resnets() -> list[str]:
    """Names of torchvision's ResNets, ResNeXts and wide ResNets."""
    names = torchvision.models.list_models(include=["res*", "wide_res*"])
    home = torchvision.models.resnet.__name__
    return [name for name in names if torchvision.models.get_model_builder(name).__module__ == home]


def _call(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return net(x)


def _composite(name: str, plain: Backbone) -> Backbone:
    net = compose(plain.name, plain.library, plain.net, plain.channels)
    return Backbone(name, "selfdet", net, _call, plain.channels, plain.strides, plain.mean, plain.std)


def _torchvision_resnet(name: str, pretrained: bool) -> Backbone:
    resnet = _fetch(name, lambda: torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None))
    blocks = [getattr(resnet, f"layer{stage}")[-1] for stage in (1, 2, 3, 4)]
    channels = [(block.bn3 if hasattr(block, "bn3") else block.bn2).num_features for block in blocks]
    return Backbone(name, "torchvision", Trunk(resnet), _call, channels, [4, 8, 16, 32])


def _timm_maps(net: nn.Module, x: Tensor, indices: tuple[int, ...], patch: int | None) -> dict[str, Tensor]:
    x = x if patch is None else fitted_images(x, patch)
    maps = net.forward_intermediates(x, indices=list(indices), output_fmt="NCHW", intermediates_only=True)  # type: ignore[operator]
    return OrderedDict((str(level), features) for level, features in enumerate(maps))


def timm_backbone(name: str, pretrained: bool, output_stride: int | None = None) -> Backbone:
    """timm's network of this name, dilated where an `output_stride` is given.

    Raises: UserError when timm can't build it so.
    """
    library_name = name.removeprefix("timm/")
    asked = {} if output_stride is None else {"output_stride": output_stride}
    getter = _fetch(name, partial(_any_size, library_name, pretrained, asked))
    # The getter prunes what lies behind the last map and keeps the rest as `.model`, under timm's own names.
    indices, strides = tuple(getter.out_indices)[-LEVELS:], getter.feature_info.reduction()[-LEVELS:]
    channels = getter.feature_info.channels()[-LEVELS:]
    patch = strides[0] if len(set(strides)) == 1 and output_stride is None else None
    if patch is not None:
        indices, channels, strides = indices[-1:], channels[-1:], [told_stride(patch)]
    return Backbone(
        name,
        "timm",
        spare_depthwise(getter.model),
        partial(_timm_maps, indices=indices, patch=patch),
        channels,
        strides,
        tuple(getter.model.pretrained_cfg.get("mean", IMAGENET_MEAN)),
        tuple(getter.model.pretrained_cfg.get("std", IMAGENET_STD)),
        patch,
    )


def _any_size(library_name: str, pretrained: bool, asked: dict[str, Any]) -> nn.Module:
    """The network in the form that takes images of any size: transformers need to be told, others refuse to be."""
    form: dict[str, Any] = {"pretrained": pretrained, "features_only": True, "feature_cls": "getter", **asked}
    options: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"strict_img_size": False}, {}]
    for option in options:
        try:
            return timm.create_model(library_name, **form, **option)
        except TypeError as error:
            if not any(name in str(error) for name in option):
                raise
    raise AssertionError("the last attempt has no option to refuse")


def _fetch(name: str, create: Callable[[], nn.Module]) -> Any:
    try:
        return create()
    except (OSError, ConnectionError) as error:  # urllib, requests and the hub all raise kinds of OSError
        raise UserError(
            f"backbone {name}: the library's weights could not be fetched ({error})",
            "check the network connection, or start from 'random' or a file",
        ) from error
    except (AttributeError, AssertionError, NotImplementedError, TypeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"backbone {name}: its library could not build it with feature maps ({error})",
            "start it at random, or choose another backbone",
        ) from error
