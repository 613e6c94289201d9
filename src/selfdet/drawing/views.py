"""The first pairs of views of a run, with matching points: the quickest check that augmentation does what it should."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from selfdet.data.disk import writing
from selfdet.data.images import UnreadableImage
from selfdet.data.loader import TrainingDataset
from selfdet.data.views import ViewDataset, ViewPair, true_matches
from selfdet.drawing.boxes import colour, grid

PAIRS = 9
POINTS = 5


def draw_view_pairs(dataset: ViewDataset, out: Path, side: int = 192) -> Path | None:
    """Write a sheet of the first view pairs as training sees them; returns `out`, or None where no image can be read.

    Numbered dots of one colour mark the same point of the source image in both views (from the affines alone).
    `side`: pixels at which a view is drawn.
    """

    def drawn(pair: ViewPair) -> tuple[Image.Image, str]:
        size = pair.query.shape[-1]
        cells = max(2, size // 32)
        _, valid, points = true_matches(pair.query_affine[None], pair.key_affine[None], size, cells)
        query, key = (
            Image.fromarray(view.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC)
            for view in (pair.query, pair.key)
        )
        picture, right = beside(query, key)
        shared = valid[0].nonzero().flatten().tolist()
        for number, cell in enumerate(shared[:: max(1, len(shared) // POINTS)][:POINTS]):
            centre = ((cell % cells + 0.5) * size / cells, (cell // cells + 0.5) * size / cells)
            for left, (x, y) in ((0, centre), (right, points[0, cell].tolist())):
                _dot(picture, left + x * side / size, y * side / size, number)
        return picture, pair.path

    return sheet_of_pairs(dataset, drawn, out)


def sheet_of_pairs(
    dataset: TrainingDataset[Any], draw: Callable[[Any], tuple[Image.Image, str]], out: Path
) -> Path | None:
    """Write a sheet of the first pairs of `dataset`, each as the picture and the path that `draw` gives of it.

    Returns `out`, or None where no image can be read.
    """
    pictures: list[Image.Image] = []
    titles: list[str] = []
    for index in range(len(dataset)):
        if len(pictures) == PAIRS:
            break
        with contextlib.suppress(UnreadableImage):
            picture, path = draw(dataset.load(index, 0))
            pictures.append(picture)
            titles.append(Path(path).name)
    if not pictures:
        return None
    sheet = grid(pictures, columns=3, titles=titles, cell=max(picture.width for picture in pictures))
    with writing(out):
        sheet.save(out, quality=90)
    return out


def beside(first: Image.Image, second: Image.Image, gap: int = 4) -> tuple[Image.Image, int]:
    """Two pictures side by side on white, and where the second begins, in pixels."""
    left = first.width + gap
    both = Image.new("RGB", (left + second.width, max(first.height, second.height)), "white")
    both.paste(first, (0, 0))
    both.paste(second, (left, 0))
    return both, left


def _dot(sheet: Image.Image, x: float, y: float, number: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=colour(number), outline="white", width=2)
    draw.text((x, y), str(number + 1), fill="white", anchor="mm")
