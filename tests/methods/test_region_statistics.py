"""Figures of regions, each counted by hand on four or five places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from selfdet.detectors.base import Regions
from selfdet.methods.region_statistics import region_figures


def regions(ids: list[int], boxes: list | None = None, **more) -> Regions:
    embeddings = torch.eye(4)[torch.arange(len(ids)) % 4]
    return Regions(embeddings, torch.tensor(ids), torch.tensor(boxes or [[0.0, 0, 1, 1]] * len(ids)), **more)


def targets(*ids: list[int]) -> list[dict[str, Tensor]]:
    return [{"ids": torch.tensor(each), "boxes": torch.tensor([[0.0, 0, 10, 10]] * len(each))} for each in ids]


def test_places_are_counted_by_image_and_by_id() -> None:
    # Three objects in two images: 0 has three places online, 2 has one, 1 none; only 0 has one at the teacher's.
    figures = region_figures(regions([0, 0, 0, 2, -1]), regions([0, 1, -1]), targets([0, 1], [2]), 0.5)
    assert figures["proposals_per_image"] == 1.5
    assert figures["ids_per_image"] == 1
    assert figures["positives_per_image"] == 2
    assert figures["positives_per_id"] == 2
    assert figures["ids_in_both"] == 0.5


def test_chance_and_floor_are_those_of_the_negatives_an_id_has() -> None:
    figures = region_figures(regions([0, 0, 0, 2, -1]), regions([0, 1, -1]), targets([0, 1], [2]), 0.5)
    negatives = [5 + 3 - 3 - 1, 5 + 3 - 1]
    assert figures["contrast_chance"] == pytest.approx(sum(math.log(1 + n) for n in negatives) / 2)
    assert figures["contrast_floor"] == pytest.approx(sum(math.log(1 + n * math.exp(-2)) for n in negatives) / 2)


def test_the_iou_is_of_the_places_with_their_own_proposals() -> None:
    boxes = [[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30], [0, 0, 10, 10]]
    figures = region_figures(regions([0, 1, 1, -1], boxes), regions([-1]), targets([0, 1]), 0.5)
    assert figures["box_iou"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_without_places_only_counts_are_left() -> None:
    figures = region_figures(regions([-1, -1]), regions([-1]), targets([], [0]), 0.5)
    assert set(figures) == {"proposals_per_image", "ids_per_image", "positives_per_image", "feature_std"}
    assert figures["positives_per_image"] == 0


def test_equal_embeddings_have_no_spread_and_the_detectors_own_figures_are_passed_on() -> None:
    alike = regions([0, 0], figures={"zero_distances": torch.tensor(0.25)})
    alike.embeddings = torch.tensor([[1.0, 2, 2, 0], [2, 4, 4, 0]])
    figures = region_figures(alike, regions([0]), targets([0]), 0.5)
    assert figures["feature_std"] == pytest.approx(0, abs=1e-6)
    assert figures["zero_distances"] == 0.25
