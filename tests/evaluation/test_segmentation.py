"""Scores of segmentation are those of a confusion matrix counted pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from reference import confusion_loop
from selfdet.evaluation.segmentation import Confusion, segmentation_line, segmentation_table


def test_scores_are_those_of_the_loop_over_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    truths = [torch.randint(0, 4, (7, 5), generator=generator, dtype=torch.uint8) for _ in range(3)]
    founds = [torch.randint(0, 5, (7, 5), generator=generator, dtype=torch.uint8) for _ in range(3)]
    for truth in truths:
        truth[torch.rand(7, 5, generator=generator) < 0.2] = 255
    confusion = Confusion(5)
    for truth, found in zip(truths, founds):
        confusion.add(truth, found)
    counts, overlaps, accuracy = confusion_loop([each.tolist() for each in truths], [x.tolist() for x in founds], 5)
    assert confusion.counts.tolist() == counts
    scores = confusion.scores(["a", "b", "c", "d", "e"])
    assert overlaps[4] is None
    assert scores["per_class"] == pytest.approx(dict(zip("abcde", overlaps)))
    known = [value for value in overlaps if value is not None]
    assert scores["mIoU"] == pytest.approx(sum(known) / len(known))
    assert scores["pixel_accuracy"] == pytest.approx(accuracy)
    assert scores["images"] == 3


def test_a_class_without_a_true_pixel_has_no_score_and_costs_the_one_it_was_taken_for() -> None:
    confusion = Confusion(3)
    confusion.add(torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8), torch.tensor([[0, 2, 1, 2]], dtype=torch.uint8))
    scores = confusion.scores(["a", "b", "c"])
    assert scores["per_class"] == {"a": 0.5, "b": 1.0, "c": None}
    assert scores["mIoU"] == 0.75


def test_without_a_labelled_pixel_there_is_no_score() -> None:
    confusion = Confusion(2)
    confusion.add(torch.full((2, 2), 255, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8))
    scores = confusion.scores(["a", "b"])
    assert scores["mIoU"] is None
    assert segmentation_line(scores) == "mIoU – %, pixel accuracy – %"


def test_the_table_has_a_line_for_each_class() -> None:
    confusion = Confusion(2)
    confusion.add(torch.tensor([[0, 1]], dtype=torch.uint8), torch.tensor([[0, 1]], dtype=torch.uint8))
    text = segmentation_table(confusion.scores(["sea", "sky"]), "run on masks")
    assert "mIoU 100.0 %" in text
    assert [line.split()[1] for line in text.splitlines() if "sea" in line or "sky" in line] == ["sea", "sky"]
