"""Generated scenes are reproducible, and their labels say exactly what is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from selfdet.data.labels import load_labels, read_sample
from selfdet.data.scene import draw_scene
from selfdet.data.shapes import KINDS
from selfdet.data.synthetic import make_scenes
from selfdet.errors import UserError

COUNT = 40


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"), count=COUNT, size=128, seed=3)


def read(file: Path) -> dict[str, Any]:
    labels: dict[str, Any] = json.loads(file.read_text())
    return labels


def decode(annotation: dict[str, Any]) -> np.ndarray:
    segmentation = annotation["segmentation"]
    mask: np.ndarray = coco_mask.decode(coco_mask.frPyObjects(segmentation, *segmentation["size"])).astype(bool)
    return mask


def test_every_image_named_in_the_labels_exists_and_has_the_stated_size(scenes: Path) -> None:
    images = read(scenes)["images"]
    assert len(images) == COUNT
    for image in images:
        with Image.open(scenes.parent / "images" / image["file_name"]) as file:
            assert file.size == (image["width"], image["height"]) == (128, 128)


def test_boxes_are_tight_around_the_masks_and_areas_count_their_pixels(scenes: Path) -> None:
    annotations = read(scenes)["annotations"]
    assert len(annotations) > COUNT
    for annotation in annotations:
        mask = decode(annotation)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == box
        assert annotation["area"] == mask.sum() >= 16


def test_scenes_are_read_like_any_coco_data_set(scenes: Path) -> None:
    labels = load_labels(scenes, images=None)
    annotations = read(scenes)["annotations"]
    assert len(labels) == COUNT
    assert sum(labels.dropped.values()) == 0
    for record in labels.records[:5]:
        sample = read_sample(record, with_masks=True)
        own = [a for a in annotations if a["image_id"] == record.image_id]
        assert sample.image.shape == (3, 128, 128)
        assert sample.boxes[:, 2:].sub(sample.boxes[:, :2]).tolist() == [a["bbox"][2:] for a in own]
        assert sample.masks is not None
        assert sample.masks.flatten(1).sum(dim=1).tolist() == [a["area"] for a in own]


def test_masks_come_back_from_the_label_file_to_the_pixel(scenes: Path) -> None:
    annotations = read(scenes)["annotations"]
    for record in load_labels(scenes).records:
        masks = read_sample(record, with_masks=True).masks
        runs = [a["segmentation"]["counts"] for a in annotations if a["image_id"] == record.image_id]
        expected = [np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(128, 128).T for counts in runs]
        assert masks is not None
        np.testing.assert_array_equal(masks.numpy(), np.array(expected, bool).reshape(-1, 128, 128))


def test_a_pixel_belongs_to_one_object_at_most(scenes: Path) -> None:
    labels = read(scenes)
    for image in labels["images"]:
        masks = [decode(a) for a in labels["annotations"] if a["image_id"] == image["id"]]
        if masks:
            assert np.sum(masks, axis=0).max() == 1


def test_masks_end_where_the_picture_changes(scenes: Path) -> None:
    """Over all objects, the picture's steps are largest across the mask's edge, not a pixel beside it."""
    labels = read(scenes)
    names = {image["id"]: image["file_name"] for image in labels["images"]}
    steps = np.zeros((2, 7))
    for annotation in labels["annotations"]:
        picture = np.asarray(Image.open(scenes.parent / "images" / names[annotation["image_id"]]).convert("L"), float)
        mask = decode(annotation)
        for axis in (0, 1):
            edge = np.diff(mask.astype(int), axis=axis) != 0
            step = np.abs(np.diff(picture, axis=axis))
            for shift in range(-3, 4):
                steps[axis, shift + 3] += step[np.roll(edge, shift, axis=axis)].sum()
    assert steps.argmax(axis=1).tolist() == [3, 3]
    assert (steps[:, 3] > 1.3 * steps[:, [2, 4]].max(axis=1)).all()


def test_scenes_vary_in_class_number_and_size_and_some_are_empty(scenes: Path) -> None:
    labels = read(scenes)
    assert [c["name"] for c in labels["categories"]] == [kind.name for kind in KINDS[:4]]
    assert {a["category_id"] for a in labels["annotations"]} == {1, 2, 3, 4}
    counts = [sum(a["image_id"] == image["id"] for a in labels["annotations"]) for image in labels["images"]]
    assert min(counts) == 0
    assert max(counts) >= 6
    extents = [max(a["bbox"][2:]) for a in labels["annotations"]]
    assert max(extents) > 6 * min(extents)


def test_the_same_arguments_write_the_same_bytes(scenes: Path, tmp_path: Path) -> None:
    again = make_scenes(tmp_path, count=3, size=128, seed=3)
    for image in read(again)["images"]:
        name = Path("images") / image["file_name"]
        assert (tmp_path / name).read_bytes() == (scenes.parent / name).read_bytes()
    first = [a for a in read(scenes)["annotations"] if a["image_id"] <= 3]
    assert read(again)["annotations"] == first


def test_splits_and_seeds_give_other_scenes_side_by_side(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("val", 0), ("other", 1)):
        make_scenes(tmp_path, count=1, size=64, seed=seed, split=split)
    files = sorted((tmp_path / "images").iterdir())
    assert [file.name for file in files] == ["other_00000.jpg", "train_00000.jpg", "val_00000.jpg"]
    assert len({file.read_bytes() for file in files}) == 3


@pytest.mark.parametrize("size", [32, 75])
def test_small_and_odd_sizes_and_all_classes_work(size: int) -> None:
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, size=size, classes=len(KINDS), max_objects=4) for _ in range(30)]
    assert all(scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8 for scene in scenes)
    assert {label for scene in scenes for label in scene.labels} == set(range(len(KINDS)))
    assert all(len(scene.labels) == len(scene.masks) <= 4 for scene in scenes)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 8}, {"classes": 99}, {"max_objects": 0}, {"seed": -1}])
def test_impossible_requests_are_refused_in_one_line(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        make_scenes(tmp_path / "none", **{"count": 1, **wrong})
    assert not (tmp_path / "none").exists()
