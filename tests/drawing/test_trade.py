"""Detection and probes of the same starts, over a setting, in one figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from selfdet.drawing import trade
from selfdet.drawing.trade import draw_trade, plot_trade
from selfdet.errors import UserError

SETTINGS = {"runs/a": 0.0, "runs/b": 0.5}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """What compare and probe write, of two starts."""
    cells = [
        {"init": init, "kind": kind, "fraction": fraction, "AP": ap}
        for init, kind, fraction, ap in [
            ("runs/a", "finetune", 0.1, 0.05),
            ("runs/a", "finetune", 0.1, 0.07),
            ("runs/b", "finetune", 0.1, 0.09),
            ("runs/b", "finetune", 0.1, None),
            ("runs/b", "finetune", 0.01, 0.5),
            ("runs/b", "rate", 0.1, 0.5),
            ("scratch", "finetune", 0.1, 0.02),
        ]
    ]
    models = [{"init": None, "scores": scores(0.3)}, *({"init": init, "scores": scores(0.6)} for init in SETTINGS)]
    results, probe = tmp_path / "results.json", tmp_path / "probe.json"
    results.write_text(json.dumps({"cells": cells}))
    probe.write_text(json.dumps({"models": models}))
    return results, probe


def scores(value: float) -> dict[str, Any]:
    return {"boxes": {kind: {"balanced_accuracy": {"values": [value, value + 0.1]}} for kind in ("linear", "knn")}}


def test_each_start_stands_at_its_setting_with_its_own_figures(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(trade, "plot_trade", lambda panels, out, **words: drawn.update(panels=panels, **words))
    draw_trade(SETTINGS, *files, tmp_path / "out.png", fraction=0.1)
    detection, probed = drawn["panels"].values()
    assert detection == {"detection": {0.0: [5.0, pytest.approx(7.0)], 0.5: [9.0]}}
    assert probed["linear"] == {0.0: [60.0, pytest.approx(70.0)], 0.5: [60.0, pytest.approx(70.0)]}
    assert set(probed) == {"linear", "nearest neighbours"}
    scratch, untrained = drawn["levels"].values()
    assert scratch == {"from scratch": [2.0]}
    assert untrained["untrained, linear"] == [30.0, 40.0]


def test_the_figure_is_drawn_also_where_something_is_missing(files: tuple[Path, Path], tmp_path: Path) -> None:
    Image.open(draw_trade(SETTINGS, *files, tmp_path / "out.png", fraction=0.1)).verify()
    panels: dict[str, Any] = {"AP, %": {"a$b$": {0.0: [1.0, 2.0], 1.0: []}}, "probe": {}}
    levels = {"AP, %": {"start": [1.5], "none": []}}
    Image.open(plot_trade(panels, tmp_path / "o.png", title="t", x_label="λ", levels=levels)).verify()


def test_starts_and_files_that_are_not_there_are_said(files: tuple[Path, Path], tmp_path: Path) -> None:
    results, probe = files
    with pytest.raises(UserError, match="has no cell of runs/a with 5 % of the labels"):
        draw_trade(SETTINGS, results, probe, tmp_path / "out.png", fraction=0.05)
    probe.write_text(json.dumps({"models": [{"init": "runs/a", "scores": scores(0.5)}]}))
    with pytest.raises(UserError, match="has no runs/b"):
        draw_trade(SETTINGS, results, probe, tmp_path / "out.png", fraction=0.1)
    with pytest.raises(UserError, match="is no file with cells that can be read"):
        draw_trade(SETTINGS, probe, probe, tmp_path / "out.png", fraction=0.1)
