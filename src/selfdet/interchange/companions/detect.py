"""Detect objects in images with the network in this folder, in plain transformers: selfdet is not needed.

    python detect.py photo.jpg …

Needs torch, torchvision, timm, transformers and safetensors. The network is `AutoModelForObjectDetection` and its
processor `AutoImageProcessor`, as for any model of transformers; the processor's own sizes are near what it was trained
with, and `find` has them exactly, as detector.json says.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

HERE = Path(__file__).parent


def load(folder: str | Path = HERE) -> tuple[Any, Any, dict[str, Any]]:
    """The network on the CPU in evaluation mode, its processor, and the settings in detector.json."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    settings = json.loads((Path(folder) / "detector.json").read_text(encoding="utf-8"))
    net = AutoModelForObjectDetection.from_pretrained(folder, local_files_only=True)
    return net.eval(), AutoImageProcessor.from_pretrained(folder, local_files_only=True), settings


def padded(height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
    """(H, W) px of the tensor that holds an image of this size."""
    step, least = settings["size_divisible"], settings["least_side"]
    return max(least, -(-height // step) * step), max(least, -(-width // step) * step)


@torch.no_grad()
def find(
    image: Tensor, net: Any, processor: Any, settings: dict[str, Any], threshold: float | None = None
) -> dict[str, Tensor]:
    """ "boxes" (N, 4) xyxy px, "scores" (N,) falling and "labels" (N,) 0…K−1 in an image (3, H, W) uint8 RGB."""
    height, width = image.shape[-2:]
    scale = settings["image_size"] / max(height, width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    rows, columns = padded(h, w, settings)
    inputs = processor(
        images=image,
        size={"height": h, "width": w},
        do_pad=True,
        pad_size={"height": rows, "width": columns},
        return_tensors="pt",
    )
    # Boxes are shares of the image; of the padded tensor where the network knows no mask.
    frame = (height, width) if settings["masked"] else (height * rows / h, width * columns / w)
    least = settings["score_threshold"] if threshold is None else threshold
    found = processor.post_process_object_detection(
        net(**inputs), threshold=least, target_sizes=torch.tensor([frame]), **settings["post_process"]
    )[0]
    order = found["scores"].argsort(descending=True, stable=True)[: settings["detections"]]
    found = {name: value[order] for name, value in found.items()}
    boxes = found["boxes"].clamp(min=0)
    return {**found, "boxes": torch.minimum(boxes, torch.tensor([width, height, width, height]))}


def read(path: str | Path) -> Tensor:
    """An 8-bit image file as (3, H, W) uint8 RGB: turned as its EXIF says, transparency on black."""
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file).convert("RGBA")
    black = Image.new("RGBA", picture.size, "black")
    return torch.from_numpy(np.array(Image.alpha_composite(black, picture).convert("RGB"))).permute(2, 0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Detect objects in images; prints JSON, boxes as x y width height.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    net, processor, settings = load()
    listed = []
    for path in parser.parse_args().images:
        image = read(path)
        found = find(image, net, processor, settings)
        rows = zip(*(found[name].tolist() for name in ("boxes", "scores", "labels")))
        detections = [
            {
                "category_id": settings["category_ids"][label],
                "category": settings["classes"][label],
                "score": round(score, 5),
                "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            }
            for (x1, y1, x2, y2), score, label in rows
        ]
        listed.append({"file": path, "height": image.shape[1], "width": image.shape[2], "detections": detections})
    print(json.dumps(listed, indent=1))


if __name__ == "__main__":
    main()
