"""What may be said of a difference between two starts, and what may not."""

from __future__ import annotations

import math

import pytest

from selfdet.evaluation.differences import Difference, labels_for, paired, points, steps_to_reach, verdict


def test_the_interval_is_students_of_the_paired_differences() -> None:
    base = dict(enumerate([0.10, 0.12, 0.09, 0.11, 0.10]))
    other = dict(enumerate([0.13, 0.14, 0.13, 0.13, 0.14]))
    found = paired(base, other)
    assert found is not None
    differences = [0.03, 0.02, 0.04, 0.02, 0.04]
    mean = sum(differences) / 5
    deviation = math.sqrt(sum((value - mean) ** 2 for value in differences) / 4)
    half = 2.776445105 * deviation / math.sqrt(5)  # of Student's t with 4 degrees of freedom
    assert (found.mean, found.low, found.high) == pytest.approx((mean, mean - half, mean + half))
    assert found.n == 5
    assert found.is_interval
    assert found.found


def test_fewer_than_five_seeds_get_the_range_of_what_was_seen() -> None:
    found = paired({0: 0.10, 1: 0.12, 2: 0.15}, {0: 0.11, 1: 0.15, 2: 0.15})
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.04 / 3, 0.0, 0.03))
    assert not found.is_interval


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired({0: 0.1, 1: 0.9}, {1: 0.8, 2: 0.2})
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(-0.1), 1)
    assert paired({0: 0.1}, {1: 0.1}) is None


def test_an_interval_that_holds_nought_is_no_difference() -> None:
    assert not Difference(0.01, -0.001, 0.021, 5).found
    assert Difference(-0.01, -0.02, -0.001, 5).found
    assert not Difference(0.01, 0.01, 0.01, 1).found


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (Difference(0.031, 0.019, 0.043, 5), "+3.1 AP with 10 images, 95 % +1.9…+4.3, n = 5"),
        (Difference(0.0047, 0.0024, 0.0087, 3), "+0.5 AP with 10 images, range +0.2…+0.9, n = 3"),
        (Difference(-0.02, -0.03, -0.01, 2), "−2.0 AP with 10 images, range −3.0…−1.0, n = 2"),
        (Difference(0.003, -0.004, 0.01, 5), "no difference found with 10 images (+0.3 AP, 95 % −0.4…+1.0, n = 5)"),
        (Difference(0.003, 0.003, 0.003, 1), "+0.3 AP with 10 images, one seed: too few to tell from chance"),
        (None, "not measured with 10 images"),
    ],
)
def test_the_verdict_never_claims_more_than_was_measured(difference: Difference | None, words: str) -> None:
    assert verdict(difference, "10 images") == words


def test_points_have_a_sign_unless_they_are_nought() -> None:
    assert [points(value) for value in (0.031, -0.004, 0.0, 0.0004, -0.0004)] == ["+3.1", "−0.4", "0.0", "0.0", "0.0"]


def test_a_curve_reaches_a_value_between_two_steps() -> None:
    curve = [(0, 0.0), (100, 0.02), (200, 0.06), (300, 0.05)]
    assert steps_to_reach(curve, 0.04) == pytest.approx(150)
    assert steps_to_reach(curve, 0.06) == pytest.approx(200)
    assert steps_to_reach(curve, 0.0) == 0
    assert steps_to_reach(curve, 0.07) is None
    assert steps_to_reach([], 0.1) is None


def test_labels_are_read_off_on_a_logarithmic_scale_and_never_extrapolated() -> None:
    curve = [(10, 0.02), (100, 0.06), (1000, 0.20)]
    assert labels_for(curve, 0.04) == pytest.approx(math.sqrt(10 * 100))
    assert labels_for(curve, 0.06) == pytest.approx(100)
    assert labels_for(curve, 0.21) is None
    assert labels_for(curve, 0.01) is None
    assert labels_for([], 0.01) is None
