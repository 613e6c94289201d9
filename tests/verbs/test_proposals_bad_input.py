"""Boxes and images that do not fit: one line and exit code 2, or counted and exit code 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfdet.cli import main
from selfdet.proposing.store import read_proposals
from tiny_runs import WIDTHS, flags, tiny_boxes, tiny_pretrain

Capture = pytest.CaptureFixture[str]
SIZES = {"dot": (1, 1), "long": (2000, 40), "high": (40, 2000), "flat": (64, 48), "large": (4000, 3000)}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one colour and odd sizes, one of noise, one of many colours, and two broken files."""
    folder = tmp_path_factory.mktemp("odd")
    for name, size in SIZES.items():
        Image.new("RGB", size, (9, 200, 9)).save(folder / f"{name}.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (96, 80, 3), np.uint8)).save(folder / "noise.png")
    blocks = rng.integers(0, 255, (6, 8, 3), np.uint8).repeat(12, 0).repeat(12, 1)
    Image.fromarray(blocks).save(folder / "blocks.png")
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "noise.png").read_bytes()[:9000])
    return folder


def write(file: Path, content: Any) -> Path:
    file.write_text(json.dumps(content))
    return file


def refused(capfd: Capture, tmp_path: Path, **settings: Any) -> str:
    """Run a command that must fail and write nothing; returns its one line."""
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["proposals", *flags({"out": tmp_path / "out.json", **settings})]) == 2
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert stderr.startswith("selfdet: error: ")
    assert stderr.count("\n") == 1, stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return stderr


def boxes_of(scenes: Path, *boxes: list[float]) -> dict[str, Any]:
    """The scenes' label file with these boxes alone, all of its first image."""
    coco = json.loads((scenes / "train.json").read_text())
    number = coco["images"][0]["id"]
    rows = [{"id": i, "image_id": number, "category_id": 1, "bbox": box} for i, box in enumerate(boxes, start=1)]
    return {**coco, "annotations": rows}


@pytest.mark.parametrize("boxes", [[], [[200, 200, 9, 9], [10, 10, 0, 4]], [[0, 0, 1, 1]]])
def test_boxes_of_which_none_is_left_are_refused(
    scenes: Path, tmp_path: Path, capfd: Capture, boxes: list[list[float]]
) -> None:
    given = write(tmp_path / "given.json", boxes_of(scenes, *boxes))
    line = refused(capfd, tmp_path, images=scenes / "train.json", boxes=given)
    assert "no box is left in any of 10 images" in line


def test_boxes_of_absent_images_are_refused(scenes: Path, tmp_path: Path, capfd: Capture) -> None:
    given = boxes_of(scenes, [5, 5, 40, 40])
    given["images"][0]["file_name"] = "images/elsewhere.jpg"
    line = refused(capfd, tmp_path, images=scenes / "train.json", boxes=write(tmp_path / "given.json", given))
    assert "has boxes for 1 images that are not in --images: images/elsewhere.jpg" in line


def test_proposals_of_other_images_are_neither_given_nor_resumed(
    scenes: Path, odd: Path, tmp_path: Path, capfd: Capture
) -> None:
    file = tiny_boxes(scenes)
    capfd.readouterr()
    assert "that are not in --images: " in refused(capfd, tmp_path, images=odd, boxes=file)
    mine = tmp_path / "mine.json"
    mine.write_bytes(file.read_bytes())
    assert main(["proposals", *flags({"images": odd, "side": 96, "out": mine}), "--resume"]) == 2
    assert "mine.json: listing is" in capfd.readouterr().err
    other = json.loads(file.read_text())
    other["images"][0]["width"] += 1
    write(mine, other)
    assert main(["proposals", *flags({"images": scenes / "images", "side": 96, "out": mine}), "--resume"]) == 2
    assert "its list of images is not the one that its boxes were found in" in capfd.readouterr().err
    write(mine, boxes_of(scenes, [5, 5, 40, 40]))
    assert main(["proposals", *flags({"images": scenes / "images", "out": mine}), "--resume"]) == 2
    assert "mine.json is not a file of selfdet proposals" in capfd.readouterr().err
    assert json.loads(mine.read_text()) == boxes_of(scenes, [5, 5, 40, 40])


def test_given_boxes_over_the_edge_of_images_of_any_size_are_cut(odd: Path, tmp_path: Path, capfd: Capture) -> None:
    names = [*(f"{name}.png" for name in SIZES), "text.jpg"]
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": [-50, -50, 9999, 9999]}
            for number in range(len(names))
        ],
    }
    settings = {"images": odd, "boxes": write(tmp_path / "given.json", coco), "out": tmp_path / "out.json"}
    assert main(["proposals", *flags(settings), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["fallback"]["whole"] == len(SIZES)
    assert (answer["unreadable"], answer["images_without_boxes"]) == (1, 3)  # a header is all that is read of the cut
    for record in read_proposals(tmp_path / "out.json", odd):
        if record.path.stem in SIZES:
            assert record.boxes.tolist() == [[0, 0, *SIZES[record.path.stem]]]


def test_a_detector_learns_from_the_boxes_of_images_of_any_size_beside_broken_files(
    odd: Path, tmp_path: Path, capfd: Capture
) -> None:
    stages = ["proposals", "detector"]
    answer = tiny_pretrain(odd, tmp_path / "run", images=str(odd), stages=stages, image_size=96, steps=4, **WIDTHS)
    assert "unreadable, left out" in capfd.readouterr().err
    assert len(read_proposals(answer["proposals"], odd)) == 7
    assert np.isfinite(answer["stages"]["detector"]["loss"])
