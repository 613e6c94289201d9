"""Recall counts each object once and each box for one object."""

from __future__ import annotations

import numpy as np
import pytest

from selfdet.proposing.recall import found_overlaps, recall, recall_table

SMALL, LARGE = [0, 0, 10, 10], [100, 100, 300, 300]


def test_a_box_counts_for_the_object_it_overlaps_most() -> None:
    objects = np.array([[0, 0, 10, 10], [0, 0, 10, 8]], float)
    assert found_overlaps(objects, objects[:1]).tolist() == [1, 0]
    assert found_overlaps(objects, objects).tolist() == [1, 1]
    assert found_overlaps(objects, np.zeros((0, 4))).tolist() == [0, 0]
    assert found_overlaps(np.zeros((0, 4)), objects).tolist() == []


def test_recall_follows_from_the_thresholds_and_the_budget() -> None:
    # The large object is found exactly but late, the small one at IoU 0.6: at 3 of the 10 thresholds.
    boxes = np.array([[0, 0, 10, 6]] + [[500, 500, 510, 510]] * 9 + [LARGE], float)
    figures = recall([(np.array([SMALL, LARGE], float), boxes), (np.zeros((0, 4)), boxes[:1])])
    assert figures["objects"] == {"all": 2, "small": 1, "medium": 0, "large": 1}
    assert figures["10"] == {
        "recall": 0.5,
        "AR": pytest.approx(0.15),
        "ARs": pytest.approx(0.3),
        "ARm": None,
        "ARl": 0.0,
        "boxes": 5.5,
    }
    assert figures["all"]["recall"] == 1.0
    assert figures["all"]["AR"] == pytest.approx(0.65)
    assert figures["50"] == figures["all"]


def test_no_object_at_all_gives_no_figure() -> None:
    figures = recall([])
    assert figures["all"]["recall"] is None
    assert figures["objects"]["all"] == 0


def test_the_table_is_in_percent_with_a_dash_for_what_is_not_there() -> None:
    table = recall_table(recall([(np.array([SMALL], float), np.array([SMALL], float))]), "title")
    lines = table.splitlines()
    assert lines[0] == "title"
    assert [line.split()[:5] for line in lines[2:6]] == [
        [budget, "100.0", "100.0", "100.0", "–"] for budget in ("10", "50", "100", "all")
    ]
