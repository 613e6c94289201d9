"""`selfdet proposals --init`: a second round of boxes from a detector, through the same filters and as resumable."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfdet.cli import main
from selfdet.data.images import read_image
from selfdet.data.labelled import resize_sample
from selfdet.data.sample import plain_sample
from selfdet.data.synthetic import make_scenes
from selfdet.detectors.zoo import DETECTORS
from selfdet.errors import UserError
from selfdet.interchange.starts import load_detector, save_detector
from selfdet.models.backbones import build_backbone
from selfdet.proposing.filters import Filters, filter_or_relax
from selfdet.proposing.finding import Found
from selfdet.proposing.store import read_proposals
from selfdet.verbs import detector_boxes
from selfdet.verbs.detector_boxes import DetectorBoxes
from selfdet.verbs.proposals import proposals
from tiny_runs import BACKBONE, flags


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes of 96 px and a file that is no image, the third of them; not to be changed."""
    folder = tmp_path_factory.mktemp("second")
    images = make_scenes(folder, count=10, size=96).parent / "images"
    (images / "train_00001b.jpg").write_text("no image")
    return images


def tiny_detector(file: Path, classes: int = 1, seed: int = 0, **options: Any) -> str:
    """A detector file as pre-training leaves it, with random weights."""
    torch.manual_seed(seed)
    body = build_backbone(BACKBONE)
    detector = DETECTORS["fcos"](classes, body, **{"fpn_channels": 64, "head_convs": 1, "image_size": 96, **options})
    names = [f"thing {number}" for number in range(classes)] if classes > 1 else ["object"]
    about = {"classes": names, "category_ids": list(range(1, classes + 1)), "image_size": 96}
    save_detector(file, detector, {"kind": "detector", **detector.config(), **about})
    return str(file)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_detector(tmp_path_factory.mktemp("runs") / "detector.safetensors")


def test_a_detectors_boxes_of_any_class_are_filtered_the_best_scored_first(scenes: Path, tmp_path: Path) -> None:
    several = tiny_detector(tmp_path / "several.safetensors", classes=3)
    answer = proposals(images=str(scenes), out=str(tmp_path / "boxes.json"), init=several, top_k=7, precision="fp32")
    assert (answer["images"], answer["unreadable"]) == (10, 1)
    detector, _ = load_detector(several)
    coco = json.loads((tmp_path / "boxes.json").read_text())
    for record in read_proposals(tmp_path / "boxes.json", scenes):
        sample = resize_sample(plain_sample(read_image(record.path)), 96)
        (found,) = detector.predict([sample])
        boxes, scores = found["boxes"].numpy(), found["scores"].numpy()
        kept, _ = filter_or_relax(boxes, 96, 96, Filters(top_k=7))
        np.testing.assert_allclose(record.boxes, boxes[kept], atol=0.02)
        own = [row["score"] for row in coco["annotations"] if row["image_id"] == record.image_id]
        np.testing.assert_allclose(own, scores[kept], atol=1e-4)
        assert len(own) <= 7
    assert {row["category_id"] for row in coco["annotations"]} == {1}
    settings = coco["info"]["settings"]
    assert (settings["source"], settings["init"], settings["image_size"]) == ("detector", several, 96)
    assert settings["top_k"] == 7
    assert len(settings["source_hash"]) == 16


class Killed(Exception):
    """In place of a SIGKILL."""


@pytest.mark.parametrize(("after", "told"), [(2, "unreadable, left out"), (10, "4 images of 11 done before")])
def test_a_killed_run_repeats_whole_batches_and_ends_with_the_same_bytes(
    scenes: Path,
    run: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: int,
    told: str,
) -> None:
    monkeypatch.setattr(detector_boxes, "BATCH", 4)
    whole, out = tmp_path / "whole.json", tmp_path / "boxes.json"
    proposals(images=str(scenes), out=str(whole), init=run)
    find = DetectorBoxes.find

    def killed(*given: Any) -> Iterator[Found]:
        for count, found in enumerate(find(*given)):
            if count == after:
                raise Killed
            yield found

    with monkeypatch.context() as patched:
        patched.setattr(DetectorBoxes, "find", killed)
        with pytest.raises(Killed):
            proposals(images=str(scenes), out=str(out), init=run)
    capsys.readouterr()
    proposals(images=str(scenes), out=str(out), init=run, resume=True)
    assert out.read_bytes() == whole.read_bytes()
    # Of eleven in batches of four: the first holds the file that is no image, which is tried again.
    assert capsys.readouterr().err.startswith(told)


def test_a_finished_run_stays_and_only_its_own_detector_continues_it(scenes: Path, run: str, tmp_path: Path) -> None:
    out = tmp_path / "boxes.json"
    first = proposals(images=str(scenes), out=str(out), init=run)
    before = out.read_bytes()
    assert proposals(images=str(scenes), out=str(out), init=run, resume=True) == first
    assert out.read_bytes() == before
    with pytest.raises(UserError, match="source is 'detector' in this run but 'selective search' now"):
        proposals(images=str(scenes), out=str(out), resume=True)
    with pytest.raises(UserError, match="image_size is 96 in this run but 64 now"):
        proposals(images=str(scenes), out=str(out), init=run, image_size=64, resume=True)
    weights = Path(run).read_bytes()
    try:
        tiny_detector(Path(run), seed=1)
        with pytest.raises(UserError, match="source_hash is"):
            proposals(images=str(scenes), out=str(out), init=run, resume=True)
    finally:
        Path(run).write_bytes(weights)


def test_images_of_any_shape_get_boxes_and_bad_ones_are_counted(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    sizes = {"dot": (1, 1), "long": (2000, 40), "high": (40, 2000), "flat": (64, 48), "large": (4000, 3000)}
    for name, size in sizes.items():
        Image.new("RGB", size, (9, 200, 9)).save(folder / f"{name}.png")
    (folder / "text.jpg").write_text("no image")
    out = tmp_path / "boxes.json"
    assert main(["proposals", "--images", str(folder), "--init", run, "--out", str(out), "--preview", "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert (answer["images"], answer["unreadable"]) == (5, 1)
    assert "unreadable, left out" in captured.err
    assert Path(answer["preview"]).is_file()
    for record in read_proposals(out, folder):
        width, height = sizes[record.path.stem]
        assert (record.width, record.height) == (width, height)
        assert (record.boxes >= 0).all()
        assert (record.boxes <= [width, height, width, height]).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"boxes": "boxes.json"}, "--boxes and --init are both given"),
        ({"init": "runs/none"}, "--init runs/none does not exist"),
        ({"init": "scratch"}, "--init scratch holds no detector"),
        ({"image_size": 16}, "--image-size 16: below the stride"),
        ({"threads": -1}, "--threads -1"),
        ({"precision": "fp16"}, "--precision fp16 needs a GPU"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(
    scenes: Path, run: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any], told: str
) -> None:
    words = flags({"images": scenes, "init": run, "out": tmp_path / "boxes.json", **change})
    assert main(["proposals", *words]) == 2
    error = capfd.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_detector_that_finds_nothing_is_refused(scenes: Path, tmp_path: Path) -> None:
    silent = tiny_detector(tmp_path / "silent.safetensors", score_threshold=0.99)
    with pytest.raises(UserError, match="no box is left in any of 10 images"):
        proposals(images=str(scenes), out=str(tmp_path / "boxes.json"), init=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["silent.safetensors"]


@pytest.mark.slow
def test_a_run_with_a_detector_survives_sigkill(scenes: Path, run: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(200):
        shutil.copy(sorted(scenes.iterdir())[number % 2], photos / f"x{number:03d}.jpg")
    out = tmp_path / "boxes.json"
    words = ["proposals", "--images", str(photos), "--init", run, "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "selfdet", *words])
    unfinished = tmp_path / "boxes.json.unfinished.jsonl"
    while not (unfinished.exists() and unfinished.read_bytes().count(b"\n") > 12):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not out.exists()
    assert main([*words, "--resume"]) == 0
    proposals(images=str(photos), init=run, out=str(tmp_path / "whole.json"))
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
