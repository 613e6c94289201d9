"""Masks are found where Pascal VOC, Cityscapes and plain folders keep them, each with its image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from masked_scenes import voc_layout
from selfdet.data.mask_formats import CITYSCAPES, VOC_CLASSES, find_masks
from selfdet.data.mask_labels import load_mask_labels
from selfdet.errors import UserError


def picture(path: Path, numbers: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 6, 3), np.uint8) if numbers is None else numbers).save(path)


def plain(folder: Path, names: object = None) -> Path:
    for stem, number in (("a", 1), ("b", 2)):
        picture(folder / "images" / f"{stem}.jpg")
        picture(folder / "masks" / f"{stem}.png", np.full((4, 6), number, np.uint8))
    if names is not None:
        (folder / "classes.json").write_text(json.dumps(names))
    return folder / "masks"


def test_a_voc_list_names_its_images_and_a_voc_folder_all(scenes: Path, tmp_path: Path) -> None:
    root = voc_layout(scenes, tmp_path / "voc")
    train = find_masks(root / "ImageSets" / "Segmentation" / "train.txt", None)
    assert len(train.pairs) == 10
    assert all(image.stem == mask.stem and image.parent.name == "JPEGImages" for image, mask in train.pairs)
    assert len(find_masks(root, None).pairs) == 15
    assert train.classes is not None
    assert train.classes[0] == "background"
    (root / "classes.json").unlink()
    assert find_masks(root, None).classes == VOC_CLASSES
    assert len(VOC_CLASSES) == 21
    (root / "SegmentationClass" / "._train_00001.png").write_bytes(b"what macOS lays beside a file")
    assert len(find_masks(root, None).pairs) == 15
    (root / "SegmentationClass" / "train_00003.png").unlink()
    with pytest.raises(UserError, match=r"train_00003\.png does not exist"):
        find_masks(root / "ImageSets" / "Segmentation" / "train.txt", None)


def test_cityscapes_label_ids_become_its_nineteen_classes(tmp_path: Path) -> None:
    numbers = np.array([[7, 26, 0, 3], [33, 24, 255, 18]], np.uint8)
    picture(tmp_path / "leftImg8bit/train/ulm/ulm_000_leftImg8bit.png", np.zeros((2, 4, 3), np.uint8))
    picture(tmp_path / "gtFine/train/ulm/ulm_000_gtFine_labelIds.png", numbers)
    picture(tmp_path / "gtFine/train/ulm/ulm_000_gtFine_instanceIds.png", numbers)
    labels = load_mask_labels(tmp_path / "gtFine" / "train")
    assert labels.classes == list(CITYSCAPES.values())
    assert len(labels.classes) == 19
    item = labels.read(labels.records[0])
    assert item.classes.tolist() == [[0, 13, 255, 255], [18, 11, 255, 255]]
    picture(tmp_path / "gtFine/train/ulm/ulm_000_gtFine_labelTrainIds.png", np.array([[0, 13, 255, 255]] * 2, np.uint8))
    ready = load_mask_labels(tmp_path / "gtFine" / "train")
    assert torch.equal(ready.read(ready.records[0]).classes[0], item.classes[0])
    picture(tmp_path / "gtFine/val/x/x_gtFine_labelIds.png", np.full((2, 4), 40, np.uint8))
    picture(tmp_path / "leftImg8bit/val/x/x_leftImg8bit.png", np.zeros((2, 4, 3), np.uint8))
    val = load_mask_labels(tmp_path / "gtFine" / "val")
    with pytest.raises(UserError, match="unknown class number 40"):
        val.read(val.records[0])


@pytest.mark.parametrize("names", [["sky", "hill", "sea"], {"0": "sky", "2": "sea", "1": "hill"}])
def test_a_plain_folder_has_its_names_from_a_file_beside_it(tmp_path: Path, names: object) -> None:
    labels = load_mask_labels(plain(tmp_path, names))
    assert labels.classes == ["sky", "hill", "sea"]
    assert [record.path.name for record in labels.records] == ["a.jpg", "b.jpg"]


def test_classes_that_nobody_names_are_numbered(tmp_path: Path) -> None:
    assert load_mask_labels(plain(tmp_path)).classes == ["0", "1", "2"]


def test_images_may_lie_among_the_masks_or_in_a_folder_that_is_named(tmp_path: Path) -> None:
    masks = plain(tmp_path)
    (tmp_path / "images").rename(tmp_path / "photos")
    with pytest.raises(UserError, match=r"a\.png and 1 more have no image of that name"):
        find_masks(masks, None)
    assert len(find_masks(masks, tmp_path / "photos").pairs) == 2
    for file in (tmp_path / "photos").iterdir():
        file.rename(masks / file.name)
    assert len(find_masks(masks, None).pairs) == 2


@pytest.mark.parametrize(
    ("names", "said"),
    [({"1": "sky"}, r"does not number its classes 0…0"), ([1, 2], "no list of names"), (["a", "a"], "each once")],
)
def test_names_that_say_nothing_are_refused(tmp_path: Path, names: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_masks(plain(tmp_path, names), None)


@pytest.mark.parametrize("content", [b"[" * 10**5, b'{"0": "a", "0": "b"}', b"\xff"])
def test_names_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes) -> None:
    masks = plain(tmp_path)
    (tmp_path / "classes.json").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        find_masks(masks, None)


def test_a_mask_that_could_be_of_two_images_is_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        picture(tmp_path / "mixed" / folder / "1.jpg")
        picture(tmp_path / "mixed" / folder / "1.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(UserError, match="have one name"):
        find_masks(tmp_path / "mixed", None)


def test_an_image_has_one_mask_which_is_another_file(tmp_path: Path) -> None:
    masks = plain(tmp_path)
    with pytest.raises(UserError, match=r"a\.png is its own image"):
        find_masks(masks, masks)
    picture(masks / "more" / "b.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(UserError, match="are both masks of"):
        find_masks(masks, None)


def test_images_without_a_mask_are_counted_and_endings_may_be_capitals(tmp_path: Path) -> None:
    masks = plain(tmp_path)
    (masks / "a.png").rename(masks / "a.PNG")
    picture(tmp_path / "images" / "c.jpg")
    labels = load_mask_labels(masks)
    assert [record.path.stem for record in labels.records] == ["a", "b"]
    assert labels.unmasked == (tmp_path / "images" / "c.jpg",)


def test_cityscapes_train_ids_of_some_images_do_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"leftImg8bit/{name}_leftImg8bit.png")
        picture(tmp_path / f"gtFine/{name}_gtFine_labelIds.png", np.full((4, 6), 7, np.uint8))
    picture(tmp_path / "gtFine/a_gtFine_labelTrainIds.png", np.zeros((4, 6), np.uint8))
    labels = load_mask_labels(tmp_path)
    assert [int(labels.read(record).classes.max()) for record in labels.records] == [0, 0]
    (tmp_path / "gtFine/a_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError, match="b has no labelTrainIds"):
        load_mask_labels(tmp_path)


def test_a_voc_list_is_a_text_with_names(scenes: Path, tmp_path: Path) -> None:
    file = voc_layout(scenes, tmp_path / "voc") / "ImageSets" / "Segmentation" / "train.txt"
    for content, said in ((b"\n", "names no image"), (b"\xff\xfe", "is no list of images")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=said):
            find_masks(file, None)


def test_what_holds_no_masks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no PNG mask in"):
        find_masks(tmp_path / "empty", None)
    with pytest.raises(UserError, match="does not exist"):
        find_masks(tmp_path / "absent", None)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="holds no masks"):
        find_masks(tmp_path / "a.txt", None)
