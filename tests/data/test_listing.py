"""Images keep their ids and names, however they are listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from selfdet.data.listing import numbered_images
from selfdet.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.png", "a.png", "deep/c.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_a_folders_images_are_numbered_from_1_and_named_below_it(photos: Path) -> None:
    listed = numbered_images(photos)
    assert [(image.image_id, image.name) for image in listed] == [(1, "a.png"), (2, "b.png"), (3, "deep/c.png")]
    assert [image.path for image in listed] == [photos / "a.png", photos / "b.png", photos / "deep" / "c.png"]
    assert {image.size for image in listed} == {None}


def test_a_glob_and_a_list_name_images_below_the_folder_common_to_them(photos: Path) -> None:
    assert [image.name for image in numbered_images(str(photos / "*.png"))] == ["a.png", "b.png"]
    assert [image.name for image in numbered_images(str(photos / "**" / "*.png"))] == ["a.png", "b.png", "deep/c.png"]
    (photos / "list.txt").write_text("deep/c.png\nb.png\n")
    assert [image.name for image in numbered_images(photos / "list.txt")] == ["deep/c.png", "b.png"]
    assert [image.name for image in numbered_images(photos / "deep" / "c.png")] == ["c.png"]


def test_a_coco_jsons_images_keep_its_ids_names_and_sizes(photos: Path) -> None:
    images = [
        {"id": 7, "file_name": "deep/c.png", "width": 8, "height": 6},
        {"id": 3, "file_name": "a.png"},
    ]
    file = photos / "labels.json"
    file.write_text(json.dumps({"images": images}))
    listed = numbered_images(file)
    assert [(image.image_id, image.name, image.size) for image in listed] == [
        (7, "deep/c.png", (8, 6)),
        (3, "a.png", None),
    ]
    images[1]["id"] = 7
    file.write_text(json.dumps({"images": images}))
    with pytest.raises(UserError, match="ids repeat"):
        numbered_images(file)


def test_what_lists_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"images": []}')
    for images in (tmp_path, tmp_path / "labels.json", tmp_path / "absent"):
        with pytest.raises(UserError):
            numbered_images(images)
