"""The detector of this folder on torch, torchvision, timm and safetensors alone: detector.json + detector.safetensors.

    from rebuild import build
    net = build(".")            # torchvision's own network in evaluation mode; run it in float32
    found = net([image])[0]     # image: (3, H, W) float, RGB in 0…1, of any size
    found["boxes"]              # (N, 4) x1 y1 x2 y2 in pixels of that image; with "scores" (N,) falling
    found["labels"]             # (N,) from 0: positions in detector.json's "classes" and "category_ids"
    found["masks"]              # of a network of masks, (N, 1, H, W) bool

    python rebuild.py photo.jpg other.png       # detections as JSON

The network is not one of torchvision's ready-made ones: it has its own pyramid width, anchor sizes and image size.
`build(".", score_threshold=0.3)` leaves out what scores no more.
Images one at a time give the figures that the export was checked with; those of different shapes in one call share
their padding, which shifts scores at their edges a little. This is selfdet/interchange/companions/rebuild.py
with its parts, and imports nothing of selfdet. SPDX-License-Identifier: Apache-2.0
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from selfdet.interchange.companions.cascade import cascade_rcnn
from selfdet.interchange.companions.images import BackgroundFirst, LongSide
from selfdet.interchange.companions.one_stage import fcos, retinanet
from selfdet.interchange.companions.two_stage import faster_rcnn, mask_rcnn

NETWORKS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "fcos": fcos,
    "retinanet": retinanet,
    "faster_rcnn": faster_rcnn,
    "mask_rcnn": mask_rcnn,
    "cascade_rcnn": cascade_rcnn,
}


def build(folder: str | Path = Path(__file__).parent, score_threshold: float | None = None) -> nn.Module:
    """The detector with its weights, on the CPU in evaluation mode; `score_threshold` replaces detector.json's."""
    config = json.loads((Path(folder) / "detector.json").read_text(encoding="utf-8"))
    if score_threshold is not None:
        config["score_threshold"] = score_threshold
    net = NETWORKS[config["detector"]](config)
    size = config["image_size"]
    transform = BackgroundFirst if isinstance(net, FasterRCNN) else LongSide
    net.transform = transform(size, size, config["mean"], config["std"], size_divisible=config["size_divisible"])
    net.load_state_dict(load_file(Path(folder) / "detector.safetensors"))
    return net.eval()


def read(path: str | Path) -> Tensor:
    """An 8-bit image file as (3, H, W) float32 RGB in 0…1: turned as its EXIF says, transparency on black."""
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file).convert("RGBA")
    black = Image.new("RGBA", picture.size, "black")
    pixels = np.array(Image.alpha_composite(black, picture).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """COCO's compressed RLE of a mask (H, W) bool."""
    pixels = mask.numpy().ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff([0, *([0] if pixels[0] else []), *changes, len(pixels)]).tolist()
    characters = []
    for position, count in enumerate(counts):
        rest, more = count - (counts[position - 2] if position > 2 else 0), True
        while more:  # five bits a character, the lowest first; the last one's highest bit is the sign
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            characters.append(chr(48 + bits + 32 * more))
    return {"size": list(mask.shape), "counts": "".join(characters)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Detect objects in images; prints JSON, boxes as x y width height.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    files = parser.parse_args().images
    folder = Path(__file__).parent
    net, config = build(folder), json.loads((folder / "detector.json").read_text(encoding="utf-8"))
    listed = []
    for path in files:
        image = read(path)
        found = net([image])[0]
        detections = [
            {
                "category_id": config["category_ids"][label],
                "category": config["classes"][label],
                "score": round(score, 5),
                "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            }
            for (x1, y1, x2, y2), score, label in zip(*(found[name].tolist() for name in ("boxes", "scores", "labels")))
        ]
        for detection, mask in zip(detections, found.get("masks", ())):
            detection["segmentation"] = run_lengths(mask[0])
        listed.append({"file": path, "height": image.shape[1], "width": image.shape[2], "detections": detections})
    print(json.dumps(listed, indent=1))


if __name__ == "__main__":
    main()
