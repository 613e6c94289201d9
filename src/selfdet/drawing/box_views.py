"""The first pairs of box-domain views of a run: is one colour one object in both?"""

from __future__ import annotations

import contextlib
from pathlib import Path

from PIL import Image

from selfdet.data.box_views import BoxViewDataset
from selfdet.data.images import UnreadableImage
from selfdet.data.sample import Sample
from selfdet.drawing.boxes import draw_boxes, grid

PAIRS = 9
BOXES = 12  # on each picture: all of them would hide it


def draw_box_views(dataset: BoxViewDataset, out: Path, side: int = 280) -> Path | None:
    """Write a sheet of the first pairs as training sees them; returns `out`, or None where no image can be read.

    Boxes of one colour and number are one object. Only the first few of each image are drawn, and only those that both
    views have. `side`: pixels at which the long side of a view is drawn.
    """
    sheets: list[Image.Image] = []
    titles: list[str] = []
    for index in range(len(dataset)):
        if len(sheets) == PAIRS:
            break
        with contextlib.suppress(UnreadableImage):
            pair = dataset.load(index, 0)
            shared = sorted(set(pair[0].ids.tolist()) & set(pair[1].ids.tolist()))[:BOXES]
            views = [_drawn(view, shared, side) for view in pair]
            sheet = Image.new("RGB", (2 * side + 4, max(view.height for view in views)), "white")
            for left, view in zip((0, side + 4), views):
                sheet.paste(view, (left, 0))
            sheets.append(sheet)
            titles.append(Path(pair[0].path).name)
    if not sheets:
        return None
    grid(sheets, columns=3, titles=titles, cell=2 * side + 4).save(out, quality=90)
    return out


def _drawn(view: Sample, ids: list[int], side: int) -> Image.Image:
    rows = [row for row, number in enumerate(view.ids.tolist()) if number in ids]
    return draw_boxes(view.image, view.boxes[rows], ids=view.ids[rows], long_side=side)
