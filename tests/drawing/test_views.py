"""The sheet of first views shows pairs as training sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from selfdet.data.views import TwoViews, ViewDataset
from selfdet.drawing.boxes import colour
from selfdet.drawing.views import draw_view_pairs


def test_a_sheet_shows_the_first_pairs_that_can_be_read(scenes: Path, tmp_path: Path) -> None:
    paths = sorted((scenes / "images").glob("train*.jpg"))[:4]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    out = tmp_path / "views.png"
    assert draw_view_pairs(ViewDataset([bad, *paths], TwoViews(64, 0)), out, side=96) == out
    sheet = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert sheet.shape[1] > 3 * 2 * 96  # three pairs beside each other
    assert sheet.shape[0] > 2 * 96  # and a second row
    # Matching points are marked in the colours of their numbers.
    assert (np.abs(sheet - colour(0)).sum(2) < 6).sum() > 20


def test_the_same_views_give_the_same_sheet(scenes: Path, tmp_path: Path) -> None:
    paths = sorted((scenes / "images").glob("train*.jpg"))[:2]
    for name in ("a.png", "b.png"):
        draw_view_pairs(ViewDataset(paths, TwoViews(64, 0)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_nothing_is_drawn_where_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    dataset = ViewDataset([tmp_path / "bad.jpg"], TwoViews(64, 0))
    assert draw_view_pairs(dataset, tmp_path / "views.png") is None
    assert not (tmp_path / "views.png").exists()


def test_views_without_a_common_point_are_drawn_without_dots(tmp_path: Path) -> None:
    picture = np.zeros((400, 400, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "black.png")
    tiny_crops = TwoViews(32, seed=0, scale=(0.001, 0.0011))
    assert draw_view_pairs(ViewDataset([tmp_path / "black.png"], tiny_crops), tmp_path / "views.png")
