"""Clusters group what looks alike, the same ones each time, and come back from the file as labels or not at all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfdet.data.labels import ImageRecord
from selfdet.errors import UserError
from selfdet.proposing.clusters import Clusters, fit_clusters, read_clusters, with_clusters

ABOUT = {"count": 3, "seed": 0, "backbone": "resnet18", "backbone_hash": "0" * 16, "image_size": 224}


def coco(*numbers: Any, **about: Any) -> dict[str, Any]:
    """A parsed file with a box of each cluster."""
    rows = [{"id": place, "cluster": number} for place, number in enumerate(numbers, start=1)]
    return {"info": {"clusters": {**ABOUT, **about}}, "annotations": rows}


def record(*ids: int) -> ImageRecord:
    boxes = np.array([[place, 0, place + 5, 5] for place in ids], np.float32).reshape(-1, 4)
    return ImageRecord(1, Path("a.png"), 40, 30, boxes, np.zeros(len(ids), np.int64), [None] * len(ids), list(ids))


def test_what_lies_together_gets_one_number_and_the_same_one_again() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 400)
    features = (10 * np.eye(5)[truth] + rng.normal(size=(400, 5))).astype(np.float32)
    numbers = fit_clusters(features, 5, seed=3).predict(features)
    pairs = set(zip(truth.tolist(), numbers.tolist()))
    assert len(pairs) == 5 == len(set(numbers.tolist()))
    np.testing.assert_array_equal(fit_clusters(features, 5, seed=3).predict(features), numbers)


def test_fewer_boxes_than_clusters_and_a_missing_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="2 boxes can't make 3 clusters"):
        fit_clusters(np.zeros((2, 4), np.float32), 3, 0)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UserError, match="clusters need scikit-learn"):
        fit_clusters(np.zeros((4, 4), np.float32), 3, 0)


def test_labels_are_the_clusters_and_boxes_without_one_are_left_out() -> None:
    clustered = with_clusters("boxes.json", [record(1, 2, 3), record()], coco(2, -1, 0))
    assert [each.labels.tolist() for each in clustered] == [[2, 0], []]
    assert clustered[0].annotation_ids == [1, 3]
    assert clustered[0].boxes[:, 0].tolist() == [1, 3]


def test_a_file_without_clusters_says_so() -> None:
    assert read_clusters("boxes.json", {"info": {}}) is None
    assert read_clusters("boxes.json", coco()) == Clusters(**ABOUT)
    with pytest.raises(UserError, match=r"boxes\.json has no clusters"):
        with_clusters("boxes.json", [], {"annotations": []})


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file["info"].update(clusters=[3]),
        lambda file: file["info"]["clusters"].pop("seed"),
        lambda file: file["info"]["clusters"].update(count=0),
        lambda file: file["info"]["clusters"].update(count=10**9),
        lambda file: file["info"]["clusters"].update(count=True),
        lambda file: file["info"]["clusters"].update(backbone=["resnet18"]),
        lambda file: file["info"]["clusters"].update(more=1),
        lambda file: file["annotations"][0].update(cluster=3),
        lambda file: file["annotations"][0].update(cluster=-2),
        lambda file: file["annotations"][0].update(cluster="1"),
        lambda file: file["annotations"][0].update(cluster=float("nan")),
    ],
)
def test_what_contradicts_itself_is_refused_by_the_files_name(change: Callable[[dict[str, Any]], object]) -> None:
    file = coco(1)
    change(file)
    with pytest.raises(UserError, match=r"boxes\.json: .*Run selfdet proposals with --clusters again"):
        with_clusters("boxes.json", [record(1)], file)
