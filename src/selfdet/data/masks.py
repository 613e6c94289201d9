"""The pixels of objects: COCO's polygons and run lengths (RLE) as bool masks, and bool masks as run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

# A polygon's outline is walked in small steps, so one that runs far away, or to and fro, would take for ever.
_FURTHEST = 100_000
_LONGEST = 2_000_000


def has_segmentation(segmentation: Any) -> bool:
    """Whether an annotation's `segmentation` tells its pixels: not where it is absent or has lines and points only."""
    if isinstance(segmentation, list):
        return any(not isinstance(polygon, list) or len(polygon) >= 6 for polygon in segmentation)
    return segmentation is not None


def segmentation_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons or RLE, compressed or not, as compressed RLE {"size": [H, W], "counts"} of an image of `size` (H, W).

    Polygons are joined, what is outside of the image is cut off, and those of fewer than three points cover nothing.
    The pixels are pycocotools' to the last.

    Raises: ValueError, in words for the user, where it is neither, or not of this size.
    """
    if isinstance(segmentation, list):
        return _polygons(segmentation, size)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("it is neither polygons nor RLE")
    if segmentation["size"] not in (list(size), tuple(size)):
        raise ValueError(f"its size is {segmentation['size']} where the image's is {list(size)} (height, width)")
    from faster_coco_eval.core import mask as rle  # only those who ask for masks pay for the import

    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
            raise ValueError(f"its counts are not whole numbers that add up to {size[0]} × {size[1]}")
        packed: dict[str, Any] = rle.frPyObjects(segmentation, *size)
        return packed
    if not isinstance(counts, (str, bytes)):
        raise ValueError("its counts are neither a list nor a string")
    try:
        rle.area(segmentation)
    except (ValueError, RuntimeError) as error:
        raise ValueError("its counts are no run lengths of this size") from error
    return segmentation


def decode_mask(packed: dict[str, Any]) -> np.ndarray:
    """The (H, W) bool mask of a compressed RLE. Raises: ValueError where its runs don't fill it."""
    from faster_coco_eval.core import mask as rle

    try:
        return rle.decode(packed).astype(bool)
    except (ValueError, RuntimeError) as error:
        raise ValueError("its counts are no run lengths of this size") from error


def encode_masks(masks: Tensor | np.ndarray) -> list[dict[str, Any]]:
    """(N, H, W) bool masks as COCO's compressed RLE, {"size": [H, W], "counts": str}, as JSON holds it."""
    from faster_coco_eval.core import mask as rle

    packed = []
    for mask in masks:  # one by one: each is copied, columns first
        entry = rle.encode(np.asfortranarray(np.asarray(mask)).view(np.uint8))
        packed.append({"size": list(entry["size"]), "counts": entry["counts"].decode("ascii")})
    return packed


def mask_area(packed: dict[str, Any]) -> int:
    """The number of pixels set in a compressed RLE."""
    from faster_coco_eval.core import mask as rle

    return int(rle.area(packed))


def _polygons(polygons: list[Any], size: tuple[int, int]) -> dict[str, Any]:
    from faster_coco_eval.core import mask as rle

    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(isinstance(value, (int, float)) for value in polygon)
        if not numbers or len(polygon) % 2:
            raise ValueError("a polygon is not a list of x, y, x, y, …")
        if not all(abs(value) <= _FURTHEST for value in polygon):  # nor NaN
            raise ValueError(f"a polygon has a corner further away than {_FURTHEST} px")
    if sum(np.abs(np.diff(np.reshape(each, (-1, 2)), axis=0)).sum() for each in polygons) > _LONGEST:
        raise ValueError(f"its outline is longer than {_LONGEST:,} px")
    areas = [polygon for polygon in polygons if len(polygon) >= 6]
    if not areas:
        return {"size": list(size), "counts": rle.encode(np.zeros((*size, 1), np.uint8, order="F"))[0]["counts"]}
    packed: dict[str, Any] = rle.merge(rle.frPyObjects(areas, *size))
    return packed
