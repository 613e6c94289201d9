"""The first pairs of views of a run, with matching points: the quickest check that augmentation does what it should."""

from __future__ import annotations

import contextlib
from pathlib import Path

from PIL import Image, ImageDraw

from selfdet.data.images import UnreadableImage
from selfdet.data.views import ViewDataset, true_matches
from selfdet.drawing.boxes import colour, grid

PAIRS = 9
POINTS = 5


def draw_view_pairs(dataset: ViewDataset, out: Path, side: int = 192) -> Path | None:
    """Write a sheet of the first view pairs as training sees them; returns `out`, or None where no image can be read.

    Numbered dots of one colour mark the same point of the source image in both views (from the affines alone).
    `side`: pixels at which a view is drawn.
    """
    sheets: list[Image.Image] = []
    titles: list[str] = []
    for index in range(len(dataset)):
        if len(sheets) == PAIRS:
            break
        with contextlib.suppress(UnreadableImage):
            pair = dataset.load(index, 0)
            size = pair.query.shape[-1]
            cells = max(2, size // 32)
            _, valid, points = true_matches(pair.query_affine[None], pair.key_affine[None], size, cells)
            sheet = Image.new("RGB", (2 * side + 4, side), "white")
            for left, view in ((0, pair.query), (side + 4, pair.key)):
                picture = Image.fromarray(view.permute(1, 2, 0).numpy())
                sheet.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (left, 0))
            shared = valid[0].nonzero().flatten().tolist()
            for number, cell in enumerate(shared[:: max(1, len(shared) // POINTS)][:POINTS]):
                query = ((cell % cells + 0.5) * size / cells, (cell // cells + 0.5) * size / cells)
                for left, (x, y) in ((0, query), (side + 4, points[0, cell].tolist())):
                    _dot(sheet, left + x * side / size, y * side / size, number)
            sheets.append(sheet)
            titles.append(Path(pair.path).name)
    if not sheets:
        return None
    grid(sheets, columns=3, titles=titles, cell=2 * side + 4).save(out, quality=90)
    return out


def _dot(sheet: Image.Image, x: float, y: float, number: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=colour(number), outline="white", width=2)
    draw.text((x, y), str(number + 1), fill="white", anchor="mm")
