"""The segmenter of this folder, segmenter.json and segmenter.safetensors, on torch, torchvision and timm alone.

    from rebuild import build
    net = build(".")             # in evaluation mode; run it in float32
    classes = net.segment(image) # image: (3, H, W) uint8 RGB of any size; (H, W) uint8, places in net.classes
    net.scores(image)            # (K, H, W) before the softmax; both take sliding=True

    python rebuild.py photo.jpg other.png       # photo.mask.png beside each: class numbers

The weights are named as those of torchvision's FCN, `backbone.…` and `classifier.…`; one on a bottleneck ResNet with
one convolution in its head is torchvision's own. This is selfdet/interchange/companions/segmenter.py, and
imports nothing of selfdet. SPDX-License-Identifier: Apache-2.0
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 8


class ResNet(nn.ModuleDict):
    """torchvision's ResNet up to its last map, the last two stages dilated instead of strided."""

    def __init__(self, name: str) -> None:
        whole = torchvision.models.get_model(name, weights=None)
        super().__init__({part: child for part, child in whole.named_children() if part not in ("avgpool", "fc")})
        for stage, dilation in (("layer3", 2), ("layer4", 4)):
            for conv in self[stage].modules():
                if isinstance(conv, nn.Conv2d):
                    reach = dilation // 2 if conv.stride != (1, 1) else dilation
                    conv.stride = (1, 1)
                    if conv.kernel_size != (1, 1):
                        conv.dilation = conv.padding = (reach, reach)

    def forward(self, x: Tensor) -> Tensor:
        """The last map (B, C, H/8, W/8) of (B, 3, H, W)."""
        for child in self.values():
            x = child(x)
        return x


class FCN(nn.Module):
    """A score of each class for every pixel; `classes` are their names."""

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        self.classes: list[str] = about["classes"]
        self.image_size, self.crop_size = int(about["image_size"]), int(about["crop_size"])
        self.mean, self.std = about["mean"], about["std"]
        self.library, name = about["backbone"]["library"], about["backbone"]["name"]
        if self.library == "torchvision":
            self.backbone: Any = ResNet(name)
        else:
            import timm

            options: dict[str, Any] = {"features_only": True, "feature_cls": "getter", "output_stride": STRIDE}
            getter: Any = timm.create_model(name, pretrained=False, **options)
            self.backbone, self.last = getter.model, getter.out_indices[-1]
        channels, hidden = int(about["backbone"]["channels"]), max(1, int(about["backbone"]["channels"]) // 4)
        layers: list[nn.Module] = []
        for number in range(int(about["head_convs"])):
            layers += [nn.Conv2d(hidden if number else channels, hidden, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(hidden), nn.ReLU()]
        self.classifier = nn.Sequential(*layers, nn.Dropout(0.1), nn.Conv2d(hidden, len(self.classes), 1))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, K, H, W) of (B, 3, H, W) normalised images; their sides are multiples of 8."""
        if self.library == "torchvision":
            cells = self.backbone(x)
        else:
            asked = {"indices": [self.last], "output_fmt": "NCHW", "intermediates_only": True}
            cells = self.backbone.forward_intermediates(x, **asked)[-1]
        return enlarge(self.classifier(cells).float(), (x.shape[-2], x.shape[-1]))

    @torch.no_grad()
    def scores(self, image: Tensor, sliding: bool = False) -> Tensor:
        """Scores (K, H, W) of an image (3, H, W) uint8, seen with a long side of `image_size` px, as a whole or through
        windows of `crop_size` px that overlap by a third."""
        height, width = image.shape[-2:]
        scale = self.image_size / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        seen = functional.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
        side = self.crop_size if sliding else max(size)
        total = torch.zeros(len(self.classes), *size, device=image.device)
        counts = torch.zeros(size, device=image.device)
        for top in starts(size[0], side):
            for left in starts(size[1], side):
                rows, columns = slice(top, top + side), slice(left, left + side)
                total[:, rows, columns] += self._window(seen[:, rows, columns])
                counts[rows, columns] += 1
        return enlarge((total / counts)[None], (height, width))[0]

    def segment(self, image: Tensor, sliding: bool = False) -> Tensor:
        """The class (H, W) uint8 of every pixel of an image (3, H, W) uint8."""
        return self.scores(image, sliding).argmax(0).to(torch.uint8)

    def _window(self, window: Tensor) -> Tensor:
        height, width = window.shape[-2:]
        mean, std = (window.new_tensor(x, dtype=torch.float32).mul(255) for x in (self.mean, self.std))
        pixels = window.float().sub(mean[:, None, None]).mul(std.reciprocal()[:, None, None])
        padded = functional.pad(pixels, (0, -width % STRIDE, 0, -height % STRIDE))
        return self(padded[None])[0, :, :height, :width]


def enlarge(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores (B, K, h, w) at `size` (H, W) pixels."""
    return functional.interpolate(scores, size, mode="bilinear", align_corners=False)


def starts(extent: int, side: int) -> list[int]:
    """Where windows begin; the last ends with the image."""
    if extent <= side:
        return [0]
    return [*range(0, extent - side, max(1, int(side * 2 / 3))), extent - side]


def build(folder: str | Path | None = None) -> FCN:
    """The segmenter of a folder (this file's own if None), with its weights, in evaluation mode."""
    root = Path(__file__).parent if folder is None else Path(folder)
    net = FCN(json.loads((root / "segmenter.json").read_text(encoding="utf-8")))
    net.load_state_dict(load_file(root / "segmenter.safetensors"))
    return net.eval()


def main() -> None:
    """Write the class map of each picture beside it."""
    parser = argparse.ArgumentParser(description="Class numbers of every pixel, as PHOTO.mask.png beside each photo")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--sliding", action="store_true")
    options = parser.parse_args()
    net = build()
    for file in options.images:
        with Image.open(file) as picture:
            pixels = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        classes = net.segment(torch.from_numpy(pixels).permute(2, 0, 1), options.sliding)
        Image.fromarray(classes.numpy()).save(file.with_suffix(".mask.png"))
        print(file.with_suffix(".mask.png"))


if __name__ == "__main__":
    main()
