"""The first pairs of box-domain views of a run: is one colour one object in both?"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from selfdet.data.box_views import BoxViewDataset
from selfdet.data.sample import Sample
from selfdet.drawing.boxes import draw_boxes
from selfdet.drawing.views import beside, sheet_of_pairs

BOXES = 12  # on each picture: all of them would hide it


def draw_box_views(dataset: BoxViewDataset, out: Path, side: int = 280) -> Path | None:
    """Write a sheet of the first pairs as training sees them; returns `out`, or None where no image can be read.

    Boxes of one colour and number are one object. Only the first few of each image are drawn, and only those that both
    views have. `side`: pixels at which the long side of a view is drawn.
    """

    def drawn(pair: tuple[Sample, Sample]) -> tuple[Image.Image, str]:
        shared = sorted(set(pair[0].ids.tolist()) & set(pair[1].ids.tolist()))[:BOXES]
        first, second = (_drawn(view, shared, side) for view in pair)
        return beside(first, second)[0], pair[0].path

    return sheet_of_pairs(dataset, drawn, out)


def _drawn(view: Sample, ids: list[int], side: int) -> Image.Image:
    rows = [row for row, number in enumerate(view.ids.tolist()) if number in ids]
    return draw_boxes(view.image, view.boxes[rows], ids=view.ids[rows], long_side=side)
