"""COCO labels mean what COCO means, and a faulty label file is refused in one line that names the fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfdet.data.images import UnreadableImage
from selfdet.data.labels import Labels, load_labels, read_sample
from selfdet.errors import UserError


def coco() -> dict[str, Any]:
    """Three 8 × 6 images: two objects and a crowd, none, one; categories not in the order of their ids."""
    polygon = [[1, 1, 4, 1, 4, 3, 1, 3]]
    return {
        "images": [{"id": key, "file_name": f"{key}.png", "width": 8, "height": 6} for key in (30, 10, 20)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 30, "category_id": 7, "bbox": [1, 1, 3, 2], "segmentation": polygon, "iscrowd": 0},
            {
                "id": 2,
                "image_id": 30,
                "category_id": 2,
                "bbox": [0, 0, 8, 6],
                "segmentation": {"size": [6, 8], "counts": [0, 48]},
                "iscrowd": 1,
            },
            {
                "id": 3,
                "image_id": 30,
                "category_id": 2,
                "bbox": [2, 0, 1, 6],
                "segmentation": {"size": [6, 8], "counts": [12, 6, 30]},
                "iscrowd": 0,
            },
            {"id": 4, "image_id": 20, "category_id": 2, "bbox": [6, 4, 5, 5]},
        ],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write a label file beside the images it names."""

    def write(content: dict[str, Any]) -> Path:
        for image in content["images"]:
            path = tmp_path / image.get("file_name", "none.png")
            if path.parent == tmp_path:
                Image.new("RGB", (8, 6)).save(path)
        file = tmp_path / "labels.json"
        file.write_text(json.dumps(content))
        return file

    return write


Write = Callable[[dict[str, Any]], Path]


class TestMeaning:
    def test_classes_follow_category_ids_and_records_follow_the_file(self, write: Write) -> None:
        labels = load_labels(write(coco()))
        assert labels.classes == ["dog", "cat"]
        assert labels.category_ids == [2, 7]
        assert [record.image_id for record in labels.records] == [30, 10, 20]
        assert labels.records[0].labels.tolist() == [1, 0]

    def test_crowds_are_no_objects_but_stay_for_evaluation(self, write: Write) -> None:
        labels = load_labels(write(coco()))
        assert labels.records[0].annotation_ids == [1, 3]
        assert [entry["id"] for entry in labels.coco["annotations"]] == [1, 2, 3, 4]

    def test_an_image_without_boxes_is_kept(self, write: Write) -> None:
        labels = load_labels(write(coco()))
        assert len(labels) == 3
        assert labels.records[1].boxes.shape == (0, 4)
        assert read_sample(labels.records[1], with_masks=True).boxes.shape == (0, 4)

    def test_boxes_are_xyxy_and_end_at_the_edge_of_the_image(self, write: Write) -> None:
        labels = load_labels(write(coco()))
        assert labels.records[0].boxes.tolist() == [[1, 1, 4, 3], [2, 0, 3, 6]]
        assert labels.records[2].boxes.tolist() == [[6, 4, 8, 6]]

    def test_faulty_boxes_are_left_out_and_counted(self, write: Write) -> None:
        content = coco()
        for key, box in enumerate([[1, 1, 0, 2], [1, 1, 2, -2], [float("nan"), 1, 2, 2], [9, 1, 2, 2]], start=10):
            content["annotations"].append({"id": key, "image_id": 10, "category_id": 2, "bbox": box})
        labels = load_labels(write(content))
        assert labels.dropped == {"degenerate": 2, "not_finite": 1, "out_of_image": 1}
        assert labels.records[1].boxes.shape == (0, 4)

    def test_a_subset_holds_only_its_images_in_records_and_in_coco(self, write: Write) -> None:
        labels = load_labels(write(coco())).subset([20, 30])
        assert [record.image_id for record in labels.records] == [30, 20]
        assert [image["id"] for image in labels.coco["images"]] == [30, 20]
        assert labels.subset([20]).coco["annotations"][0]["id"] == 4
        assert labels.classes == ["dog", "cat"]

    def test_a_minimal_file_is_completed_for_evaluation(self, write: Write) -> None:
        entry = load_labels(write(coco())).coco["annotations"][3]
        assert (entry["iscrowd"], entry["area"]) == (0, 25)

    def test_sizes_may_be_missing_and_boxes_are_then_clipped_on_reading(self, write: Write) -> None:
        content = coco()
        for image in content["images"]:
            del image["width"], image["height"]
        content["annotations"].append({"id": 9, "image_id": 20, "category_id": 2, "bbox": [20, 20, 5, 5]})
        content["annotations"].append({"id": 10, "image_id": 20, "category_id": 2, "bbox": [0, 0, 5, 5]})
        sample = read_sample(load_labels(write(content)).records[2])
        assert sample.boxes.tolist() == [[6, 4, 8, 6], [0, 0, 5, 5]]
        assert sample.ids.tolist() == [0, 2]


class TestSamples:
    def test_a_sample_carries_its_objects_and_where_it_came_from(self, write: Write) -> None:
        labels = load_labels(write(coco()))
        sample = read_sample(labels.records[0])
        assert sample.image.shape == (3, 6, 8)
        assert sample.boxes.canvas_size == (6, 8)
        assert sample.ids.tolist() == [0, 1]
        assert sample.labels is not None
        assert sample.labels.tolist() == [1, 0]
        assert sample.image_id == 30
        assert sample.original_size == (6, 8)
        assert sample.path.endswith("30.png")
        assert sample.masks is None

    def test_masks_come_from_polygons_and_from_run_lengths(self, write: Write) -> None:
        masks = read_sample(load_labels(write(coco())).records[0], with_masks=True).masks
        assert masks is not None
        assert masks.dtype == torch.bool
        polygon, runs = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
        polygon[1:3, 1:4] = True
        runs[:, 2] = True
        np.testing.assert_array_equal(masks.numpy(), [polygon, runs])

    def test_an_object_without_a_segmentation_keeps_its_box_and_has_an_empty_mask(self, write: Write) -> None:
        for nothing in (None, [], [[1, 1, 4, 1]]):
            content = coco()
            content["annotations"][3]["segmentation"] = nothing
            sample = read_sample(load_labels(write(content)).records[2], with_masks=True)
            assert sample.boxes.tolist() == [[6, 4, 8, 6]]
            assert sample.masks is not None
            assert sample.masks.shape == (1, 6, 8)
            assert not sample.masks.any()

    def test_a_misshapen_segmentation_is_the_users_error_only_when_masks_are_wanted(self, write: Write) -> None:
        content = coco()
        content["annotations"][2]["segmentation"]["size"] = [8, 6]
        records = load_labels(write(content)).records
        read_sample(records[0])
        with pytest.raises(UserError, match=r"annotation 3 of .*30\.png cannot be read: its size is \[8, 6\]"):
            read_sample(records[0], with_masks=True)

    def test_masks_of_a_turned_photograph_lie_on_the_picture_they_were_drawn_on(self, write: Write) -> None:
        """White where the annotations are, whichever way the picture is stored."""
        labels = load_labels(write(coco()))
        white = np.zeros((6, 8, 3), np.uint8)
        white[1:3, 1:4] = white[:, 2] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # to be seen turned a quarter clockwise
        upright = Image.fromarray(white)
        for stored in (upright, upright.transpose(Image.Transpose.ROTATE_90)):
            stored.save(labels.records[0].path, exif=exif)
            sample = read_sample(labels.records[0], with_masks=True)
            assert sample.masks is not None
            np.testing.assert_array_equal(sample.masks.any(0).numpy(), sample.image[0].numpy() > 0)

    def test_boxes_of_a_turned_photograph_lie_on_the_picture_they_were_drawn_on(self, write: Write) -> None:
        labels = load_labels(write(coco()))
        exif = Image.Exif()
        exif[0x0112] = 6
        stored = Image.new("RGB", (8, 6))
        stored.save(labels.records[0].path, exif=exif)
        assert read_sample(labels.records[0]).size == (6, 8)
        upright = Image.new("RGB", (6, 8))  # as stored; turned it is the 8 × 6 of the label file
        upright.save(labels.records[2].path, exif=exif)
        assert read_sample(labels.records[2]).size == (6, 8)

    def test_a_file_of_another_size_than_its_labels_say_is_unreadable(self, write: Write) -> None:
        labels = load_labels(write(coco()))
        Image.new("RGB", (16, 12)).save(labels.records[0].path)
        with pytest.raises(UnreadableImage, match="label file says 8×6"):
            read_sample(labels.records[0])


def broken(key: str, position: int, **change: Any) -> dict[str, Any]:
    content = coco()
    content[key][position].update(change)
    return content


FAULTS: list[tuple[dict[str, Any], str]] = [
    (broken("images", 1, id=30), 'ids repeat in "images", the first of them 30'),
    (broken("categories", 1, id=7), 'ids repeat in "categories", the first of them 7'),
    (broken("annotations", 1, id=1), 'ids repeat in "annotations", the first of them 1'),
    (broken("images", 1, id="ten"), "the id 'ten', not a whole number"),
    (broken("images", 1, file_name="../10.png"), r"\.\./10\.png, which leaves"),
    (broken("images", 1, file_name="a\\..\\..\\10.png"), "which leaves"),
    (broken("images", 1, file_name="/etc/10.png"), "/etc/10.png, which is outside"),
    (broken("images", 1, file_name="C:\\10.png"), "which is outside"),
    (broken("images", 1, file_name=None), 'number 1 has no "file_name"'),
    (broken("annotations", 3, category_id=3), "annotation 4 has the unknown category_id 3"),
    (broken("annotations", 3, image_id=99), "annotation 4 has the unknown image_id 99"),
    (broken("annotations", 3, bbox=[1, 2, 3]), 'annotation 4 has no "bbox" of four numbers'),
    (broken("annotations", 3, ignore="0"), "annotation 4 has the ignore '0'"),
    (broken("categories", 0, name=None), 'category 7 has no "name"'),
    ({**coco(), "categories": [], "annotations": []}, '"categories" is empty'),
    ({"images": [], "annotations": []}, 'it has no list "categories"'),
    ({"images": {}, "annotations": [], "categories": []}, 'it has no list "images"'),
]


class TestFaults:
    @pytest.mark.parametrize(("content", "told"), FAULTS, ids=[told for _, told in FAULTS])
    def test_a_faulty_file_is_refused_in_one_line_that_names_it(
        self, tmp_path: Path, content: dict[str, Any], told: str
    ) -> None:
        for key in (10, 20, 30):
            Image.new("RGB", (8, 6)).save(tmp_path / f"{key}.png")
        file = tmp_path / "labels.json"
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=told) as caught:
            load_labels(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("content", [b"{", b"", b"\xff\xd8\xff\xe0", b"[" * 100_000, b"[1]", b'"text"'])
    def test_what_is_not_coco_json_at_all_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "labels.json").write_bytes(content)
        with pytest.raises(UserError, match=r"labels\.json is not"):
            load_labels(tmp_path / "labels.json")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"labels\.json does not exist"):
            load_labels(tmp_path / "labels.json")
        with pytest.raises(UserError, match="is a folder"):
            load_labels(tmp_path)

    def test_absent_images_are_counted_and_the_first_three_named(self, tmp_path: Path, write: Write) -> None:
        content = coco()
        content["images"] += [{"id": key, "file_name": f"{key}.png", "width": 8, "height": 6} for key in (1, 2, 3, 4)]
        file = write(content)
        for key in (1, 2, 3, 4):
            (tmp_path / f"{key}.png").unlink()
        with pytest.raises(UserError, match=r"4 of the 7 images .*: 1\.png, 2\.png, 3\.png, …"):
            load_labels(file)
        (tmp_path / "elsewhere").mkdir()
        with pytest.raises(UserError, match=r"7 of the 7 images .* are not in .*elsewhere"):
            load_labels(file, tmp_path / "elsewhere")

    def test_asking_for_an_image_that_is_not_there_is_our_mistake(self, write: Write) -> None:
        with pytest.raises(ValueError, match="no image 5"):
            load_labels(write(coco())).subset([5])


class TestPlaces:
    @pytest.fixture
    def labels(self, tmp_path: Path) -> Callable[[str | None], Labels]:
        """Labels in one folder, images in another with the same shape as the names."""
        content = coco()
        content["images"] = [{"id": 30, "file_name": "a/30.png"}, {"id": 20, "file_name": "b/30.png"}]
        del content["annotations"][1]
        for image in content["images"]:
            path = tmp_path / "photos" / image["file_name"]
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 6)).save(path)
        (tmp_path / "photos" / "list.txt").write_text("a/30.png\nb/30.png\n")
        file = tmp_path / "annotations" / "labels.json"
        file.parent.mkdir()
        file.write_text(json.dumps(content))
        return lambda images: load_labels(file, None if images is None else tmp_path / images)

    @pytest.mark.parametrize("images", ["photos", "photos/*/*.png", "photos/list.txt"])
    def test_images_are_found_in_a_folder_a_glob_or_a_list(
        self, labels: Callable[[str | None], Labels], images: str
    ) -> None:
        found = labels(images)
        assert [record.path.parent.name for record in found.records] == ["a", "b"]

    def test_images_that_a_glob_leaves_out_are_absent(self, labels: Callable[[str | None], Labels]) -> None:
        with pytest.raises(UserError, match=r"1 of the 2 images .*: b/30\.png"):
            labels("photos/a/*.png")
        with pytest.raises(UserError, match=r"--images .* does not exist"):
            labels("nowhere")
        with pytest.raises(UserError, match="2 of the 2 images"):
            labels(None)
