"""The sheet of box-domain views shows what training sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from selfdet.data.box_views import BoxViewDataset, BoxViews
from selfdet.data.labels import load_labels
from selfdet.drawing.box_views import draw_box_views


def test_the_first_pairs_stand_side_by_side_and_unreadable_images_are_left_out(scenes: Path, tmp_path: Path) -> None:
    records = load_labels(scenes / "train.json", None).records[:3]
    views = BoxViews((64,), 96, seed=0)
    out = tmp_path / "views.jpg"
    assert draw_box_views(BoxViewDataset(records, views), out, side=100) == out
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 200
        assert np.asarray(sheet).std() > 10
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    for record in records:
        record.path = broken
    assert draw_box_views(BoxViewDataset(records, views), tmp_path / "none.jpg") is None
    assert not (tmp_path / "none.jpg").exists()
