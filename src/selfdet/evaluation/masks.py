"""Objects and detections as the evaluation of masks takes them: with run lengths in place of boxes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from selfdet.data.masks import has_segmentation, mask_area, segmentation_rle
from selfdet.data.untrusted import is_side
from selfdet.errors import UserError

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]
Size = tuple[int, int]  # (H, W)


def masked_objects(objects: Rows, annotations: Sequence[Mapping[str, Any]], sizes: Mapping[int, Size]) -> Rows:
    """The numbered `objects` with the segmentations of their `annotations` as RLE; none where no annotation has one.

    An object without a segmentation becomes an ignored region the size of its box, as crowds are: whether a detection
    of it is right can't be said. They are counted in a warning. `sizes`: of the image of each number.

    Raises: UserError for a segmentation that can't be read.
    """
    known = [has_segmentation(annotation.get("segmentation")) for annotation in annotations]
    if not any(known):
        return []
    rows = []
    for row, annotation, is_known in zip(objects, annotations, known, strict=True):
        left, top, width, height = row["bbox"]
        corners = [left, top, left + width, top, left + width, top + height, left, top + height]
        ignored = {} if is_known else {"iscrowd": 1}
        what = annotation["segmentation"] if is_known else [corners]
        name = f"annotation {annotation.get('id')} of image {annotation['image_id']}"
        rows.append({**row, **ignored, "segmentation": _rle(what, sizes[row["image_id"]], name)})
    if missing := known.count(False):
        log.warning("%d of %d objects have no segmentation: ignored in the AP of masks", missing, len(known))
    return rows


def masked_detections(detections: Rows, results: Sequence[Mapping[str, Any]], sizes: Mapping[int, Size]) -> Rows:
    """The numbered `detections` with the RLE of their `results`, and the masks' areas in place of the boxes'.

    Raises: UserError for one that is missing or of another size than its image.
    """
    rows = []
    for row, result in zip(detections, results, strict=True):
        if "segmentation" not in result:
            raise UserError(
                f"a detection in image {result['image_id']} has no segmentation where others have one",
                "The AP of masks needs the mask of every detection",
            )
        packed = _rle(result["segmentation"], sizes[row["image_id"]], f"a detection in image {result['image_id']}")
        rows.append({**row, "segmentation": packed, "area": mask_area(packed)})
    return rows


def image_sizes(
    images: Mapping[Any, int], entries: Sequence[Mapping[str, Any]], masks: Sequence[Mapping[str, Any]]
) -> dict[int, Size]:
    """The (H, W) of each image by its number: as its entry in the label file says, else as the RLE of `masks` says.

    An image of which neither says it has nothing to compare, and is taken for 1 × 1.
    """
    sizes = dict.fromkeys(images.values(), (1, 1))
    for mask in masks:
        packed = mask.get("segmentation")
        size = packed.get("size") if isinstance(packed, Mapping) else None
        if isinstance(size, (list, tuple)) and [type(side) for side in size] == [int, int]:
            sizes[images[mask["image_id"]]] = (size[0], size[1])
    for entry in entries:
        if entry["id"] in images and is_side(entry.get("width")) and is_side(entry.get("height")):
            sizes[images[entry["id"]]] = (int(entry["height"]), int(entry["width"]))
    return sizes


def _rle(segmentation: Any, size: Size, name: str) -> dict[str, Any]:
    try:
        return segmentation_rle(segmentation, size)
    except ValueError as error:
        raise UserError(f"the segmentation of {name} cannot be read: {error}", "Use polygons or COCO RLE") from error
