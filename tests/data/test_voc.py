"""Pascal VOC folders become the same labels as COCO JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfdet.data.labels import load_labels, read_sample
from selfdet.errors import UserError

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>
<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write(root: Path, name: str, *objects: tuple[str, tuple[float, ...], int], filename: str | None = None) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{name}.jpg")
    inside = "".join(OBJECT.format(name=kind, box=box, difficult=hard) for kind, box, hard in objects)
    said = f"{name}.jpg" if filename is None else filename
    (root / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><filename>{said}</filename><size><width>40</width><height>30</height></size>{inside}</annotation>"
    )


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    write(tmp_path, "a", ("dog", (1, 1, 40, 30), 0), ("cat", (11, 6, 20, 15), 1))
    write(tmp_path, "b", ("cat", (2.5, 3, 10, 12), 0))
    write(tmp_path, "c")
    (tmp_path / "ImageSets/Main/train.txt").write_text("b\na\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("c\n")
    return tmp_path


def test_a_split_is_its_images_with_the_classes_of_the_whole_data_set(voc: Path) -> None:
    labels = load_labels(voc / "ImageSets/Main/val.txt")
    assert labels.classes == ["cat", "dog"]
    assert [record.path for record in labels.records] == [voc / "JPEGImages/c.jpg"]
    assert [record.image_id for record in labels.records] == [3]
    assert [record.image_id for record in load_labels(voc / "ImageSets/Main/train.txt").records] == [2, 1]
    assert len(load_labels(voc)) == len(load_labels(voc / "Annotations")) == 3


def test_corners_that_count_from_one_become_pixels_from_nought(voc: Path) -> None:
    second, first = load_labels(voc / "ImageSets/Main/train.txt").records
    np.testing.assert_array_equal(first.boxes, [[0, 0, 40, 30]])
    np.testing.assert_array_equal(second.boxes, [[1.5, 2, 10, 12]])
    assert read_sample(first).labels.tolist() == [1]


def test_difficult_objects_train_nothing_and_stay_for_evaluation(voc: Path) -> None:
    labels = load_labels(voc)
    assert [len(record.boxes) for record in labels.records] == [1, 1, 0]
    hard = [entry for entry in labels.coco["annotations"] if entry["iscrowd"]]
    assert [(entry["image_id"], entry["bbox"]) for entry in hard] == [(1, [10, 5, 10, 10])]


def test_a_list_of_a_class_leaves_out_the_images_without_it(voc: Path) -> None:
    (voc / "ImageSets/Main/dog_train.txt").write_text("a  1\nb -1\nc  0\n")
    assert [record.path.stem for record in load_labels(voc / "ImageSets/Main/dog_train.txt").records] == ["a", "c"]


def test_a_file_name_of_another_image_is_not_believed(tmp_path: Path) -> None:
    write(tmp_path, "a", ("dog", (1, 1, 9, 9), 0), filename="/home/somebody/pictures/0001.jpg")
    assert load_labels(tmp_path).records[0].path == tmp_path / "JPEGImages/a.jpg"


def test_images_may_be_elsewhere(voc: Path, tmp_path: Path) -> None:
    (voc / "JPEGImages").rename(voc / "photos")
    with pytest.raises(UserError, match="JPEGImages"):
        load_labels(voc)
    assert load_labels(voc, voc / "photos").records[0].path == voc / "photos/a.jpg"


def test_any_changed_file_changes_the_hash(voc: Path) -> None:
    before = load_labels(voc / "ImageSets/Main/train.txt").hash
    assert load_labels(voc / "ImageSets/Main/train.txt").hash == before
    write(voc, "b", ("cat", (2, 3, 10, 12), 0))
    assert load_labels(voc / "ImageSets/Main/train.txt").hash != before


def test_what_is_wrong_is_named(voc: Path) -> None:
    (voc / "ImageSets/Main/odd.txt").write_text("a\nd\n")
    with pytest.raises(UserError, match=r"odd\.txt names d, and .*Annotations has no d\.xml"):
        load_labels(voc / "ImageSets/Main/odd.txt")
    (voc / "ImageSets/Main/empty.txt").write_text("\n")
    with pytest.raises(UserError, match="names no image"):
        load_labels(voc / "ImageSets/Main/empty.txt")
    write(voc, "c", ("cat", ("x", 3, 10, 12), 0))
    with pytest.raises(UserError, match=r"c\.xml has a cat without four numbers"):
        load_labels(voc)
    (voc / "Annotations/c.xml").write_text("<annotation><object>")
    with pytest.raises(UserError, match=r"c\.xml is not XML"):
        load_labels(voc)
    write(voc, "c", ("", (1, 1, 2, 2), 0))
    with pytest.raises(UserError, match="without a name"):
        load_labels(voc)
