"""What a segmenter finds on a few images of its run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_fabric import Fabric

from selfdet.data.class_maps import MaskedImage
from selfdet.data.images import UnreadableImage
from selfdet.data.mask_labels import MaskLabels, MaskRecord
from selfdet.detectors.segmenter import Segmenter
from selfdet.drawing.run_pictures import Example
from selfdet.evaluation.segmenting import Sight, segment


class Shown(NamedTuple):
    """Images to be shown: where they come from in `words`, their labels, and which they are."""

    words: str
    labels: MaskLabels
    records: Sequence[MaskRecord]


def segmentation_images(config: Mapping[str, Any], segmenter: Segmenter, fabric: Fabric, shown: Shown) -> list[Example]:
    """Each image with its labels and what is found. Raises: UserError for labels of other classes."""
    labels = shown.labels.in_order_of(config["classes"])

    def items() -> Iterator[MaskedImage]:
        for record in shown.records:
            try:
                yield labels.read(record)
            except UnreadableImage:
                continue

    sight = Sight(config["image_size"], config["crop_size"])
    return [
        Example(Path(item.path).name, item.image, {"classes": item.classes}, {"classes": found})
        for item, found in segment(segmenter, items(), sight, fabric)
    ]
