"""Labels go from format to format and come back as they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.odd_images import pattern

from selfdet.data.conversion import write_coco, write_voc, write_yolo
from selfdet.data.labels import Labels, load_labels

WIDTH, HEIGHT = 61, 47


def write(root: Path, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("a.jpg", "sub/a.jpg")) -> Labels:
    """COCO labels of a cat (9), a dog (2) and an emu (5) on two images."""
    for number, name in enumerate(names):
        file = root / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pattern(number, WIDTH, HEIGHT).save(file)
    images = [
        {"id": 10 + number, "file_name": name, "width": WIDTH, "height": HEIGHT} for number, name in enumerate(names)
    ]
    categories = [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 5, "name": "emu"}]
    entries = [{"id": place, "image_id": 10, "iscrowd": 0, **entry} for place, entry in enumerate(annotations, start=1)]
    coco = {"images": images, "annotations": entries, "categories": categories}
    (root / "labels.json").write_text(json.dumps(coco))
    return load_labels(root / "labels.json", root / "photos")


BOXES = [
    {"bbox": [1.2345, 2.3456, 30.1, 20.987], "category_id": 9},
    {"bbox": [0, 0, WIDTH, HEIGHT], "category_id": 2},
    {"bbox": [60.25, 46.125, 0.75, 0.875], "category_id": 9, "image_id": 11},
]


def table(labels: Labels) -> list[tuple[bytes, str, list[float]]]:
    """Image content, class and box of every object, crowds left out."""
    return [
        (record.path.read_bytes(), labels.classes[label], box)
        for record in labels.records
        for label, box in zip(record.labels.tolist(), record.boxes.tolist())
    ]


def same(one: Labels, other: Labels) -> None:
    left, right = sorted(table(one)), sorted(table(other))
    assert [row[:2] for row in left] == [row[:2] for row in right]
    np.testing.assert_allclose([row[2] for row in left], [row[2] for row in right], atol=1e-3)


def test_boxes_and_classes_survive_coco_voc_yolo_coco(tmp_path: Path) -> None:
    coco = write(tmp_path, BOXES)
    for folder in ("voc", "yolo", "coco"):
        (tmp_path / folder).mkdir()
    write_voc({"train": coco}, tmp_path / "voc")
    voc = load_labels(tmp_path / "voc/ImageSets/Main/train.txt")
    same(coco, voc)
    write_yolo({"train": voc}, tmp_path / "yolo")
    yolo = load_labels(tmp_path / "yolo/data.yaml")
    same(coco, yolo)
    write_coco({"train": yolo}, tmp_path / "coco")
    again = load_labels(tmp_path / "coco/train.json", tmp_path / "yolo/images/train")
    same(coco, again)
    assert again.classes == ["cat", "dog"]  # VOC forgot the emu


def test_a_moved_yolo_data_set_is_still_found(tmp_path: Path) -> None:
    labels = write(tmp_path, BOXES)
    (tmp_path / "yolo").mkdir()
    write_yolo({"train": labels}, tmp_path / "yolo")
    (tmp_path / "yolo").rename(tmp_path / "elsewhere")
    same(labels, load_labels(tmp_path / "elsewhere/data.yaml"))


def test_crowds_are_difficult_in_voc_and_counted_in_yolo(tmp_path: Path) -> None:
    crowd = {**BOXES[0], "iscrowd": 1}
    labels = write(tmp_path, [crowd, BOXES[1]])
    for folder in ("voc", "yolo", "coco"):
        (tmp_path / folder).mkdir()
    write_voc({"val": labels}, tmp_path / "voc")
    voc = load_labels(tmp_path / "voc")
    assert [entry["iscrowd"] for entry in voc.coco["annotations"]] == [1, 0]
    lost = write_yolo({"val": voc}, tmp_path / "yolo")
    assert +lost == {"crowds and difficult objects (YOLO has no word for them)": 1}
    assert len(load_labels(tmp_path / "yolo/data.yaml").coco["annotations"]) == 1
    write_coco({"val": voc}, tmp_path / "coco")
    again = load_labels(tmp_path / "coco/val.json", tmp_path / "voc/JPEGImages")
    assert [entry["iscrowd"] for entry in again.coco["annotations"]] == [1, 0]


@pytest.mark.parametrize(
    ("writer", "lost"),
    [
        (write_voc, {"masks (VOC's boxes have none)": 1, "classes without a box": 2}),
        (write_yolo, {"masks (boxes are written)": 1}),
        (write_coco, {}),
    ],
)
def test_what_a_format_cannot_hold_is_counted(
    tmp_path: Path, writer: Callable[[Mapping[str, Labels], Path], Mapping[str, int]], lost: dict[str, int]
) -> None:
    masked = {**BOXES[0], "segmentation": [[2, 3, 20, 3, 20, 15]]}
    outside = {"bbox": [100, 100, 5, 5], "category_id": 9}
    labels = write(tmp_path, [masked, outside, {"bbox": [1, 1, 0, 3], "category_id": 2}])
    (tmp_path / "out").mkdir()
    found = {
        reason.split(" (VOC names")[0]: count for reason, count in writer({"train": labels}, tmp_path / "out").items()
    }
    assert {reason: count for reason, count in found.items() if count} == {
        "boxes without area, or outside of their image": 2,
        **lost,
    }


def test_masks_stay_in_coco(tmp_path: Path) -> None:
    labels = write(tmp_path, [{**BOXES[0], "segmentation": [[2, 3, 20, 3, 20, 15]]}])
    (tmp_path / "out").mkdir()
    write_coco({"train": labels}, tmp_path / "out")
    again = load_labels(tmp_path / "out/train.json", tmp_path / "photos")
    assert again.records[0].segmentations == [[[2, 3, 20, 3, 20, 15]]]
    assert again.category_ids == [2, 5, 9]


def test_boxes_over_the_edge_are_cut(tmp_path: Path) -> None:
    labels = write(tmp_path, [{"bbox": [-5, 40, 10, 20], "category_id": 9}])
    (tmp_path / "out").mkdir()
    write_yolo({"train": labels}, tmp_path / "out")
    row = (tmp_path / "out/labels/train/a.txt").read_text().split()
    assert row[0] == "2"
    np.testing.assert_allclose(
        list(map(float, row[1:])), [2.5 / WIDTH, 43.5 / HEIGHT, 5 / WIDTH, 7 / HEIGHT], rtol=1e-6
    )


def test_two_splits_share_their_classes_and_images_of_one_name_stay_apart(tmp_path: Path) -> None:
    train = write(tmp_path / "one", BOXES, ("a.jpg", "a.png"))
    val = write(tmp_path / "two", BOXES[:1])
    for folder in ("voc", "yolo"):
        (tmp_path / folder).mkdir()
    write_yolo({"train": train, "val": val}, tmp_path / "yolo")
    same(train, load_labels(f"{tmp_path}/yolo/data.yaml:train"))
    same(val, load_labels(f"{tmp_path}/yolo/data.yaml:val"))
    write_voc({"train": train, "val": val}, tmp_path / "voc")
    same(train, load_labels(tmp_path / "voc/ImageSets/Main/train.txt"))
    same(val, load_labels(tmp_path / "voc/ImageSets/Main/val.txt"))


def test_labels_of_the_picture_before_its_exif_turn_are_not_written_for_yolo(tmp_path: Path) -> None:
    labels = write(tmp_path, BOXES)
    exif = Image.Exif()
    exif[0x0112] = 6
    pattern(0, WIDTH, HEIGHT).save(tmp_path / "photos/a.jpg", exif=exif)
    (tmp_path / "photos/sub/a.jpg").write_bytes(b"")
    (tmp_path / "out").mkdir()
    assert sorted((+write_yolo({"train": labels}, tmp_path / "out")).values()) == [1, 1]
    assert not any((tmp_path / "out/labels/train").iterdir())
