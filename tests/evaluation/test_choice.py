"""The answer never claims more than the finished cells hold."""

from __future__ import annotations

import re

import numpy as np
import pytest

from comparison_cells import STARTS, cell, realistic
from selfdet.evaluation.choice import Choice, answer, choose, sureness
from selfdet.evaluation.comparison import Comparison, amounts


def chosen(aps: dict[str, list[float | None]], **more: object) -> Choice:
    cells = [cell(start, seed, ap) for start, each in aps.items() for seed, ap in enumerate(each)]
    comparison = Comparison({start: start.upper() for start in aps}, cells, len(cells), {}, {})
    found = choose(comparison, amounts(comparison)[0])
    assert found is not None
    return found


def words(found: Choice, *starts: str) -> str:
    return sureness(found, {start: start.upper() for start in starts or ("a", "b", "c")})


def test_a_start_ahead_of_all_others_in_five_seeds_is_clear() -> None:
    found = chosen({"a": [0.1, 0.11, 0.12, 0.1, 0.11], "b": [0.14, 0.16, 0.16, 0.14, 0.15], "c": [0.1] * 5})
    assert (found.best, found.use, found.beaten) == ("b", ["b"], ["a", "c"])
    assert words(found).startswith("Clear: B is better than every other start, by +")
    assert "95 %" in words(found)


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_under_five_seeds_it_is_a_range_and_chance_is_named(seeds: int) -> None:
    found = chosen({"a": [0.1] * seeds, "b": [0.15 + 0.01 * seed for seed in range(seeds)]})
    assert found.use == ["b"]
    said = words(found)
    assert said.startswith("A lead, too few seeds to be sure")
    assert ("in both seeds" if seeds == 2 else f"in all {seeds} seeds") in said
    assert "range" in said
    assert not re.search("real|significant|95 %|clear", said, re.IGNORECASE)


def test_one_seed_tells_nothing() -> None:
    found = chosen({"a": [0.1], "b": [0.3]})
    assert found.use == ["b", "a"]
    assert words(found) == "Can't tell: B has the highest AP of the one seed, by +20.0 AP (one seed)."


def test_starts_that_are_not_told_apart_may_both_be_used() -> None:
    found = chosen({"a": [0.10, 0.12, 0.11, 0.1, 0.1], "b": [0.11, 0.11, 0.1, 0.12, 0.11]})
    assert set(found.use) == {"a", "b"}
    assert words(found).startswith("No difference found: B has the highest mean, by +0.4 AP (95 % −")


def test_the_best_may_be_better_than_some_and_equal_to_others() -> None:
    found = chosen(
        {"a": [0.05, 0.06, 0.05, 0.06, 0.05], "b": [0.2, 0.22, 0.2, 0.21, 0.2], "c": [0.21, 0.2, 0.22, 0.2, 0.21]}
    )
    assert (found.best, found.equal, found.beaten) == ("c", ["b"], ["a"])
    assert found.use == ["c", "b"]
    assert words(found).startswith("Clear in part: C is better than A, by +")
    assert "No difference found from B" in words(found)


def test_a_lucky_single_seed_does_not_lead_where_others_have_more() -> None:
    found = chosen({"a": [0.1, 0.1, 0.1], "b": [0.12, 0.12, 0.13], "c": [0.9]})
    assert found.best == "b"
    assert found.open == ["c"]
    assert "Can't tell from C: one seed." in words(found)


def test_starts_without_a_shared_seed_are_named_as_not_measured() -> None:
    found = chosen({"a": [0.1, 0.1], "b": [0.2, 0.2], "c": [None, None]})
    assert found.unmeasured == ["c"]
    assert words(found).endswith("Not measured with its seeds: C.")
    alone = chosen({"a": [0.1, 0.1], "b": [None], "c": []})
    assert alone.use == []
    assert words(alone) == "Nothing to compare: only A is measured. Not measured with its seeds: B and C."


def test_starts_are_compared_without_the_first_one_where_it_is_missing() -> None:
    found = chosen({"a": [None, None], "b": [0.1, 0.1], "c": [0.2, 0.3]})
    assert (found.best, found.beaten, found.unmeasured) == ("c", ["b"], ["a"])


def test_no_score_at_all_is_no_choice() -> None:
    comparison = Comparison({"a": "A"}, [cell("a", 0, None)], 1, {}, {})
    assert choose(comparison, amounts(comparison)[0]) is None
    assert answer(comparison, 100).choices == []


def test_of_many_starts_the_truly_best_is_ruled_out_in_at_most_five_of_a_hundred_comparisons() -> None:
    random = np.random.default_rng(0)
    used = [
        chosen({name: list(row) for name, row in zip("abcde", random.normal(0.2, 0.02, (5, 5)))}).use
        for _ in range(400)
    ]
    assert sum("a" not in each for each in used) / 400 <= 0.05
    assert sum(len(each) == 1 for each in used) / 400 <= 0.05


def test_a_measured_number_of_images_answers_for_one_that_is_near() -> None:
    found = answer(realistic(seeds=5), 200)
    assert [each.amount.images for each in found.choices] == [204]
    assert found.use == ["aligndet"]


def test_between_two_measured_numbers_both_have_to_agree() -> None:
    found = answer(realistic(seeds=5), 100)
    assert [each.amount.images for each in found.choices] == [20, 204]
    assert found.use == ["aligndet"]
    assert STARTS["aligndet"] == "ImageNet + AlignDet"


@pytest.mark.parametrize(("asked", "nearest"), [(10, 20), (100_000, 2045)])
def test_outside_of_what_was_measured_there_is_no_answer_but_the_nearest(asked: int, nearest: int) -> None:
    found = answer(realistic(seeds=5), asked)
    assert (list(found.choices), found.use) == ([], [])
    assert found.outside is not None
    assert found.outside.amount.images == nearest
