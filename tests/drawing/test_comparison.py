"""The page of a comparison answers first, claims no more than was measured, and stands any names and missing cells."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from comparison_cells import STARTS, cell, realistic
from selfdet.drawing.comparison import write_comparison
from selfdet.drawing.comparison_answer import start_names
from selfdet.drawing.comparison_figures import _ticks
from selfdet.drawing.comparison_files import results
from selfdet.evaluation.comparison import Comparison

NONE = {"small": None, "heavy_occlusion": None}
EVIL = '<script>alert("x")</script>'


def page(out: Path, comparison: Comparison) -> str:
    """The page's visible text, on one line."""
    write_comparison(out, comparison)
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", (out / "report.html").read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(text).replace("\u2060", "").split())


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Comparison]:
    """A finished comparison of three starts with masks: its folder, the page's text, and itself."""
    out, comparison = tmp_path_factory.mktemp("comparison"), realistic(mask=True)
    return out, page(out, comparison), comparison


Usual = tuple[Path, str, Comparison]


def test_the_answer_stands_before_everything_else(usual: Usual) -> None:
    _, text, _ = usual
    assert text.index("100 labelled images ImageNet + AlignDet") < text.index("How much better than scratch")
    assert "10 images not measured; with 20 images, the fewest: ImageNet + AlignDet a guess; there clear" in text
    assert "100 images ImageNet + AlignDet clear, both with 20 images and with 204 images" in text
    assert "With 20 images: ImageNet + AlignDet. Clear: ImageNet + AlignDet is better than every other start" in text


def test_short_names_are_introduced_with_what_they_stand_for(tmp_path: Path) -> None:
    comparison = realistic()
    words = {start: f"runs/somewhere/far/away/{start}.safetensors: a backbone (densecl)" for start in comparison.starts}
    text = page(tmp_path, replace(comparison, starts=words))
    assert f"The starts: {'; '.join(f'{start}, a backbone (densecl)' for start in words)}." in text


def test_the_page_says_what_labels_are_worth_and_how_fast_a_start_learns(usual: Usual) -> None:
    _, text, _ = usual
    assert re.search(
        r"20 images with ImageNet \+ AlignDet equal about \d+ images with scratch \(95 %: from about", text
    )
    assert "2,045 images with ImageNet + AlignDet equal more with scratch than were measured (more than 2,045)." in text
    assert "AP to reach" in text
    assert "By class" in text


@pytest.mark.parametrize("seeds", [1, 4])
def test_under_five_seeds_nothing_is_called_real_or_significant(tmp_path: Path, seeds: int) -> None:
    text = page(tmp_path, realistic(seeds=seeds, amounts=(0.1,), classes=("person",)))
    assert not re.search(r"\b(real|really|significant\w*|clear)\b", text, re.IGNORECASE)
    assert "Range" in text
    assert "By class" not in text


def test_an_unfinished_comparison_draws_what_is_there_and_counts_what_is_missing(tmp_path: Path) -> None:
    missing = [("scratch", 0.01, seed) for seed in range(2)] + [("aligndet", 0.1, 0)]
    text = page(tmp_path, realistic(seeds=2, amounts=(0.01, 0.1), missing=missing))
    assert "not finished: 3 of 12 planned cells are missing" in text
    assert "not measured with 20 images" in text
    assert (tmp_path / "pictures" / "ap.png").is_file()


def test_a_comparison_without_a_finished_cell_still_has_a_page(tmp_path: Path) -> None:
    text = page(tmp_path, Comparison(STARTS, [], 30, {}, {}))
    assert "30 of 30 planned cells are missing" in text
    assert "No cell is finished yet" in text
    assert json.loads((tmp_path / "results.json").read_text())["finished"] == 0


def test_scores_of_none_do_not_break_the_page(tmp_path: Path) -> None:
    cells = [cell(start, seed, None if start == "scratch" else 0.1) for start in STARTS for seed in range(2)]
    text = page(tmp_path, Comparison(STARTS, cells, 6, {}, {}))
    assert "Not measured with its seeds: scratch" in text
    page(tmp_path, Comparison(STARTS, [cell("scratch", 0, None)], 6, {}, {}))


def test_masks_have_verdicts_and_bars_of_their_own(usual: Usual) -> None:
    out, text, _ = usual
    assert "AP of masks against scratch" in text
    assert "What was measured, by AP of masks" in text
    assert (out / "pictures" / "ap_masks.png").is_file()


def test_the_miss_rate_has_verdicts_columns_and_figures_where_it_was_measured(usual: Usual, tmp_path: Path) -> None:
    gains = {"scratch": 0.0, "imagenet": -0.03, "aligndet": -0.05}
    unseen = {"not_measured": {"heavy_occlusion": "20 objects without vis_ratio"}}
    cells = [
        cell(start, seed, 0.2, miss_rate={"all": 0.8 + gain + 0.001 * seed, "reasonable": None} | NONE | unseen)
        for start, gain in gains.items()
        for seed in range(5)
    ]
    comparison = Comparison(STARTS, cells, len(cells), {}, {})
    text = page(tmp_path, comparison)
    assert "−5.0 MR⁻² with 20 images, 95 % −5.0…−5.0, n = 5" in text
    assert "MR all" in text
    assert "MR reasonable" not in text
    assert "Not measured: heavy occlusion (20 objects without vis_ratio)." in text
    assert "MR⁻²" not in usual[1]
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["MR all"]) for row in rows] == [each["miss_rate"]["all"] for each in cells]
    found = results(comparison, STARTS)
    assert found["table"][0]["MR all"]["mean"] == pytest.approx(0.802)
    assert [each["mean"] for each in found["miss_rates"]] == [pytest.approx(-0.03), pytest.approx(-0.05)]
    assert "MR all" not in results(usual[2], STARTS)["table"][0]


def test_shots_are_named_with_the_images_that_they_are(tmp_path: Path) -> None:
    text = page(tmp_path, realistic(seeds=2, amounts=(), shots=(5, 10), classes=("person",)))
    assert "5 of each class (about 16 images)" in text
    assert (tmp_path / "pictures" / "ap_by_labels_shots.png").is_file()


def test_the_learning_rates_are_told_with_the_reason(tmp_path: Path) -> None:
    text = page(tmp_path, realistic(seeds=1, amounts=(0.1,)))
    assert "scratch 0.02 highest AP 0.01 (0.5 × usual): 8.5, 0.02 (1 × usual): 10.0, 0.04 (2 × usual): 7.0" in text
    given = Comparison(STARTS, [cell("scratch", 0, 0.1)], 1, {}, {})
    assert "The learning rate was given, the same for all starts." in page(tmp_path, given)


def test_names_are_escaped_and_the_page_loads_nothing(tmp_path: Path) -> None:
    starts = {"scratch": EVIL, "imagenet": "$\\frac{", "aligndet": "b"}
    comparison = realistic(seeds=2, starts=starts, amounts=(0.01, 0.1), classes=(EVIL, "=1+1"))
    comparison = Comparison(starts, comparison.cells, 12, {"detector": EVIL}, {EVIL: EVIL})
    write_comparison(tmp_path, comparison)
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_long_words_of_a_start_give_way_to_its_short_name(tmp_path: Path) -> None:
    assert start_names(realistic(seeds=1)) == STARTS
    long = {"scratch": "random weights", "pre": "runs/somewhere/very/far/away/pre: a whole detector"}
    assert start_names(Comparison(long, [], 0, {}, {})) == {"scratch": "scratch", "pre": "pre"}
    assert long["pre"] in page(tmp_path, Comparison(long, [], 0, {}, {}))


def test_the_csv_has_a_line_for_every_cell_and_a_column_for_every_class(usual: Usual) -> None:
    out, _, comparison = usual
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(comparison.cells)
    tuned = next(row for row in rows if row["kind"] == "finetune")
    first = comparison.finetuned[0]
    assert float(tuned["AP"]) == first["AP"]
    assert float(tuned["AP of dog"]) == first["per_class"]["dog"]
    assert float(tuned["mask_AP"]) == first["mask"]["AP"]
    assert tuned["APs"] == ""


def test_the_json_holds_every_figure_of_the_page(usual: Usual) -> None:
    out, _, comparison = usual
    found = json.loads((out / "results.json").read_text())
    assert found == json.loads(json.dumps(results(comparison, start_names(comparison))))
    assert [each["asked"] for each in found["answers"]] == [10, 100, 1000]
    assert found["answers"][1]["use"] == ["aligndet"]
    assert found["answers"][0]["nearest"] == 20
    assert len(found["differences"]) == 3 * 2 * 2
    assert found["differences"][0]["bounds"] == "95 %"
    assert (found["worth"][-1]["equal"], found["worth"][-1]["words"]) == (None, "more than 2,045")
    assert len(found["cells"]) == len(comparison.cells)


def test_the_same_cells_leave_the_page_as_it_is(usual: Usual) -> None:
    out, _, comparison = usual
    before = (out / "report.html").stat()
    write_comparison(out, comparison)
    assert (out / "report.html").stat().st_mtime_ns == before.st_mtime_ns


def test_numbers_of_images_that_lie_close_have_one_tick_between_them() -> None:
    assert _ticks([20, 21, 204, 2045]) == [2045, 204, 21]
    assert _ticks([5]) == [5]
