"""The figures of a comparison hold for any subset of its planned cells."""

from __future__ import annotations

import statistics

import pytest

from comparison_cells import cell, rate, realistic
from selfdet.evaluation.comparison import Comparison, amounts, classes, difference, rates, scores, table


def some(*cells: dict, starts: tuple[str, ...] = ("a", "b")) -> Comparison:
    return Comparison({start: start for start in starts}, cells, 10, {}, {})


def test_amounts_are_counted_in_labelled_images_and_named_by_them() -> None:
    found = amounts(realistic(seeds=2))
    assert [amount.words for amount in found] == ["20 images", "204 images", "2,045 images"]
    assert [amount.share for amount in found] == ["1 %", "10 %", "100 %"]
    assert [amount.slug for amount in found] == ["0.01", "0.1", "1"]
    assert found[0].boxes == 80
    assert amounts(some(cell("a", 0, 0.1, labels=1)))[0].words == "1 image"


def test_shots_may_be_another_number_of_images_for_every_seed() -> None:
    (found,) = amounts(some(cell("a", 0, 0.1, shots=5, labels=13), cell("a", 1, 0.1, shots=5, labels=16)))
    assert found.words == "5 of each class (about 14 images)"
    assert found.slug == "5shot"
    assert (found.kind, found.value, found.images) == ("shots", 5, 14)


def test_the_table_has_means_and_sample_deviations_and_counts_the_seeds() -> None:
    rows = table(some(cell("a", 0, 0.10), cell("a", 1, 0.14), cell("b", 0, 0.2)))
    assert [(row.start, row.n) for row in rows] == [("a", 2), ("b", 1)]
    assert rows[0].values["AP"] == pytest.approx((0.12, statistics.stdev([0.10, 0.14])))
    assert rows[1].values["AP"] == (0.2, None)
    assert rows[0].values["APs"] is None


def test_a_start_without_cells_has_no_row_and_an_ap_that_is_none_is_no_seed() -> None:
    rows = table(some(cell("a", 0, None), cell("a", 1, 0.1)))
    assert [(row.start, row.n) for row in rows] == [("a", 1)]


def test_rows_of_masks_stand_beside_those_of_boxes() -> None:
    comparison = some(cell("a", 0, 0.1, mask=True), cell("b", 0, 0.2, mask=True))
    assert comparison.kinds == ["boxes", "masks"]
    assert [(row.start, row.of) for row in table(comparison)] == [
        ("a", "boxes"),
        ("a", "masks"),
        ("b", "boxes"),
        ("b", "masks"),
    ]
    found = difference(comparison, "b", amounts(comparison)[0], "masks")
    assert found is not None
    assert found.mean == pytest.approx(0.08)


def test_differences_pair_only_the_seeds_that_both_starts_finished() -> None:
    comparison = some(cell("a", 0, 0.10), cell("a", 1, 0.50), cell("b", 0, 0.12), cell("b", 2, 0.9))
    found = difference(comparison, "b", amounts(comparison)[0])
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.02), 1)


def test_classes_have_differences_of_their_own() -> None:
    comparison = realistic(seeds=5)
    amount = amounts(comparison)[0]
    assert classes(comparison) == ["person", "bicycle", "dog"]
    found = difference(comparison, "aligndet", amount, name="dog")
    assert found is not None
    assert found.n == 5
    assert scores(comparison, "scratch", amount, name="cat") == {}


def test_a_learning_rate_says_what_was_tried_and_whether_the_best_is_at_the_edge() -> None:
    cells = [cell("a", 0, 0.1, lr=0.02), rate("a", 0.01, 0.1), rate("a", 0.02, 0.2), rate("a", 0.04, None)]
    found = rates(some(*cells, cell("b", 0, 0.1, lr=0.01), rate("b", 0.01, 0.3), rate("b", 0.02, 0.2)))
    assert [(each.start, each.best, each.at_edge) for each in found] == [("a", 0.02, False), ("b", 0.01, True)]
    assert [(amount.words, lr) for amount, lr in found[0].used] == [("20 images", [0.02])]
    assert found[0].tried == [(0.01, 0.5, 0.1), (0.02, 1.0, 0.2), (0.04, 2.0, None)]


def test_nothing_finished_gives_nothing() -> None:
    comparison = some()
    assert (amounts(comparison), table(comparison), rates(comparison)) == ([], [], [])
