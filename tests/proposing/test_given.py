"""Somebody's boxes are read from COCO JSON or COCO results, for the images they were made for and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfdet.data.listing import ListedImage
from selfdet.errors import UserError
from selfdet.proposing.given import read_given

LISTED = [
    ListedImage(1, Path("photos/a.jpg"), "a.jpg"),
    ListedImage(2, Path("photos/deep/a.jpg"), "deep/a.jpg"),
    ListedImage(3, Path("photos/c.jpg"), "c.jpg"),
]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def coco(**change: Any) -> dict[str, Any]:
    boxes = [
        {"id": 1, "image_id": 70, "category_id": 4, "bbox": [1, 2, 3, 4]},
        {"id": 2, "image_id": 90, "category_id": 5, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        {"id": 3, "image_id": 90, "category_id": 5, "bbox": [0, 0, 6, 6], "score": 0.2},
        {"id": 4, "image_id": 90, "category_id": 5, "bbox": [0, 0, 7, 7]},
    ]
    images = [{"id": 90, "file_name": "c.jpg"}, {"id": 70, "file_name": "deep/a.jpg"}, {"id": 1, "file_name": "x.jpg"}]
    return {"images": images, "annotations": boxes, **change}


def test_images_of_coco_json_are_matched_by_name_whatever_their_ids(tmp_path: Path) -> None:
    given = read_given(write(tmp_path / "boxes.json", coco()), LISTED)
    assert {number: boxes.boxes.tolist() for number, boxes in given.items()} == {
        1: [],
        2: [[1, 2, 4, 6]],
        3: [[0, 0, 6, 6], [0, 0, 7, 7]],
    }
    assert given[3].scores is None


def test_results_are_matched_by_id_and_the_best_come_first(tmp_path: Path) -> None:
    rows = [
        {"image_id": 3, "category_id": 1, "bbox": [0, 0, 2, 2], "score": score} for score in (0.25, 0.75, 0.25, 0.5)
    ]
    rows[2]["bbox"] = [1, 1, 2, 2]
    given = read_given(write(tmp_path / "results.json", rows), LISTED)[3]
    assert given.scores is not None
    assert given.scores.tolist() == [0.75, 0.5, 0.25, 0.25]
    assert given.boxes.tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 3, 3]]


STRANGER = {"id": 9, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (coco(annotations=[STRANGER]), "boxes for 1 images that are not in --images: x.jpg"),
        ([{**STRANGER, "image_id": 4}], "not in --images: id 4"),
        ([{"bbox": [0, 0, 1, 1]}], 'box number 0 has no "image_id"'),
        ([{**STRANGER, "bbox": [0, 0, 1]}], 'box number 0 has no "bbox" of four numbers'),
        ([[0, 0, 1, 1]], "not of COCO results"),
        ({"images": []}, 'no list "annotations"'),
        ("text", "is not COCO"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, content: Any, told: str) -> None:
    file = write(tmp_path / "boxes.json", content)
    with pytest.raises(UserError, match=told) as caught:
        read_given(file, LISTED)
    assert str(file) in str(caught.value)


def test_what_is_no_file_or_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text("[{")
    for file, told in [("boxes.json", "is not JSON"), ("absent.json", "does not exist"), (".", "is a folder")]:
        with pytest.raises(UserError, match=told):
            read_given(tmp_path / file, LISTED)
