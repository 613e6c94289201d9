"""A file of proposals is COCO JSON, and is read for the images it was made for or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfdet.data.labels import load_labels
from selfdet.data.listing import numbered_images
from selfdet.errors import UserError
from selfdet.proposing.finding import Found
from selfdet.proposing.store import fingerprint, read_found, read_proposals, write_proposals

BOXES = np.array([[1, 2, 6.126, 5], [0, 0, 8, 6]], np.float32)
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three 8 × 6 images."""
    for name in ("a.png", "b.png", "deep/c.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def file(photos: Path) -> Path:
    """Proposals with two boxes for a, none for b; c could not be read."""
    found = {
        1: Found(1, 8, 6, BOXES, np.array([0.75, 0.5], np.float32), fallback="small"),
        2: Found(2, 8, 6),
        3: Found(3, fault="unreadable", reason="truncated"),
    }
    file = photos.parent / "boxes.json"
    write_proposals(file, numbered_images(photos), found, {"settings": {"top_k": 50}})
    return file


def test_the_file_is_coco_json_that_says_where_it_came_from(file: Path, photos: Path) -> None:
    coco = json.loads(file.read_text())
    assert coco["categories"] == [{"id": 1, "name": "object"}]
    assert coco["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 2, 5.13, 3],
        "area": 15.39,
        "iscrowd": 0,
        "rank": 1,
        "score": 0.75,
    }
    assert coco["info"]["settings"] == {"top_k": 50}
    assert coco["info"]["fingerprint"] == fingerprint([("b.png", 8, 6), ("a.png", 8, 6)])
    assert coco["info"]["skipped"]["unreadable"] == ["deep/c.png"]
    counts = coco["info"]["counts"]
    assert (counts["images"], counts["boxes"], counts["unreadable"]) == (2, 2, 1)
    assert counts["images_without_boxes"] == counts["fallback"]["small"] == 1
    assert len(load_labels(file, photos)) == 2


@pytest.mark.parametrize("images", [".", "**/*.png", "list.txt"])
def test_proposals_are_read_however_the_same_images_are_listed(file: Path, photos: Path, images: str) -> None:
    (photos / "list.txt").write_text("b.png\na.png\ndeep/c.png\n")
    records = read_proposals(file, str(photos / images))
    assert [record.path.name for record in records] == ["a.png", "b.png"]
    np.testing.assert_allclose(records[0].boxes, BOXES, atol=0.006)
    assert records[0].labels.tolist() == [0, 0]
    assert records[1].boxes.shape == (0, 4)


def test_answers_come_back_as_they_were_written(file: Path) -> None:
    found = read_found(json.loads(file.read_text()))
    assert sorted(found) == [1, 2]
    np.testing.assert_allclose(found[1].boxes, BOXES, atol=0.006)
    assert found[1].scores is not None
    assert found[1].scores.tolist() == [0.75, 0.5]
    assert found[1].fallback == "small"
    assert found[2].boxes.shape == (0, 4)


def test_boxes_over_the_edge_are_cut_and_those_outside_dropped(file: Path, photos: Path) -> None:
    coco = json.loads(file.read_text())
    coco["annotations"][0]["bbox"] = [-3, 1, 20, 2]
    coco["annotations"][1]["bbox"] = [9, 0, 2, 2]
    file.write_text(json.dumps(coco))
    assert read_proposals(file, photos)[0].boxes.tolist() == [[0, 1, 8, 3]]


def no_info(coco: dict[str, Any]) -> None:
    del coco["info"]


def odd_counts(coco: dict[str, Any]) -> None:
    coco["info"]["counts"]["fallback"] = None


def no_counts(coco: dict[str, Any]) -> None:
    coco["info"]["counts"] = None


def no_boxes(coco: dict[str, Any]) -> None:
    coco["annotations"] = []


def another_size(coco: dict[str, Any]) -> None:
    coco["images"][0]["width"] = 9


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (no_info, "is not a file of selfdet proposals.*--boxes"),
        (odd_counts, "is not a file of selfdet proposals.*--boxes"),
        (no_counts, "is not a file of selfdet proposals.*--boxes"),
        (no_boxes, "holds no boxes"),
        (another_size, "not the one that its boxes were found in"),
    ],
)
def test_a_file_that_was_changed_or_is_empty_is_refused(file: Path, photos: Path, change: Change, told: str) -> None:
    coco = json.loads(file.read_text())
    change(coco)
    file.write_text(json.dumps(coco))
    with pytest.raises(UserError, match=told) as caught:
        read_proposals(file, photos)
    assert str(file) in str(caught.value)


def test_proposals_of_other_images_are_refused(file: Path, photos: Path) -> None:
    Image.new("RGB", (7, 6)).save(photos / "b.png")
    with pytest.raises(UserError, match=r"other images.*b\.png.*7×6 pixels"):
        read_proposals(file, photos)


def test_proposals_for_absent_images_are_refused(file: Path, photos: Path) -> None:
    (photos / "b.png").unlink()
    with pytest.raises(UserError, match=r"1 of the 2 images in .*boxes\.json are not in .*photos: b\.png"):
        read_proposals(file, photos)


def test_images_without_proposals_are_refused_but_not_those_that_had_a_fault(file: Path, photos: Path) -> None:
    assert len(read_proposals(file, photos)) == 2  # c had one
    Image.new("RGB", (8, 6)).save(photos / "d.png")
    with pytest.raises(UserError, match=r"knows nothing of 1 of the images in .*: d\.png"):
        read_proposals(file, photos)
    with pytest.raises(UserError, match="does not exist"):
        read_proposals(photos / "absent.json", photos)
