"""One chart for each kind of figure that a run has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from selfdet.drawing import training
from selfdet.drawing.training import plot_training
from selfdet.training.rundir import RunDir
from tiny_runs import tiny_aligndet


def test_the_ap_of_masks_is_a_curve_beside_that_of_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(training, "plot_curves", lambda series, path, **_: drawn.update({path.name: series}))
    rows: list[dict[str, Any]] = [
        {"step": 0, "AP": 0.0, "mask": {"AP": None}},
        {"step": 5, "AP": 0.2, "mask": {"AP": 0.1}},
    ]
    plot_training([*rows, {"step": 3, "loss_mask": 0.7}], tmp_path)
    assert drawn["ap.png"] == {"AP": [(0, 0.0), (5, 0.2)], "AP of masks": [(0, None), (5, 0.1)]}
    assert drawn["loss.png"] == {"masks": [(3, 0.7)]}


def test_a_method_with_one_loss_shows_it_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(training, "plot_curves", lambda series, path, **_: drawn.update({path.name: series}))
    plot_training([{"step": 2, "loss": 0.7, "global": 0.7}], tmp_path)
    assert drawn == {"loss.png": {"global": [(2, 0.7)]}}


def test_segmentation_has_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(training, "plot_curves", lambda series, path, **_: drawn.update({path.name: series}))
    plot_training([{"step": 2, "loss": 0.7, "batch_accuracy": 0.4}, {"step": 2, "mIoU": 0.3}], tmp_path)
    assert drawn["miou.png"] == {"mIoU": [(2, 0.3)], "the same in training": [(2, 0.4)]}


def test_only_figures_that_are_there_are_drawn(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 0, "AP": 0.0, "AP50": None},
        {"step": 10, "loss": 2.0, "classification": 1.0, "lr": 0.1, "unknown": 3.0},
        {"step": 20, "AP": 0.1, "AP50": 0.2},
    ]
    written = plot_training(rows, tmp_path / "pictures")
    assert [path.name for path in written] == ["loss.png", "ap.png", "learning_rate.png"]
    for path in written:
        with Image.open(path) as picture:
            assert min(picture.size) > 300


Chart = dict[str, list[tuple[float, float]]]


def charts(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Chart], dict[str, float]]:
    """The curves of each chart of a run, and the levels of all of them."""
    drawn: dict[str, Chart] = {}
    levels: dict[str, float] = {}

    def plot(series: Any, out: Path, hlines: dict[str, float], **_: Any) -> None:
        drawn[out.stem] = dict(series)
        levels.update(hlines)

    monkeypatch.setattr(training, "plot_curves", plot)
    plot_training(RunDir(run).read_metrics(), folder)
    return drawn, levels


def test_every_figure_that_health_speaks_of_has_its_curve(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, levels = charts(pretrained, tmp_path, monkeypatch)
    assert set(drawn) == {
        *("loss", "similarity", "spread", "deviation"),
        *("match_accuracy", "match_error", "learning_rate"),
    }
    assert set(drawn["loss"]) == {"total", "global", "dense"}
    assert levels == {"chance": math.log(65), "guessing": 0.25, "at most": 4.0}
    assert [step for step, _ in drawn["match_accuracy"]["this run"]] == [0, 5]
    assert [step for step, _ in drawn["loss"]["total"]] == [2, 4, 5]


def test_every_figure_of_the_box_domain_has_its_curve(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfdet.verbs.pretrain_detector.plot_training", lambda rows, folder: [])
    tiny_aligndet(scenes, tmp_path / "run", steps=4)
    drawn, levels = charts(tmp_path / "run", tmp_path, monkeypatch)
    assert set(drawn) == {"loss", "contrast", "box_iou", "places", "shares", "deviation", "learning_rate"}
    assert set(drawn["loss"]) == {"total", "contrast", "objectness", "box regression", "centerness"}
    assert set(drawn["contrast"]) == {"contrast"}
    assert levels["chance"] > levels["floor"]
    assert set(drawn["places"]) == {"places", "proposals", "proposals with a place"}
    assert set(drawn["shares"]) == {"proposals with places in both views", "distances of 0 (no gradient)"}
    assert [step for step, _ in drawn["box_iou"][""]] == [2, 4]


def test_a_run_without_rows_has_no_charts(tmp_path: Path) -> None:
    assert plot_training([], tmp_path / "pictures") == []
