"""Labels and steps that a start saves are read off what was measured."""

from __future__ import annotations

import math

import pytest

from comparison_cells import cell, realistic
from selfdet.evaluation.comparison import Comparison
from selfdet.evaluation.savings import Equivalent, Reach, equivalents, reaches


def two(base: dict[float, float], other: dict[float, float], seeds: int = 2) -> list[Equivalent]:
    """What a start with these APs (fraction of 1,000 images → AP), the same for all seeds, is worth."""
    cells = [
        cell(start, seed, ap, fraction=fraction, labels=round(1000 * fraction))
        for start, aps in (("a", base), ("b", other))
        for fraction, ap in aps.items()
        for seed in range(seeds)
    ]
    return equivalents(Comparison({"a": "A", "b": "B"}, cells, len(cells), {}, {}))


def test_labels_are_worth_as_many_as_the_first_start_needs_for_the_same_ap() -> None:
    (found,) = two({0.01: 0.1, 0.1: 0.2, 1.0: 0.3}, {0.1: 0.25})
    assert found.labels == pytest.approx(math.sqrt(100 * 1000))
    assert found.words(found.labels) == "about 320"
    assert found.low == found.high == found.labels


def test_a_worse_start_is_worth_fewer_labels() -> None:
    (found,) = two({0.01: 0.1, 0.1: 0.2, 1.0: 0.3}, {0.1: 0.15})
    assert found.labels == pytest.approx(math.sqrt(10 * 100))


def test_beyond_what_was_measured_no_number_is_made_up() -> None:
    more, fewer = two({0.1: 0.2, 1.0: 0.3}, {0.1: 0.35, 1.0: 0.1})
    assert (more.labels, more.words(more.labels)) == (math.inf, "more than 1,000")
    assert (fewer.labels, fewer.words(fewer.labels)) == (0.0, "fewer than 100")


def test_one_amount_gives_nothing_to_read_off() -> None:
    assert two({0.1: 0.2}, {0.1: 0.3}) == []
    assert two({}, {0.1: 0.3}) == []


def test_a_better_start_is_never_worth_fewer_labels_where_the_first_one_falls() -> None:
    (found,) = two({0.01: 0.30, 0.1: 0.2, 1.0: 0.4}, {0.1: 0.25})
    assert found.labels > 100


def test_bounds_are_those_of_the_paired_difference() -> None:
    found = next(each for each in equivalents(realistic(seeds=5)) if each.start == "aligndet")
    assert 20 < found.low < found.labels < found.high < 2045


def curved(base: list, other: list, seeds: int = 1) -> list[Reach]:
    cells = [cell("a", seed, 0.1, curve=base) for seed in range(seeds)]
    cells += [cell("b", seed, 0.1, curve=other) for seed in range(seeds)]
    return reaches(Comparison({"a": "A", "b": "B"}, cells, len(cells), {}, {}))


def test_steps_are_counted_to_where_the_first_start_ends() -> None:
    (found,) = curved([[0, 0.0], [100, 0.1], [200, 0.2]], [[0, 0.0], [100, 0.4], [200, 0.5]], seeds=2)
    assert (found.target, found.steps, found.base_steps, found.last) == pytest.approx((0.2, 50, 200, 200))
    assert found.by_seed == pytest.approx([50, 50])


def test_an_ap_that_is_not_reached_is_said_to_be_none() -> None:
    (found,) = curved([[0, 0.0], [100, 0.3]], [[0, 0.0], [100, 0.2]])
    assert found.steps is None
    assert list(found.by_seed) == [None]


def test_points_without_ap_and_cells_without_a_curve_are_left_out() -> None:
    assert curved([], [[0, 0.1]]) == []
    assert curved([[0, None]], [[0, 0.1]]) == []
    (found,) = curved([[0, None], [100, 0.2]], [[0, 0.1], [100, 0.3]])
    assert found.steps == pytest.approx(50)


def test_a_first_start_that_learned_nothing_gives_nothing_to_reach() -> None:
    assert curved([[0, 0.0], [100, 0.0]], [[0, 0.0], [100, 0.2]]) == []
