"""The detector of this folder in onnxruntime: numpy, Pillow and onnxruntime are all it needs.

    python run.py photo.jpg other.png       # detections as JSON

    from run import Detector
    detector = Detector()                   # detector.onnx beside this file
    boxes, scores, labels = detector(picture)      # a PIL image; x1 y1 x2 y2 in its pixels

detector.onnx resizes nothing: an image goes in with a long side of `image_size` px, as bytes, padded to multiples of
`step`. This is selfdet/interchange/companions/run_onnx.py, and imports nothing of selfdet.
SPDX-License-Identifier: Apache-2.0
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


class Detector:
    """A detector for one image at a time; `classes` are the names of its labels."""

    def __init__(self, file: str | Path | None = None) -> None:
        file = file or Path(__file__).with_name("detector.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # else it tells that `threshold` may be left out
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.about: dict[str, Any] = json.loads(self.session.get_modelmeta().custom_metadata_map["selfdet"])
        self.classes: list[str] = self.about["classes"]

    def __call__(self, picture: Image.Image, threshold: float | None = None) -> tuple[Any, Any, Any]:
        """Boxes (N, 4) in pixels of the picture, falling scores (N,) above `threshold` and labels (N,)."""
        scale = self.about["image_size"] / max(picture.size)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        pixels = resized(np.asarray(on_black(picture)), height, width)
        step = self.about["step"]
        rows, columns = (-(-max(side, self.about["least_side"]) // step) * step for side in (height, width))
        images = np.zeros((1, 3, rows, columns), np.uint8)
        images[0, :, :height, :width] = pixels.transpose(2, 0, 1)
        inputs = {"images": images, "sizes": np.array([[height, width]])}
        if threshold is not None:
            inputs["threshold"] = np.array([threshold], np.float32)
        boxes, scores, labels = self.session.run(["boxes", "scores", "labels"], inputs)
        return boxes * (np.array([*picture.size] * 2) / np.array([width, height] * 2)), scores, labels


def on_black(picture: Image.Image) -> Image.Image:
    """A picture in RGB, transparency on black."""
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("RGB")


def resized(pixels: Any, height: int, width: int) -> Any:
    """Pixels (h, w, 3) uint8 as (height, width, 3), bilinear and antialiased: to the bit what torch makes of bytes,
    which the network was trained on. Pillow rounds a few otherwise, by one; boxes move by hundredths of a pixel."""
    for axis, size in ((1, width), (0, height)):
        old = pixels.shape[axis]
        if size == old:
            continue
        reach = max(old / size, 1.0)
        centres = old / size * (np.arange(size) + 0.5)
        first = np.maximum((centres - reach + 0.5).astype(int), 0)
        behind = np.minimum((centres + reach + 0.5).astype(int), old)
        places = first[:, None] + np.arange((behind - first).max())
        weights = np.maximum(1 - np.abs((places - centres[:, None] + 0.5) / reach), 0) * (places < behind[:, None])
        weights /= weights.sum(1, keepdims=True)
        bits = 0  # of the weights as whole numbers: the most with which each fits into 16
        while bits < 22 and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**15:
            bits += 1
        whole = (weights * 2**bits + 0.5).astype(np.int32)
        shape = [*pixels.shape]
        shape[axis] = size
        total = np.full(shape, 1 << (bits - 1), np.int32)
        for taps, column in zip(whole.T, np.minimum(places, old - 1).T):
            total += pixels.take(column, axis) * (taps[:, None] if axis else taps[:, None, None])
        pixels = (total >> bits).clip(0, 255).astype(np.uint8)
    return pixels


def main() -> None:
    """Print what is found in each picture, boxes as x y width height."""
    parser = argparse.ArgumentParser(description="Detect objects in images; prints JSON, boxes as x y width height.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--threshold", type=float, help="score above which something is found")
    options = parser.parse_args()
    detector, listed = Detector(), []
    for file in options.images:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
            picture.load()
        detections = [
            {
                "category_id": detector.about["category_ids"][label],
                "category": detector.classes[label],
                "score": round(float(score), 5),
                "bbox": [round(float(value), 2) for value in (x1, y1, x2 - x1, y2 - y1)],
            }
            for (x1, y1, x2, y2), score, label in zip(*detector(picture, options.threshold))
        ]
        listed.append({"file": file, "height": picture.height, "width": picture.width, "detections": detections})
    print(json.dumps(listed, indent=1))


if __name__ == "__main__":
    main()
