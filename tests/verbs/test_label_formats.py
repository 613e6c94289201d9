"""Labels of Pascal VOC and YOLO go where COCO JSON goes, with the same result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_runs import tiny_finetune

from selfdet.data.labels import load_labels
from selfdet.verbs.compare_labels import images_root
from selfdet.verbs.evaluate import evaluate
from selfdet.verbs.report import report


@pytest.fixture(scope="module")
def voc(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes as a VOC data set with the splits train and val."""
    root = tmp_path_factory.mktemp("voc")
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        coco = json.loads((scenes / f"{split}.json").read_text())
        names = {category["id"]: category["name"] for category in coco["categories"]}
        for image in coco["images"]:
            own = [entry for entry in coco["annotations"] if entry["image_id"] == image["id"]]
            write(root / "Annotations" / f"{Path(image['file_name']).stem}.xml", image, own, names)
            shutil.copy(scenes / "images" / image["file_name"], root / "JPEGImages")
        listed = "".join(f"{Path(image['file_name']).stem}\n" for image in coco["images"])
        (root / f"ImageSets/Main/{split}.txt").write_text(listed)
    return root


def write(file: Path, image: dict[str, Any], objects: list[dict[str, Any]], names: dict[int, str]) -> None:
    parts = [f"<filename>{image['file_name']}</filename>"]
    parts.append(f"<size><width>{image['width']}</width><height>{image['height']}</height></size>")
    for entry in objects:
        x, y, w, h = entry["bbox"]
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
        box = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners.items())
        hard = f"<difficult>{entry['iscrowd']}</difficult>"
        parts.append(f"<object><name>{names[entry['category_id']]}</name>{hard}<bndbox>{box}</bndbox></object>")
    file.write_text(f"<annotation>{''.join(parts)}</annotation>")


def test_a_run_on_voc_is_evaluated_as_on_coco_and_by_vocs_own_ap(scenes: Path, voc: Path, tmp_path: Path) -> None:
    main = voc / "ImageSets/Main"
    tiny_finetune(scenes, tmp_path / "run", data=str(main / "train.txt"), val_data=str(main / "val.txt"))
    scores = evaluate(init=str(tmp_path / "run"), data=str(main / "val.txt"), threads=1)
    again = evaluate(init=str(tmp_path / "run"), data=str(scenes / "val.json"), threads=1)
    assert scores["AP"] == pytest.approx(again["AP"], abs=1e-6)
    assert scores["per_class"].keys() == again["per_class"].keys() == scores["voc"]["per_class"].keys()
    assert 0 <= scores["voc"]["AP10"] <= 1
    assert "voc" not in again
    assert report(init=str(tmp_path / "run"), threads=1)["finished"]


def test_a_comparison_finds_vocs_images_for_the_files_that_it_writes(voc: Path) -> None:
    labels = load_labels(voc / "ImageSets/Main/train.txt")
    assert images_root(labels, None) == str(voc / "JPEGImages")


def test_yolos_form_of_the_labels_gives_the_same_ap(scenes: Path, finetuned: Path, tmp_path: Path) -> None:
    coco = json.loads((scenes / "val.json").read_text())
    places = {category["id"]: place for place, category in enumerate(coco["categories"])}
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for image in coco["images"]:
        shutil.copy(scenes / "images" / image["file_name"], tmp_path / "images")
        rows = []
        for entry in coco["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, w, h = entry["bbox"]
                shares = [(x + w / 2) / image["width"], (y + h / 2) / image["height"]]
                shares += [w / image["width"], h / image["height"]]
                rows.append(" ".join(map(str, [places[entry["category_id"]], *shares])))
        (tmp_path / "labels" / image["file_name"]).with_suffix(".txt").write_text("\n".join(rows))
    names = [category["name"] for category in coco["categories"]]
    (tmp_path / "data.yaml").write_text(f"val: images\nnames: {json.dumps(names)}\n")
    scores = evaluate(init=str(finetuned), data=str(tmp_path / "data.yaml"), threads=1)
    again = evaluate(init=str(finetuned), data=str(scenes / "val.json"), threads=1)
    assert scores["AP"] == pytest.approx(again["AP"], abs=1e-4)
    assert scores["per_class"].keys() == again["per_class"].keys()
