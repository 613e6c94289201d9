"""Labels of pixels: COCO's objects are painted as stated, and masks that don't fit are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from masked_scenes import voc_layout
from selfdet.data.class_maps import write_class_map
from selfdet.data.mask_labels import class_counts, load_mask_labels
from selfdet.errors import UserError


def square(number: int, category: int, x: int, y: int, side: int, **more: object) -> dict[str, object]:
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    about = {"id": number, "image_id": 1, "category_id": category, "bbox": [x, y, side, side], "iscrowd": 0}
    return {**about, "segmentation": [corners], **more}


def coco(folder: Path, annotations: list[dict[str, object]]) -> Path:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "a.jpg")
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "bus"}]
    image = {"id": 1, "file_name": "a.jpg", "width": 30, "height": 20}
    content = {"images": [image], "categories": categories, "annotations": annotations}
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


def test_polygons_are_painted_small_over_large_and_what_is_not_known_is_ignored(tmp_path: Path) -> None:
    crowd = {"size": [20, 30], "counts": [0, 40, 560]}
    file = coco(
        tmp_path,
        [
            square(1, 7, 10, 4, 4),
            square(2, 3, 8, 2, 10),
            square(3, 3, 22, 12, 6, segmentation=None),
            square(4, 7, 0, 0, 2, iscrowd=1, segmentation=crowd),
        ],
    )
    labels = load_mask_labels(file)
    assert labels.classes == ["background", "bus", "cat"]
    classes = labels.read(labels.records[0]).classes
    expected = torch.zeros(20, 30, dtype=torch.uint8)
    expected[:, :2] = 255
    expected[12:18, 22:28] = 255
    expected[2:12, 8:18] = 1
    expected[4:8, 10:14] = 2
    assert torch.equal(classes, expected)
    assert class_counts(labels) == {"background": 1, "bus": 1, "cat": 1}


def test_coco_without_a_segmentation_holds_no_masks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no object of .* has a segmentation"):
        load_mask_labels(coco(tmp_path, [square(1, 7, 2, 2, 4, segmentation=None)]))


def test_a_category_called_background_is_refused(tmp_path: Path) -> None:
    file = coco(tmp_path, [square(1, 7, 2, 2, 4)])
    file.write_text(file.read_text().replace('"cat"', '"background"'))
    with pytest.raises(UserError, match="has a category 'background'"):
        load_mask_labels(file)


def test_the_scenes_are_the_same_from_run_lengths_and_from_pngs(scenes: Path, tmp_path: Path) -> None:
    voc = load_mask_labels(voc_layout(scenes, tmp_path / "voc") / "ImageSets" / "Segmentation" / "train.txt")
    own = load_mask_labels(scenes / "train.json")
    assert voc.classes == own.classes
    for one, other in zip(voc.records, own.records, strict=True):
        assert torch.equal(voc.read(one).classes, own.read(other).classes)
    assert class_counts(voc) == class_counts(own)


def masks(folder: Path, *numbers: int, size: tuple[int, int] = (4, 6)) -> Path:
    (folder / "masks").mkdir(parents=True)
    (folder / "images").mkdir()
    for place, number in enumerate(numbers):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "images" / f"{place}.jpg")
        write_class_map(folder / "masks" / f"{place}.png", torch.full(size, number, dtype=torch.uint8))
    return folder / "masks"


def test_a_mask_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mask .*0\.png is 3×4 px, its image .*0\.jpg 6×4"):
        load_mask_labels(masks(tmp_path, 0, 1, size=(4, 3)))


def test_a_mask_of_the_stored_side_of_a_turned_photograph_fits(tmp_path: Path) -> None:
    folder = masks(tmp_path, 0, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "images" / "0.jpg", exif=exif)
    labels = load_mask_labels(folder)
    item = labels.read(labels.records[0])
    assert item.size == tuple(item.classes.shape) == (4, 6)


@pytest.mark.parametrize(("numbers", "said"), [((0, 0), "only '0'"), ((255, 255), "nothing but ignored")])
def test_masks_without_a_foreground_are_refused(tmp_path: Path, numbers: tuple[int, int], said: str) -> None:
    with pytest.raises(UserError, match=f"{said}.*no foreground"):
        class_counts(load_mask_labels(masks(tmp_path, *numbers)))


def test_masks_that_cannot_be_read_are_not_called_empty(tmp_path: Path) -> None:
    folder = masks(tmp_path, 0, 1)
    (folder / "0.png").write_bytes((tmp_path / "images" / "0.jpg").read_bytes())
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"none of the 2 masks .*0\.png"):
        class_counts(load_mask_labels(folder))


def test_other_labels_are_put_into_the_order_that_was_learned(tmp_path: Path) -> None:
    folder = masks(tmp_path, 0, 1, 2)
    (tmp_path / "classes.json").write_text('["sea", "sky", "hill"]')
    labels = load_mask_labels(folder).in_order_of(["hill", "sea"])
    assert labels.left_out == ("sky",)
    assert [int(labels.read(record).classes[0, 0]) for record in labels.records] == [1, 255, 0]
    load_mask_labels(folder).in_order_of(["hill"]).check_measurable()
    with pytest.raises(UserError, match=r"every pixel of the masks .* is ignored"):
        load_mask_labels(folder).in_order_of(["hill"]).subset([1, 2]).check_measurable()
    with pytest.raises(UserError, match="has no class 'sand'"):
        load_mask_labels(folder).in_order_of(["sand", "sky"])


def test_numbered_classes_are_taken_by_number_and_too_many_are_refused(tmp_path: Path) -> None:
    labels = load_mask_labels(masks(tmp_path, 0, 1))
    assert labels.in_order_of(["sea", "sky", "hill"]).classes == ["sea", "sky", "hill"]
    with pytest.raises(UserError, match="has the class number 1, where 1 classes are known"):
        labels.in_order_of(["sea"])


def test_a_part_of_the_labels_can_be_written_and_read_again(scenes: Path, tmp_path: Path) -> None:
    voc = load_mask_labels(voc_layout(scenes, tmp_path / "voc") / "ImageSets" / "Segmentation" / "train.txt")
    for name, labels, images in (("voc", voc, None), ("coco", load_mask_labels(scenes / "train.json"), scenes)):
        few = labels.subset([record.image_id for record in labels.records[2:5]])
        file = tmp_path / f"{name}.json"
        few.write(file, lambda path, text: path.write_text(text) and None)
        again = load_mask_labels(file, None if images is None else images / "images")
        assert again.classes == few.classes
        for one, other in zip(again.records, few.records, strict=True):
            assert one.image_id == other.image_id
            assert torch.equal(again.read(one).classes, few.read(other).classes)
    damaged = tmp_path / "voc.json"
    for content in (damaged.read_text()[:-9], damaged.read_text().replace('"image"', '"pixels"')):
        damaged.write_text(content)
        with pytest.raises(UserError, match="is damaged"):
            load_mask_labels(damaged)
