"""Starts are compared for segmentation as for detection: by mIoU, with masks in the layouts that people have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from masked_scenes import voc_layout
from selfdet.errors import UserError
from selfdet.verbs.compare import compare
from tiny_runs import BACKBONE


def test_starts_are_compared_by_miou(scenes: Path, pretrained: Path, tmp_path: Path) -> None:
    root = voc_layout(scenes, tmp_path / "voc") / "ImageSets" / "Segmentation"
    asked = {
        "init": ["scratch", str(pretrained)],
        "data": str(root / "train.txt"),
        "val_data": str(root / "val.txt"),
        "out": str(tmp_path / "out"),
        "task": "segmentation",
        **{"backbone": BACKBONE, "image_size": 64, "crop_size": 48, "batch_size": 4, "steps": 2},
        **{"fractions": [0.4], "seeds": 1, "lr_grid": [1.0], "tune_fraction": 0.3, "curve_points": 1},
        **{"outside_images": 4, "workers": 0, "threads": 1, "precision": "fp32", "keep_weights": False},
    }
    answer = compare(**asked)  # type: ignore[arg-type]
    assert answer["finished"]
    cells = [json.loads(file.read_text()) for file in sorted((tmp_path / "out" / "cells").glob("*/cell.json"))]
    assert sorted(cell["kind"] for cell in cells) == ["finetune", "finetune", "rate", "rate"]
    for cell in cells:
        assert 0 <= cell["mIoU"] <= 1
        assert cell["detector"] == "fcn"
        assert "boxes" not in cell
        assert "--task segmentation" in cell["command"]
    assert not list((tmp_path / "out").rglob("segmenter.safetensors"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mIoU" in page
    assert "AP of" not in page
    header = (tmp_path / "out" / "results.csv").read_text().splitlines()[0]
    assert "mIoU,pixel_accuracy" in header
    assert compare(**asked, resume=True)["finished"]  # type: ignore[arg-type]


def test_flags_of_detection_are_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--fpn-channels is for detection"):
        compare(
            init=["scratch", "library:resnet18"],
            data=str(scenes / "train.json"),
            val_data=str(scenes / "val.json"),
            out=str(tmp_path / "out"),
            task="segmentation",
            fpn_channels=64,
        )
