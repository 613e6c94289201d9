"""Charts are written whole, whatever the figures in them, and the names beside the lines can be read."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfdet.drawing.curves import PALETTE, _apart, _running_mean, plot_bars, plot_curves

NAN = float("nan")


def curve(out: Path, series: dict, **options) -> np.ndarray:
    assert plot_curves(series, out, title="a title", x_label="step", y_label="loss", **options) == out
    return np.asarray(Image.open(out).convert("RGB")).astype(int)


def pixels(picture: np.ndarray, shade: str) -> int:
    rgb = [int(shade[i : i + 2], 16) for i in (1, 3, 5)]
    return int((abs(picture - rgb).max(-1) <= 3).sum())


def test_every_series_is_drawn_in_its_own_colour(tmp_path: Path) -> None:
    series = {f"run {k}": [(x, x * (k + 1.0)) for x in range(20)] for k in range(4)}
    picture = curve(tmp_path / "curves.png", series)
    assert picture.shape[1] >= 1000
    assert all(pixels(picture, shade) > 300 for shade in PALETTE[:4])
    assert pixels(picture, PALETTE[4]) == 0
    assert not list(tmp_path.glob("*.partial"))


def test_the_same_figures_give_the_same_bytes(tmp_path: Path) -> None:
    series = {"loss": [(x, math.sin(x)) for x in range(50)]}
    curve(tmp_path / "one.png", series)
    curve(tmp_path / "two.png", series)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "points",
    [
        [],
        [(0, None)],
        [(0, NAN), (1, float("inf"))],
        [(5, 1.0)],
        [(0, 2.0), (1, None), (2, NAN), (3, 1.0)],
        [(0, 0.0), (1, -1.0)],
        [(x, 3.0) for x in range(400)],
        [(0.5, 1e-9), (0.75, 1e9)],
    ],
)
def test_missing_infinite_constant_or_single_values_still_make_a_chart(
    tmp_path: Path, points: list, log_y: bool
) -> None:
    picture = curve(tmp_path / "c.png", {"loss": points}, log_y=log_y, hlines={"chance": 2.0, "no": NAN, "zero": 0.0})
    assert picture.min() < 200


def test_a_chart_of_nothing_says_so_rather_than_failing(tmp_path: Path) -> None:
    assert curve(tmp_path / "c.png", {}).min() < 200


def test_a_level_to_compare_with_is_drawn_and_lies_within_the_chart(tmp_path: Path) -> None:
    without = curve(tmp_path / "a.png", {"loss": [(0, 1.0), (9, 2.0)]})
    with_level = curve(tmp_path / "b.png", {"loss": [(0, 1.0), (9, 2.0)]}, hlines={"chance": 50.0})
    assert pixels(with_level, "#6b6b6b") > pixels(without, "#6b6b6b") + 300


def test_dollar_signs_and_underscores_in_names_are_plain_text(tmp_path: Path) -> None:
    series = {"$\\frac{": [(0, 1.0), (1, 2.0)], "_hidden": [(0, 2.0), (1, 1.0)], "": [(0, 1.0)]}
    assert plot_curves(series, tmp_path / "c.png", title="$\\x", x_label="$a_", y_label="$", hlines={"$_{": 1.0})
    assert plot_bars({"$\\frac{": {"_a$": [1.0], "$b\\": [2.0]}}, tmp_path / "b.png", title="$_", x_label="$_")


def test_names_at_the_ends_of_the_lines_are_moved_apart_and_stay_in_the_chart() -> None:
    places = _apart([0.5, 0.5, 0.51, 0.0, 1.0, 0.99], [0.1] * 6)
    ordered = sorted(places)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert ordered[0] >= 0.05 - 1e-9
    assert ordered[-1] <= 0.95 + 1e-9
    assert _apart([0.2, 0.8], [0.1, 0.1]) == pytest.approx([0.2, 0.8])  # no need, no move


def test_the_running_mean_of_a_noisy_curve_ignores_gaps_and_keeps_them() -> None:
    values = np.array([1.0, 1.0, NAN, 4.0, 4.0, 4.0])
    mean = _running_mean(values, 3)
    assert np.isnan(mean[2])
    assert mean[0] == mean[1] == 1.0
    assert mean[3] == mean[4] == mean[5] == 4.0


def test_bars_show_every_start_with_missing_values_and_single_seeds(tmp_path: Path) -> None:
    groups = {
        "1 % of labels": {"scratch": [3.0, 2.5, 3.5], "DenseCL": [5.0]},
        "10 % of labels": {"scratch": [None, NAN], "DenseCL": []},
    }
    out = plot_bars(groups, tmp_path / "bars.png", title="AP", x_label="AP (%)")
    picture = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert pixels(picture, PALETTE[0]) > 50
    assert pixels(picture, PALETTE[1]) > 50
    plot_bars({}, out, title="AP", x_label="AP (%)")
    plot_bars({"all": {"scratch": [0.0, 0.0]}}, out, title="AP", x_label="AP (%)")


def test_drawing_needs_no_window_system_and_leaves_the_users_pyplot_alone(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from selfdet.drawing.curves import plot_curves;"
        "plot_curves({'a': [(0, 1.0)]}, Path(sys.argv[1]), title='', x_label='', y_label='');"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "c.png")], check=True)


def test_svg_is_written_when_the_name_asks_for_it(tmp_path: Path) -> None:
    out = plot_curves({"a": [(0, 1.0), (1, 2.0)]}, tmp_path / "c.svg", title="t", x_label="x", y_label="y")
    assert b"<svg" in out.read_bytes()[:2000]
