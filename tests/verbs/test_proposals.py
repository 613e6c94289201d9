"""`selfdet proposals`: boxes for every image, the same however the run went, and nothing for what does not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selfdet.cli import main
from selfdet.data.labels import load_labels
from selfdet.data.synthetic import make_scenes
from selfdet.errors import UserError
from selfdet.proposing import finding
from selfdet.proposing.selective_search import TimeLimit
from selfdet.proposing.store import read_proposals
from selfdet.verbs import proposals as verb
from selfdet.verbs.proposals import proposals

STEPS = ("aspect", "small", "large", "whole")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Labels of six scenes; the images are in `images` beside them."""
    return make_scenes(tmp_path / "scenes", count=6, size=96)


@pytest.fixture
def images(scenes: Path) -> str:
    return str(scenes.parent / "images")


def test_the_command_writes_coco_boxes_a_preview_and_one_json_object(
    scenes: Path, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "boxes.json"
    words = ["--images", images, "--out", str(out), "--data", str(scenes), "--preview", "--top-k", "20", "--json"]
    assert main(["proposals", *words]) == 0
    answer = json.loads(capsys.readouterr().out)
    records = read_proposals(out, images)
    assert answer["images"] == len(records) == 6
    assert answer["boxes"] == sum(len(record.boxes) for record in records) > 6
    assert max(len(record.boxes) for record in records) <= 20
    assert answer["fallback"] == dict.fromkeys(STEPS, 0)
    assert [path.name for path in sorted(out.parent.iterdir())] == ["boxes.json", "boxes_preview.jpg"]
    assert min(Image.open(answer["preview"]).size) > 400
    assert answer["recall"]["all"]["recall"] > 0.1
    assert answer["recall"]["objects"]["all"] == sum(len(record.boxes) for record in load_labels(scenes).records)
    for record in records:
        sides = record.boxes[:, 2:] - record.boxes[:, :2]
        assert sides.min() >= 0.05 * 96 - 0.01
        assert (sides.max(1) / sides.min(1)).max() <= 3.01


def test_ids_and_names_of_a_label_file_are_kept(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "boxes.json"
    proposals(images=str(scenes), out=str(out))
    expected = [(image["id"], image["file_name"]) for image in json.loads(scenes.read_text())["images"]]
    assert [(image["id"], image["file_name"]) for image in json.loads(out.read_text())["images"]] == expected


class Killed(Exception):
    """In place of a SIGKILL."""


def kill_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    find_all = verb.find_all

    def killed(*given: Any) -> Any:
        for done, found in enumerate(find_all(*given)):
            if done == count:
                raise Killed
            yield found

    monkeypatch.setattr(verb, "find_all", killed)


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole.json", tmp_path / "boxes.json"
    proposals(images=images, out=str(whole))
    with monkeypatch.context() as patched:
        kill_after(patched, 4)
        with pytest.raises(Killed):
            proposals(images=images, out=str(out))
    unfinished = tmp_path / "boxes.json.unfinished.jsonl"
    with unfinished.open("ab") as file:
        file.write(b'{"image_id": 5, "wid')
    with pytest.raises(UserError, match="Add --resume"):
        proposals(images=images, out=str(out))
    with pytest.raises(UserError, match="top_k is 50 in this run but 9 now"):
        proposals(images=images, out=str(out), top_k=9, resume=True)
    assert not out.exists()
    proposals(images=images, out=str(out), resume=True)
    assert "4 images of 6 done before" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()
    assert not unfinished.exists()


def test_a_finished_run_stays_as_it_is_and_can_still_be_measured(scenes: Path, images: str, tmp_path: Path) -> None:
    out = tmp_path / "boxes.json"
    first = proposals(images=images, out=str(out))
    before = out.read_bytes()
    again = proposals(images=images, out=str(out), data=str(scenes), preview=True, resume=True)
    assert out.read_bytes() == before
    assert {name: again[name] for name in first} == first
    assert again["recall"] == proposals(images=images, out=str(tmp_path / "b.json"), data=str(scenes))["recall"]
    with pytest.raises(UserError, match="exists already"):
        proposals(images=images, out=str(out))
    with pytest.raises(UserError, match="seed is 0 in this run but 1 now"):
        proposals(images=images, out=str(out), seed=1, resume=True)


def test_a_signal_stops_the_run_with_all_that_was_found(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "boxes.json"
    find_boxes = finding.find_boxes

    def stopped(task: finding.Task) -> finding.Found:
        if task.image.image_id == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return find_boxes(task)

    with monkeypatch.context() as patched:
        patched.setattr("selfdet.proposing.finding.find_boxes", stopped)
        assert main(["proposals", "--images", images, "--out", str(out)]) == 143
    assert "stopped by SIGTERM at image 3" in capsys.readouterr().err
    assert len((tmp_path / "boxes.json.unfinished.jsonl").read_text().splitlines()) == 1 + 3
    assert main(["proposals", "--images", images, "--out", str(out), "--resume"]) == 0


def test_bad_images_are_counted_and_never_stop_the_others(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, size in {"dot": (1, 1), "long": (2000, 40), "high": (40, 2000), "flat": (64, 48)}.items():
        Image.new("RGB", size, (9, 200, 9)).save(folder / f"{name}.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (2000, 40, 3), np.uint8)).save(folder / "noise.png")
    blocks = rng.integers(0, 255, (6, 8), np.uint8).repeat(500, 0).repeat(500, 1)
    Image.fromarray(blocks).save(folder / "large.jpg")
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "large.jpg").read_bytes()[:20_000])
    out = tmp_path / "boxes.json"
    assert main(["proposals", "--images", str(folder), "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert (answer["images"], answer["unreadable"]) == (6, 2)
    assert answer["fallback"]["whole"] == 4
    assert answer["fallback"]["small"] == 1  # 40 px are too narrow for a twentieth of 2000
    assert "text.jpg" in captured.err
    boxes = {record.path.name: record.boxes for record in read_proposals(out, folder)}
    assert boxes["dot.png"].tolist() == [[0, 0, 1, 1]]
    assert boxes["high.png"].tolist() == [[0, 0, 40, 2000]]
    assert len(boxes["large.jpg"]) > 10
    assert boxes["large.jpg"].max() > 3000
    assert len(boxes["noise.png"]) >= 1


def test_an_image_that_takes_too_long_or_fails_is_left_out_and_tried_again_on_resume(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = finding.selective_search
    first, second = sorted(Path(images).iterdir())[:2]
    Image.new("RGB", (80, 60)).save(first, format="PNG")
    Image.new("RGB", (70, 60)).save(second, format="PNG")

    def odd(image: Any, *given: Any) -> Any:
        if image.shape[-1] == 80:
            raise TimeLimit
        if image.shape[-1] == 70:
            raise MemoryError("too large")
        return search(image, *given)

    with monkeypatch.context() as patched:
        patched.setattr(finding, "selective_search", odd)
        answer = proposals(images=images, out=str(tmp_path / "boxes.json"))
        assert (answer["images"], answer["timed_out"], answer["failed"]) == (4, 1, 1)
        assert len(read_proposals(tmp_path / "boxes.json", images)) == 4
        kill_after(patched, 5)
        with pytest.raises(Killed):
            proposals(images=images, out=str(tmp_path / "again.json"))
    answer = proposals(images=images, out=str(tmp_path / "again.json"), resume=True)
    assert (answer["images"], answer["timed_out"], answer["failed"]) == (6, 0, 0)


def test_when_no_image_gives_boxes_it_is_an_error(images: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"6 images none gave boxes.*timed out.*Raise --image-timeout"):
        proposals(images=images, out=str(tmp_path / "boxes.json"), image_timeout=1e-9)
    for path in Path(images).iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="unreadable"):
        proposals(images=images, out=str(tmp_path / "boxes.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scenes"]


@pytest.mark.parametrize("form", ["coco", "results"])
def test_given_boxes_go_through_the_same_filters(scenes: Path, images: str, tmp_path: Path, form: str) -> None:
    numbers = [image["id"] for image in json.loads(scenes.read_text())["images"]]
    boxes = [[10, 10, 40, 40], [10, 10, 40, 36], [-5, 80, 30, 30], [50, 50, 2, 2], [200, 0, 9, 9], [0, 0, 96, 96]]
    rows = [
        {"id": i, "image_id": numbers[0], "category_id": 8, "bbox": box, "score": 0.1 + 0.1 * (i == 1)}
        for i, box in enumerate(boxes)
    ]
    rows.append({"id": 9, "image_id": numbers[1], "category_id": 8, "bbox": [0, 0, 80, 10], "score": 1.0})
    given = rows if form == "results" else {**json.loads(scenes.read_text()), "annotations": rows}
    (tmp_path / "given.json").write_text(json.dumps(given))
    where = str(scenes) if form == "results" else images
    answer = proposals(images=where, out=str(tmp_path / "boxes.json"), boxes=str(tmp_path / "given.json"))
    assert answer["images"] == 6
    assert answer["images_without_boxes"] == 4
    assert answer["fallback"]["aspect"] == 1
    assert answer["dropped"] == 1
    first, second, *_ = read_proposals(tmp_path / "boxes.json", images)
    # The best scored comes first and pushes the other out; the third is cut at the edge.
    assert first.boxes.tolist() == [[10, 10, 50, 46], [0, 80, 25, 96]]
    assert second.boxes.tolist() == [[0, 0, 80, 10]]
    stored = json.loads((tmp_path / "boxes.json").read_text())
    assert [round(row["score"], 5) for row in stored["annotations"]] == [0.2, 0.1, 1.0]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"side": 3}, "--side is 3"),
        ({"scales": []}, "--scales"),
        ({"iou": 0.0}, "--iou is 0"),
        ({"workers": 0}, "--workers is 0"),
        ({"image_timeout": -1.0}, "--image-timeout is -1"),
        ({"boxes": "absent.json"}, "--boxes absent.json does not exist"),
        ({"data": "absent.json"}, "absent.json does not exist"),
        ({"out": "."}, r"--out \. is a folder"),
        ({"images": "absent"}, "--images absent does not exist"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    images: str, tmp_path: Path, flags: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        proposals(**{"images": images, "out": str(tmp_path / "boxes.json"), **flags})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scenes"]


@pytest.mark.slow
def test_a_run_with_several_processes_survives_sigkill(images: str, tmp_path: Path) -> None:
    for number in range(60):
        Image.open(sorted(Path(images).iterdir())[number % 6]).resize((640, 480)).save(f"{images}/x{number}.jpg")
    out = tmp_path / "boxes.json"
    words = ["proposals", "--images", images, "--out", str(out), "--workers", "2"]
    run = subprocess.Popen([sys.executable, "-m", "selfdet", *words])
    unfinished = tmp_path / "boxes.json.unfinished.jsonl"
    while not (unfinished.exists() and unfinished.read_bytes().count(b"\n") > 3):
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert not out.exists()
    assert main([*words, "--resume"]) == 0
    proposals(images=images, out=str(tmp_path / "whole.json"), workers=1)
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
