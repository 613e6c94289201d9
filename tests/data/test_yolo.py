"""YOLO data sets become the same labels as COCO JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfdet.data.labels import load_labels, read_sample
from selfdet.errors import UserError


def write(root: Path, split: str, name: str, rows: str | None) -> None:
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(root / "images" / split / f"{name}.jpg")
    if rows is not None:
        (root / "labels" / split / f"{name}.txt").write_text(rows)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    write(tmp_path, "train", "a", "1 0.5 0.5 0.5 1.0\n0 0.25 0.5 0.1 0.2\n")
    write(tmp_path, "train", "b", None)
    write(tmp_path, "val", "c", "0 0.1 0.1 0.5 0.1 0.5 0.6\n")
    file = tmp_path / "data.yaml"
    file.write_text("path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    return file


def test_rows_become_boxes_in_pixels(yolo: Path) -> None:
    labels = load_labels(f"{yolo}:train")
    assert labels.classes == ["cat", "dog"]
    first, second = labels.records
    np.testing.assert_allclose(first.boxes, [[10, 0, 30, 20], [8, 8, 12, 12]], atol=1e-4)
    assert first.labels.tolist() == [1, 0]
    assert (first.width, first.height) == (40, 20)
    assert len(second.boxes) == 0
    assert second.path.name == "b.jpg"


def test_polygons_become_boxes_with_masks(yolo: Path) -> None:
    (record,) = load_labels(f"{yolo}:val").records
    np.testing.assert_allclose(record.boxes, [[4, 2, 20, 12]], atol=1e-4)
    masks = read_sample(record, with_masks=True).masks
    assert masks is not None
    assert 60 < int(masks.sum()) < 100  # half of 16 × 10


def test_classes_may_be_numbered_and_a_single_split_needs_no_name(yolo: Path) -> None:
    yolo.write_text("train: [images/train, images/val]\nnames: {0: cat, 1: dog}\n")
    assert [record.path.name for record in load_labels(yolo).records] == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_path_that_starts_beside_the_file_is_found(yolo: Path) -> None:
    yolo.write_text("train: ../images/train\nnames: [cat, dog]\n")
    assert len(load_labels(yolo)) == 2


def test_a_changed_row_changes_the_hash(yolo: Path) -> None:
    before = load_labels(f"{yolo}:train").hash
    write(yolo.parent, "train", "b", "0 0.5 0.5 0.1 0.1\n")
    assert load_labels(f"{yolo}:train").hash != before


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("0 0.5 0.5\n", r"a\.txt, line 1: expected a class and four numbers"),
        ("\n0 0.5 0.5 x 1\n", r"a\.txt, line 2: expected a class"),
        ("2 0.5 0.5 0.1 0.1\n", r"line 1: class 2 of 2"),
        ("0.5 0.5 0.5 0.1 0.1\n", r"line 1: class 0\.5 of 2"),
    ],
)
def test_faulty_rows_are_named(yolo: Path, rows: str, words: str) -> None:
    write(yolo.parent, "train", "a", rows)
    with pytest.raises(UserError, match=words):
        load_labels(f"{yolo}:train")


@pytest.mark.parametrize(
    ("content", "asked", "words"),
    [
        ("train: images/train\nval: images/val\nnames: [cat, dog]", "", "has train, val"),
        ("train: images/train\nnames: [cat, dog]", ":val", "no split 'val'"),
        ("train: images/train", "", 'no "names"'),
        ("train: images/train\nnames: 2", "", '"names" are no list'),
        ("train: images/nowhere\nnames: [cat]", "", "nowhere does not exist"),
        ("names: [", "", "is not YAML"),
        ("names: [cat]", "", "has no split"),
    ],
)
def test_faulty_files_are_named(yolo: Path, content: str, asked: str, words: str) -> None:
    yolo.write_text(content)
    with pytest.raises(UserError, match=words):
        load_labels(f"{yolo}{asked}")
    with pytest.raises(UserError, match="does not exist"):
        load_labels(yolo.with_name("other.yaml"))
